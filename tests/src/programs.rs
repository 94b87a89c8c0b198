//! The programs under test.

use std::{
    fs::{Permissions, set_permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use tempfile::TempDir;

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

/// A copy of the agent where every user may run it.
#[derive(Debug)]
pub struct PublicProgram {
    path: PathBuf,
    _directory: TempDir,
}

impl PublicProgram {
    /// Copies the agent.
    ///
    /// # Errors
    /// As [`agent_program`], or when there is no room.
    pub fn copy() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        let path = directory.path().join("sluice");
        // By another process: a file that this one has open for writing is for a moment open in
        // whatever child a test beside this one forks, and busy.
        let copied = Command::new("cp").arg(agent_program()?).arg(&path).status()?;
        ensure!(copied.success(), "could not copy the agent to {}", path.display());
        Ok(Self { path, _directory: directory })
    }

    /// Where it is, until dropped.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn named_by(variable: &str) -> anyhow::Result<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).with_context(|| {
        format!("{variable} does not say where the program is (hint: cargo xtask test --e2e)")
    })
}
