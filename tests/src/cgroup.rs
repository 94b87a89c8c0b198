//! cgroup2 directories.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{PATIENCE, record};

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
    let deadline = Instant::now() + PATIENCE;
    while !is_empty(folder)? {
        kill_all(folder)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("processes in {} do not die", folder.display());
        }
        wait_for_change(folder, left)?;
    }
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
    let mounts = fs::read_to_string("/proc/self/mounts").context("could not read the mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    let path = match found {
        Some(path) => path,
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

/// The directory and all below it, deepest first.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(tree(&entry.path()));
        }
    }
    all.push(folder.to_path_buf());
    all
}

/// Not `cgroup.kill`, which Linux 5.10 lacks.
fn kill_all(folder: &Path) -> anyhow::Result<()> {
    for folder in tree(folder) {
        let processes = fs::read_to_string(folder.join("cgroup.procs"))
            .with_context(|| format!("could not read the processes of {}", folder.display()))?;
        for process in processes.lines().filter_map(|line| line.parse().ok()) {
            // Gone already is as good.
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
    }
    Ok(())
}

fn is_empty(folder: &Path) -> io::Result<bool> {
    Ok(fs::read_to_string(folder.join("cgroup.events"))?.contains("populated 0"))
}

/// Waits until the kernel reports a change of the directory's events.
fn wait_for_change(folder: &Path, at_most: Duration) -> anyhow::Result<()> {
    let events = fs::File::open(folder.join("cgroup.events"))?;
    // Reading arms the poll; between two reads no change is lost.
    if io::read_to_string(&events)?.contains("populated 0") {
        return Ok(());
    }
    let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout)?;
    Ok(())
}

fn remove(folder: &Path) -> io::Result<()> {
    tree(folder).iter().try_for_each(fs::remove_dir)
}
