//! The architectures that programs are built for.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use clap::ValueEnum;

use crate::cross;

/// An architecture, by the name that Debian and Kubernetes have for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Arch {
    #[value(alias = "x86_64")]
    Amd64,
    #[value(alias = "aarch64")]
    Arm64,
}

impl Arch {
    pub(crate) const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// This machine's own.
    pub(crate) const HERE: Self =
        if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    /// Debian's name for it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's name for it, and aya-ebpf's.
    pub(crate) fn rust(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// Makes a build command of cargo compile for it.
    pub(crate) fn apply(self, cargo: &mut Command) -> anyhow::Result<()> {
        if self == Self::HERE { Ok(()) } else { cross::apply(self, cargo) }
    }

    /// Where below the target directory cargo puts what it compiles for it.
    pub(crate) fn below(self, target_dir: &Path) -> PathBuf {
        if self == Self::HERE { target_dir.into() } else { target_dir.join(cross::TARGET) }
    }
}
