//! Network namespaces, and running code inside one.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    panic::resume_unwind,
    path::Path,
    sync::OnceLock,
};

use nix::sched::{CloneFlags, setns, unshare};

/// An open network namespace. Holding it keeps the namespace alive.
#[derive(Debug)]
pub(super) struct Netns {
    file: File,
    inode: u64,
}

impl Netns {
    /// The namespace at `path`, e.g. `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self { file, inode })
    }

    /// The namespace the agent itself runs in.
    pub(super) fn own() -> io::Result<&'static Self> {
        static OWN: OnceLock<Netns> = OnceLock::new();
        if let Some(own) = OWN.get() {
            return Ok(own);
        }
        let own = Self::open(Path::new("/proc/self/ns/net"))?;
        Ok(OWN.get_or_init(|| own))
    }

    /// A new namespace that goes with its last user: nothing names it, and no process is in it.
    pub(super) fn throw_away() -> io::Result<Self> {
        // A thread of its own takes the step that has no way back.
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::open(Path::new("/proc/thread-self/ns/net"))
        });
        made.join().unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// What tells the namespace from every other one alive.
    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    /// The namespace as a file, for links to attach to.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` with the calling thread inside the namespace. Sockets keep the namespace
    /// they were made in, so everything that waits happens outside, later.
    ///
    /// Two system calls, a microsecond: no thread has to be kept inside. `work` cannot await,
    /// so that the thread never leaves with the namespace still switched.
    ///
    /// # Panics
    /// Ends the process when the thread cannot get back: it would go on to serve other pods
    /// from inside this one.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let own = Self::own()?;
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let _back = Back(own);
        work()
    }
}

/// Takes the thread back, also when the work panics.
struct Back(&'static Netns);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0.file.as_fd(), CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "could not leave a pod's network namespace");
            std::process::abort();
        }
    }
}
