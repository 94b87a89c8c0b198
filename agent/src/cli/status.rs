//! `sluice status`: what the agent of this node is doing.

use std::net::SocketAddr;

use clap::Args;

use super::output::Output;
use crate::admin;

/// Show what is enrolled, certificates and their expiry, the snapshot and counters.
#[derive(Args, Debug)]
pub(super) struct Status {
    /// Address of the agent's admin server
    #[arg(long, env = "SLUICE_ADMIN_ADDR", value_name = "ADDR", default_value = "127.0.0.1:15000")]
    admin_addr: SocketAddr,

    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<()> {
        self.output.print(&admin::ask(self.admin_addr)?)
    }
}
