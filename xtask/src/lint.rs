//! `lint`: formatting, and clippy on every crate for the machine it runs on.

use anyhow::Context;

use crate::{arch::Arch, cargo, ebpf::Toolchain};

pub(crate) fn run() -> anyhow::Result<()> {
    cargo::run(cargo::cargo().args(["fmt", "--all", "--check"]), "the check of the formatting")?;
    let mut clippy = cargo::cargo();
    clippy.args(["clippy", "--workspace", "--exclude", "sluice-agent-ebpf", "--all-targets"]);
    cargo::run(clippy.args(["--", "-Dwarnings"]), "clippy")?;
    let toolchain = Toolchain::find().context("no compiler for the BPF target")?;
    for arch in Arch::ALL {
        cargo::run(&mut toolchain.clippy(arch), "clippy on the eBPF programs")?;
    }
    Ok(())
}
