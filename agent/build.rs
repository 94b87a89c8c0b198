//! Compiles the eBPF programs that the agent carries.
//!
//! Any of two toolchains does: rustup's nightly with `rust-src`, or Debian's `rustc-web`, which
//! ships the BPF target's `core`. `cargo xtask setup` installs what is missing.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, exit},
};

const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..");
    for dir in ["agent-ebpf", "agent-common"] {
        println!("cargo::rerun-if-changed={}", root.join(dir).display());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    if let Err(error) = build(&root, &out.join("ebpf")) {
        eprintln!("error: could not build the eBPF programs: {error}");
        exit(1);
    }
    let object = out.join("ebpf").join(TARGET).join("release/sluice");
    println!("cargo::rustc-env=SLUICE_EBPF_OBJECT={}", object.display());
}

fn build(root: &Path, target_dir: &Path) -> Result<(), String> {
    if !runs(Command::new("bpf-linker").arg("--version")) {
        return Err("bpf-linker is not installed (hint: cargo xtask setup)".into());
    }
    let mut cargo = toolchain()?;
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("--cfg=bpf_target_arch=\"{arch}\""),
    ];
    cargo
        .args(["build", "--release", "--package", "sluice-agent-ebpf", "--target", TARGET])
        .arg("--manifest-path")
        .arg(root.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target_dir)
        // Cargo tells a build script's children about the host's build; none of it fits here.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("CARGO_MAKEFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let features = [("BROKEN_STEER", "broken-steer"), ("NEXT_VERSION", "next-version")];
    for (variable, feature) in features {
        if env::var_os(format!("CARGO_FEATURE_{variable}")).is_some() {
            cargo.args(["--features", feature]);
        }
    }
    match cargo.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("the compiler's messages above say why".into()),
        Err(error) => Err(format!("could not run {cargo:?}: {error}")),
    }
}

/// A cargo that can compile for the BPF target.
fn toolchain() -> Result<Command, String> {
    if nightly_has_source() {
        let mut cargo = Command::new("rustup");
        cargo.args(["run", "nightly", "cargo"]).env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
        cargo.env("CARGO_UNSTABLE_BUILD_STD", "core");
        return Ok(cargo);
    }
    let libraries = Command::new(DEBIAN_RUSTC)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    if libraries.is_ok_and(|directory| directory.is_dir()) {
        let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets it"));
        // The prebuilt `core` belongs to a stable compiler; the BPF target itself is not stable.
        cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        return Ok(cargo);
    }
    Err("no compiler for the BPF target: neither rustup's nightly with rust-src nor Debian's \
         rustc-web with libstd-rust-web-dev-bpf (hint: cargo xtask setup)"
        .into())
}

fn nightly_has_source() -> bool {
    let sysroot = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .env_remove("RUSTC")
        .env_remove("RUSTUP_TOOLCHAIN")
        .output();
    sysroot.is_ok_and(|output| {
        output.status.success()
            && Path::new(String::from_utf8_lossy(&output.stdout).trim())
                .join("lib/rustlib/src/rust/library/core")
                .is_dir()
    })
}

fn runs(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
