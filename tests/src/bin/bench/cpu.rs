//! CPU time of processes.

use std::time::Duration;

use anyhow::Context;
use nix::{time::ClockId, unistd::Pid};

/// CPU time, user and system, that the processes `ids` have used together. From each one's CPU
/// clock, which counts nanoseconds and threads that have ended too; /proc counts in hundredths of a
/// second.
pub(crate) fn used(ids: impl IntoIterator<Item = u32>) -> anyhow::Result<Duration> {
    ids.into_iter().map(of).sum()
}

fn of(id: u32) -> anyhow::Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(id.cast_signed()));
    let time = clock.and_then(ClockId::now);
    Ok(time.with_context(|| format!("could not tell what process {id} has used"))?.into())
}
