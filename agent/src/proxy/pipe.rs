//! Bytes from one socket to another, by the kernel alone.
//!
//! `splice(2)` (Linux 2.6.31 for TCP in both directions) moves the pages that a socket has received into a
//! pipe, and from there to where another socket sends from. Nothing is copied, and this process never sees
//! a byte: that is for what is long and not looked into.

use std::{
    io,
    os::fd::OwnedFd,
    sync::LazyLock,
    task::{Context, Poll, ready},
};

use nix::{
    fcntl::{OFlag, SpliceFFlags, splice},
    sys::resource::{Resource, getrlimit},
    unistd::pipe2,
};
use tokio::{
    io::Interest,
    net::TcpStream,
    sync::{Semaphore, SemaphorePermit},
};

/// As much is taken at once: what a pipe holds by default.
const MOST: usize = 64 << 10;

/// Each pipe is two open files. The two sockets of each connection come first: they may be two thirds of
/// what this process may have.
static PIPES: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(most()));

fn most() -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    (files / 16).min(512) as usize
}

/// A pipe between two sockets.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
    _one_of_all: SemaphorePermit<'static>,
}

impl Pipe {
    /// One that holds nothing. `None` where there are enough.
    pub(super) fn open() -> Option<Self> {
        let _one_of_all = PIPES.try_acquire().ok()?;
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        Some(Self { read, write, held: 0, _one_of_all })
    }

    /// Bytes that it has taken and not passed on.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Takes the next bytes that `source` has, to be asked while it holds none; how many, and 0 at the end.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(source.poll_read_ready(cx))?;
            // An empty pipe has room: it is the socket that has nothing.
            let taken = source.try_io(Interest::READABLE, || {
                Ok(splice(source, None, &self.write, None, MOST, SpliceFFlags::SPLICE_F_NONBLOCK)?)
            });
            match taken {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                taken => {
                    self.held += *taken.as_ref().unwrap_or(&0);
                    return Poll::Ready(taken);
                }
            }
        }
    }

    /// Passes on as much as `sink` has room for; how much that was.
    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        sink: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(sink.poll_write_ready(cx))?;
            let passed = sink.try_io(Interest::WRITABLE, || {
                let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
                Ok(splice(&self.read, None, sink, None, self.held, flags)?)
            });
            match passed {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                passed => {
                    self.held -= *passed.as_ref().unwrap_or(&0);
                    return Poll::Ready(passed);
                }
            }
        }
    }
}

/// Whether there is any.
#[cfg(test)]
pub(super) fn in_use() -> bool {
    PIPES.available_permits() < most()
}
