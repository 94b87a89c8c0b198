//! Notices that something in a directory changed.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    ffi::OsString,
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent},
};
use tokio::{
    net::unix::pipe,
    time::{Instant, timeout_at},
};

/// Changes that follow one another this closely are one change: a deployment writes many files.
const QUIET: Duration = Duration::from_millis(100);
/// A directory that never gets quiet is looked at this long after the first change.
const PATIENCE: Duration = Duration::from_secs(2);

/// Watches one directory and the files its links lead to.
#[derive(Debug)]
pub(crate) struct Watch {
    dir: PathBuf,
    inotify: Inotify,
    /// Tells when `inotify` has events: a second descriptor of it, under a type that, unlike
    /// `AsyncFd`, needs no `unsafe`. To epoll both are descriptors that become readable.
    readiness: pipe::Receiver,
    scopes: Mutex<HashMap<i32, Scope>>,
}

/// Which of the events of one watched directory matter.
#[derive(Debug)]
enum Scope {
    All,
    Names(HashSet<OsString>),
}

impl Watch {
    /// Prepares to watch `dir`. Watching begins with [`Self::begin`].
    ///
    /// # Errors
    /// When the kernel grants no inotify instance.
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let descriptor = inotify.as_fd().try_clone_to_owned()?;
        let readiness = pipe::Receiver::from_owned_fd_unchecked(descriptor)?;
        Ok(Self { dir: dir.to_owned(), inotify, readiness, scopes: Mutex::default() })
    }

    /// Watches the directory that has the name now. To be called before each reading: what
    /// happens from here on is an event, and the directory may be another one than before.
    ///
    /// # Errors
    /// When the kernel grants no watch. A directory that is not there is no error.
    pub(crate) fn begin(&self) -> io::Result<()> {
        self.file(&self.dir)?;
        if let Ok(real) = fs::canonicalize(&self.dir) {
            self.file(&real)?;
        }
        if let Some(descriptor) = self.add(&self.dir)? {
            self.scopes().insert(descriptor, Scope::All);
        }
        Ok(())
    }

    /// Watches the one name `path` in the directory it is in.
    ///
    /// # Errors
    /// When the kernel grants no watch.
    pub(crate) fn file(&self, path: &Path) -> io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let Some(descriptor) = self.add(parent)? else { return Ok(()) };
        match self.scopes().entry(descriptor) {
            Entry::Occupied(mut scope) => {
                if let Scope::Names(names) = scope.get_mut() {
                    names.insert(name.to_owned());
                }
            }
            Entry::Vacant(scope) => {
                scope.insert(Scope::Names(HashSet::from([name.to_owned()])));
            }
        }
        Ok(())
    }

    /// Waits until something changed and the changes have come to rest. Events that arrive
    /// later are kept for the next call.
    ///
    /// # Errors
    /// When the kernel takes the inotify instance back.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        while !self.events().await? {}
        let last = Instant::now() + PATIENCE;
        let mut rest = Instant::now() + QUIET;
        // A timeout alone would not do: it never strikes while there is an event at hand.
        while Instant::now() < last {
            match timeout_at(rest.min(last), self.events()).await {
                Err(_elapsed) => break,
                Ok(matters) => {
                    if matters? {
                        rest = Instant::now() + QUIET;
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits for events; whether one of them matters.
    async fn events(&self) -> io::Result<bool> {
        let events = loop {
            self.readiness.readable().await?;
            match self.readiness.try_io(|| Ok(self.inotify.read_events()?)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                result => break result?,
            }
        };
        let mut scopes = self.scopes();
        Ok(events.iter().fold(false, |matters, event| matters | matter(&mut scopes, event)))
    }

    /// The watch of `dir`; `None` when it cannot be watched because of what it is itself.
    /// Reading it gives the better error.
    fn add(&self, dir: &Path) -> io::Result<Option<i32>> {
        let mask = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.add_watch(dir, mask) {
            Ok(descriptor) => Ok(Some(descriptor.as_raw())),
            Err(error @ (Errno::ENOSPC | Errno::ENOMEM)) => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    fn scopes(&self) -> MutexGuard<'_, HashMap<i32, Scope>> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn matter(scopes: &mut HashMap<i32, Scope>, event: &InotifyEvent) -> bool {
    if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
        return true;
    }
    let descriptor = event.wd.as_raw();
    if event.mask.contains(AddWatchFlags::IN_IGNORED) {
        scopes.remove(&descriptor);
        return false;
    }
    match scopes.get(&descriptor) {
        Some(Scope::All) => true,
        Some(Scope::Names(names)) => event.name.as_ref().is_some_and(|name| names.contains(name)),
        None => false,
    }
}
