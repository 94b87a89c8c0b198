//! Compiling for arm64 on an amd64 machine.
//!
//! Takes a C compiler with its library, from Debian's cross packages, and Rust's library for the
//! target. rustup has the latter; where its server is out of reach, Debian's own compiler does,
//! with a system root that `install` makes of Debian's packages.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use crate::{arch::Arch, ebpf::DEBIAN_RUSTC, needs};

/// What is compiled for.
pub(crate) const TARGET: &str = "aarch64-unknown-linux-gnu";
const CC: &str = "aarch64-linux-gnu-gcc";
const LINKER: &str = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER";

/// Makes a build command of cargo compile for `arch`, which is not this machine's.
pub(crate) fn apply(arch: Arch, cargo: &mut Command) -> anyhow::Result<()> {
    if arch != Arch::Arm64 {
        bail!("this machine builds for itself alone (hint: an amd64 one builds for arm64 as well)");
    }
    cargo.args(["--target", TARGET]);
    // Whoever has named another linker knows why. The C compiler's name the crate `cc` knows.
    if env::var_os(LINKER).is_none() {
        cargo.env(LINKER, CC);
    }
    if !own_rustc_has_library() {
        let rustc = debian_rustc().filter(|rustc| rustc.is_file());
        cargo.env("RUSTC", rustc.context("no Rust library for arm64 (hint: cargo xtask setup)")?);
    }
    Ok(())
}

/// Whether there is a C compiler for the target, with the library that programs start with.
pub(crate) fn has_c_compiler() -> bool {
    // The compiler prints the path of what it finds, and the mere name of what it does not.
    let start = Command::new(CC).arg("-print-file-name=crt1.o").output();
    start.is_ok_and(|output| output.stdout.contains(&b'/'))
}

/// Whether some compiler here has Rust's library for the target.
pub(crate) fn has_rust_library() -> bool {
    own_rustc_has_library() || debian_rustc().is_some_and(|rustc| rustc.is_file())
}

/// Whether the compiler that cargo uses has it.
fn own_rustc_has_library() -> bool {
    let mut query = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    query.args(["--print", "target-libdir", "--target", TARGET]);
    let Ok(output) = query.output() else { return false };
    // The folder is named whether or not it is there, and may be there empty.
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let is_std = |name: OsString| name.to_string_lossy().starts_with("libstd-");
    fs::read_dir(folder).is_ok_and(|files| files.flatten().any(|file| is_std(file.file_name())))
}

/// Debian's compiler with a system root that holds the target's library too. `None` when Debian's
/// compiler is not here.
pub(crate) fn debian_rustc() -> Option<PathBuf> {
    let version = debian_rustc_version()?;
    Some(needs::cache().join(format!("rust-arm64/{version}")).join("rustc"))
}

/// The version of Debian's package, which that of its library must equal.
pub(crate) fn debian_rustc_version() -> Option<String> {
    if !Path::new(DEBIAN_RUSTC).is_file() {
        return None;
    }
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Version}", "rustc-web"]);
    let output = query.output().ok().filter(|output| output.status.success())?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!version.is_empty()).then_some(version)
}
