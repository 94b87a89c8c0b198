//! cgroup2 directories.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Instant,
};

use anyhow::Context;
use nix::mount::{MsFlags, mount};

use crate::{
    PATIENCE,
    cgroup_tree::{Hierarchy, hierarchies, kill_all, tree},
    record,
};

/// A cgroup2 directory. Its maker removes it; see [`delete`].
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// `labs/NAME` below the root of the cgroup2 hierarchy.
    pub(crate) fn of_lab(lab: &str) -> anyhow::Result<Self> {
        let path = labs()?.join(lab);
        fs::create_dir_all(&path).with_context(|| format!("could not make {}", path.display()))?;
        Ok(Self { path })
    }

    /// A directory below this one.
    pub(crate) fn child(&self, name: &str) -> anyhow::Result<Self> {
        let path = self.path.join(name);
        fs::create_dir(&path).with_context(|| format!("could not make {}", path.display()))?;
        Ok(Self { path })
    }

    /// A directory some levels below this one, made with those above it.
    pub(crate) fn descendant(&self, path: &str) -> anyhow::Result<Self> {
        let path = self.path.join(path);
        fs::create_dir_all(&path).with_context(|| format!("could not make {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root of the hierarchy: every process of the machine is in it.
    ///
    /// # Errors
    /// When there is no cgroup2 hierarchy and none can be mounted.
    pub fn root() -> anyhow::Result<&'static Path> {
        hierarchy()
    }

    /// Kills every process in it and removes the directory.
    pub(crate) fn delete(&self) -> anyhow::Result<()> {
        delete_folder(&self.path)
    }
}

/// Kills every process of a lab and removes its directory, if there is one.
pub(crate) fn delete(lab: &str) -> anyhow::Result<()> {
    delete_folder(&labs()?.join(lab))
}

fn delete_folder(folder: &Path) -> anyhow::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    kill_all(folder, Instant::now() + PATIENCE)?;
    remove(folder).with_context(|| format!("could not remove {}", folder.display()))
}

fn labs() -> anyhow::Result<PathBuf> {
    Ok(hierarchy()?.join("sluice-lab"))
}

/// Where the cgroup2 hierarchy is mounted: `/sys/fs/cgroup`, or `…/unified` on hybrid machines.
/// A machine with version 1 alone has a hierarchy all the same, just nowhere to see it.
fn hierarchy() -> anyhow::Result<&'static Path> {
    static HIERARCHY: OnceLock<PathBuf> = OnceLock::new();
    if let Some(found) = HIERARCHY.get() {
        return Ok(found);
    }
    let found = hierarchies()?.into_iter().find(|hierarchy| hierarchy.unified);
    let path = match found {
        Some(Hierarchy { root, .. }) => root,
        None => {
            let path = Path::new(record::FOLDER).join("cgroup2");
            fs::create_dir_all(&path)
                .with_context(|| format!("could not make {}", path.display()))?;
            mount(None::<&str>, &path, Some("cgroup2"), MsFlags::empty(), None::<&str>)
                .context("could not mount cgroup2 (hint: run as root)")?;
            path
        }
    };
    Ok(HIERARCHY.get_or_init(|| path))
}

fn remove(folder: &Path) -> io::Result<()> {
    tree(folder).iter().try_for_each(fs::remove_dir)
}
