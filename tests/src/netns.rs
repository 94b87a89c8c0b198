//! A named network namespace, as `ip netns` makes them.

use std::{
    fs::{self, File},
    io,
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

use anyhow::Context;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

/// Where `ip netns` keeps them.
const FOLDER: &str = "/run/netns";

/// A network namespace under `/run/netns`. Its maker removes it; see [`delete_all`].
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes it as `ip netns add` does; `ip netns exec NAME …` then runs commands in it. Without
    /// that program: a lab has many, and an emulated processor starts a program slowly.
    pub(crate) fn create(name: String) -> anyhow::Result<Self> {
        share_folder().with_context(|| format!("could not share {FOLDER} (hint: run as root)"))?;
        let netns = Self { name };
        let make = || {
            let path = netns.path();
            File::create_new(&path)?;
            thread::scope(|scope| {
                let inside = scope.spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET)?;
                    bind(Path::new("/proc/thread-self/ns/net"), &path)
                });
                inside.join().unwrap_or_else(|panic| resume_unwind(panic))
            })
        };
        make().with_context(|| format!("could not make the namespace {}", netns.name))?;
        Ok(netns)
    }

    /// Takes its name away; the namespace itself goes with the last that is open of it.
    pub(crate) fn delete(&self) -> anyhow::Result<()> {
        delete(&self.path())
    }

    /// That of a process, which need not have a name.
    pub fn of_process(pid: u32) -> Self {
        Self { name: format!("/proc/{pid}/ns/net") }
    }

    /// Its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        // An absolute path stays what it is.
        Path::new(FOLDER).join(&self.name)
    }

    pub(crate) fn open(&self) -> anyhow::Result<File> {
        let path = self.path();
        File::open(&path).with_context(|| format!("could not open {}", path.display()))
    }

    /// Runs `work` on a thread of its own inside the namespace: sockets made there belong to it
    /// for good, and no other thread ever moves.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let handle = self.open()?;
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(handle, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("could not enter {}", self.name))?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Sets kernel parameters of this namespace, by their paths below `/proc/sys`.
    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(name, value)| {
                let path = Path::new("/proc/sys").join(name);
                fs::write(&path, value)
                    .with_context(|| format!("could not set {} to {value}", path.display()))
            })
        })?
    }
}

/// Removes every namespace whose name starts with `prefix`.
pub(crate) fn delete_all(prefix: &str) -> anyhow::Result<()> {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let mut ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    ours.try_for_each(|entry| delete(&entry.path()))
}

fn delete(path: &Path) -> anyhow::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Its maker was killed before it was mounted.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("could not unmount {}", path.display()));
        }
    }
    fs::remove_file(path).with_context(|| format!("could not remove {}", path.display()))
}

/// Makes the folder a mount that others see what is mounted in, as `ip netns` does: a namespace
/// that is unmounted is then gone everywhere.
fn share_folder() -> io::Result<()> {
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder)?;
    let share = || {
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, folder, None::<&str>, flags, None::<&str>)
    };
    match share() {
        Err(Errno::EINVAL) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(folder), folder, None::<&str>, flags, None::<&str>)?;
            Ok(share()?)
        }
        done => Ok(done?),
    }
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    Ok(mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}
