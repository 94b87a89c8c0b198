//! Lines the eBPF programs log, on their way into the agent's log.

use std::{
    error::Error,
    io::{self, PipeWriter},
    os::fd::AsFd,
    thread::{self, JoinHandle},
};

use aya::Ebpf;
use aya_log::{EbpfLogger, Level};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// The level from which the programs write anything. They check it before they touch the ring
/// buffer, so that capture costs nothing more while nobody reads at debug level.
pub(super) fn level() -> &'static u8 {
    static DEBUG: u8 = Level::Debug as u8;
    static WARN: u8 = Level::Warn as u8;
    let wanted = tracing::enabled!(target: "sluice::steer", tracing::Level::DEBUG);
    if wanted { &DEBUG } else { &WARN }
}

/// Lines are passed on until this is dropped. The ring buffer they come through is the pins', and
/// has room for one reader.
#[derive(Debug)]
pub(super) struct Forwarding {
    /// Closing it ends the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

/// Passes on what the programs log. Their lines go by the names of their modules,
/// `sluice::connect` and `sluice::steer`.
pub(super) fn forward(ebpf: &mut Ebpf) -> Option<Forwarding> {
    let mut start = || -> Result<Forwarding, Box<dyn Error>> {
        let mut logger = EbpfLogger::init(ebpf)?;
        let (stopped, stop) = io::pipe()?;
        // A thread of its own, asleep until there is something: capture logs only while somebody
        // debugs it, and must not take a turn from the threads that move traffic.
        let thread = thread::spawn(move || {
            loop {
                let mut ready = [
                    PollFd::new(logger.as_fd(), PollFlags::POLLIN),
                    PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                ];
                match poll(&mut ready, PollTimeout::NONE) {
                    Ok(_) if ready[1].any() != Some(false) => return,
                    Ok(_) => logger.flush(),
                    Err(Errno::EINTR) => {}
                    Err(error) => return tracing::warn!(%error, "the eBPF programs log no more"),
                }
            }
        });
        Ok(Forwarding { stop: Some(stop), thread: Some(thread) })
    };
    start().inspect_err(|error| tracing::warn!(%error, "the eBPF programs will not log")).ok()
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It panics no more than it returns anything.
            let _ = thread.join();
        }
    }
}
