//! The programs under test.

use std::path::PathBuf;

use anyhow::Context;

/// The agent, from `SLUICE_BIN`.
///
/// # Errors
/// When the variable is not set; `cargo xtask test` and `demo` set it.
pub fn agent_program() -> anyhow::Result<PathBuf> {
    named_by("SLUICE_BIN")
}

/// The sample application, from `SLUICE_SAMPLE_BIN`.
///
/// # Errors
/// When the variable is not set; `cargo xtask test` and `demo` set it.
pub fn sample_program() -> anyhow::Result<PathBuf> {
    named_by("SLUICE_SAMPLE_BIN")
}

fn named_by(variable: &str) -> anyhow::Result<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).with_context(|| {
        format!("{variable} does not say where the program is (hint: cargo xtask test --e2e)")
    })
}
