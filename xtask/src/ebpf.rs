//! Compilers for the BPF target, in the order `agent/build.rs` prefers them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{arch::Arch, cargo};

const TARGET: &str = "bpfel-unknown-none";
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CLIPPY: &str = "/usr/bin/clippy-driver";

/// A compiler that can make eBPF programs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Toolchain {
    /// rustup's nightly, which compiles `core` itself.
    Nightly,
    /// Debian's `rustc-web`, which ships `core` for the BPF target.
    Debian,
}

impl Toolchain {
    /// The one `agent/build.rs` will use.
    pub(crate) fn find() -> Option<Self> {
        if nightly_has_source() {
            return Some(Self::Nightly);
        }
        let query = ["--print", "target-libdir", "--target", TARGET];
        let libraries = printed_path(Command::new(DEBIAN_RUSTC).args(query));
        libraries.is_some_and(|folder| folder.is_dir()).then_some(Self::Debian)
    }

    /// Whether it has clippy beside it.
    pub(crate) fn has_clippy(self) -> bool {
        match self {
            Self::Nightly => {
                let mut clippy = nightly("cargo-clippy");
                clippy.arg("--version").output().is_ok_and(|output| output.status.success())
            }
            Self::Debian => Path::new(DEBIAN_CLIPPY).is_file(),
        }
    }

    /// A cargo command that lints the eBPF programs for machines of `arch`, warnings denied.
    pub(crate) fn clippy(self, arch: Arch) -> Command {
        let package = ["--package", "sluice-agent-ebpf", "--target", TARGET];
        let mut command = match self {
            Self::Nightly => {
                let mut command = nightly("cargo");
                command.current_dir(cargo::root()).arg("clippy").args(package);
                command.env("CARGO_UNSTABLE_BUILD_STD", "core").args(["--", "-Dwarnings"]);
                command
            }
            Self::Debian => {
                // What `cargo clippy` does, with a driver of the compiler's own version: Debian
                // ships the driver, and `core` for the BPF target belongs to its compiler.
                let mut command = cargo::cargo();
                command.arg("check").args(package);
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command.env("RUSTC_WORKSPACE_WRAPPER", DEBIAN_CLIPPY);
                command.env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
                command
            }
        };
        // As agent/build.rs passes it: aya-ebpf's bindings differ by architecture.
        let architecture = format!("--cfg=bpf_target_arch=\"{}\"", arch.rust());
        command.env("CARGO_ENCODED_RUSTFLAGS", architecture);
        command
    }
}

fn nightly_has_source() -> bool {
    let sysroot = printed_path(nightly("rustc").args(["--print", "sysroot"]));
    sysroot.is_some_and(|folder| folder.join("lib/rustlib/src/rust/library/core").is_dir())
}

fn nightly(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", program]).env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
    command
}

/// The path that `command` prints, when it succeeds.
fn printed_path(command: &mut Command) -> Option<PathBuf> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
