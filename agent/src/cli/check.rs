//! `sluice check`: whether capture can work on this node.

use std::path::PathBuf;

use clap::Args;

use super::output::Output;
use crate::capture;

/// Probe what capture needs of this node, and say how to get what is missing.
///
/// Changes nothing on the node, and does not disturb an agent at work. Ends with 0 if capture
/// can work: everything needed is there (✔) or has a substitute (▲). What is missing (✘) comes
/// with a hint.
#[derive(Args, Debug)]
pub(super) struct Check {
    /// cgroup2 directory to capture [default: the root of the hierarchy]
    #[arg(long, env = "SLUICE_CGROUP", value_name = "DIR")]
    cgroup: Option<PathBuf>,

    /// Where programs, maps and links would be pinned
    #[arg(long, env = "SLUICE_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    bpffs: PathBuf,

    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let report = capture::probe(self.cgroup.as_deref(), &self.bpffs);
        self.output.print(&report)?;
        report.verdict()
    }
}
