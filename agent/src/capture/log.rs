//! Lines the eBPF programs log, on their way into the agent's log.

use std::os::fd::AsFd;

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// The level from which the programs write anything. They check it before they touch the ring
/// buffer, so that capture costs nothing more while nobody reads at debug level.
pub(super) fn level() -> u8 {
    let level = if tracing::enabled!(target: "sluice::steer", tracing::Level::DEBUG) {
        aya_log::Level::Debug
    } else {
        aya_log::Level::Warn
    };
    level as u8
}

/// Passes on what the programs log for as long as the process lives. Their lines go by the
/// names of their modules, `sluice::connect` and `sluice::steer`.
pub(super) fn forward(ebpf: &mut Ebpf) {
    let mut logger = match EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(error) => return tracing::warn!(%error, "the eBPF programs will not log"),
    };
    // A thread of its own, asleep until there is something: capture logs only while somebody
    // debugs it, and must not take a turn from the threads that move traffic.
    std::thread::spawn(move || {
        loop {
            let ready = PollFd::new(logger.as_fd(), PollFlags::POLLIN);
            match poll(&mut [ready], PollTimeout::NONE) {
                Ok(_) => logger.flush(),
                Err(Errno::EINTR) => {}
                Err(error) => return tracing::warn!(%error, "the eBPF programs log no more"),
            }
        }
    });
}
