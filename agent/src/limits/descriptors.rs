//! What is left to do when there are no more file descriptors.

use std::{
    fs::File,
    io,
    sync::{Mutex, PoisonError},
};

use nix::errno::Errno;

/// One descriptor, kept to be given up: with it a connection can still be accepted, only to be
/// refused. Otherwise it would wait in the listener's queue for as long as there is none, its
/// client with it, and the listener would be ready all that time.
#[derive(Debug)]
pub struct Descriptors(Mutex<Option<File>>);

impl Descriptors {
    pub(super) fn reserve() -> Self {
        Self(Mutex::new(File::open("/dev/null").ok()))
    }

    /// Runs `accept` with the reserve given up, and takes it again afterwards. Whatever `accept`
    /// opens must be closed by then. Where the reserve is gone, it is what is taken first.
    pub fn in_need(&self, accept: impl FnOnce()) {
        // One at a time, so that nobody else gets the descriptor.
        let mut reserve = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reserve.take().is_some() {
            accept();
        }
        *reserve = File::open("/dev/null").ok();
    }
}

/// Whether the kernel says that there are no more descriptors, for this process or at all.
pub fn is_exhaustion(error: &io::Error) -> bool {
    [Errno::EMFILE, Errno::ENFILE].iter().any(|full| error.raw_os_error() == Some(*full as i32))
}
