//! CPU time of a process, from /proc.

use std::{fs, time::Duration};

use anyhow::Context;
use nix::unistd::{SysconfVar, sysconf};

/// CPU time, user and system, that the processes `ids` have used together.
pub(crate) fn used(ids: &[u32]) -> anyhow::Result<Duration> {
    let ticks = ids.iter().try_fold(0, |sum, id| anyhow::Ok(sum + ticks(*id)?))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// utime and stime: fields 14 and 15 of proc_pid_stat(5), the second of which, the program's
/// name in parentheses, may hold anything.
fn ticks(id: u32) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a stat without a name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || anyhow::Ok(fields.next().context("a short stat")?.parse::<u64>()?);
    Ok(next()? + next()?)
}
