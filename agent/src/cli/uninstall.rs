//! `sluice uninstall`: takes capture off a node whose agent is gone for good.

use std::path::PathBuf;

use clap::Args;

use crate::capture;

/// Remove everything an agent left in the kernel: programs, links, maps, and the routes, rules
/// and settings in pods' network namespaces.
///
/// An agent that stops leaves capture in place, so that no pod talks in plaintext until the
/// next agent is up. Run this when there will be no next agent.
#[derive(Args, Debug)]
pub(super) struct Uninstall {
    /// Where programs, maps and links are pinned
    #[arg(long, env = "SLUICE_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    bpffs: PathBuf,
}

impl Uninstall {
    pub(super) fn run(self) -> anyhow::Result<()> {
        capture::uninstall(&self.bpffs)?;
        Ok(())
    }
}
