//! Calls of cargo. All of them inherit CARGO_TARGET_DIR and cargo's other settings.

use std::{
    env,
    ffi::OsStr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, bail};

use crate::{arch::Arch, needs};

/// The package that holds the end-to-end tests and the demo.
const TESTS: &str = "sluice-tests";
/// The package that makes Kubernetes clusters, and holds the tests that need one.
const KUBE: &str = "sluice-kube";

/// Tests that use up the machine: others, which expect something in time, do not run beside them.
const HEAVY: [&str; 2] = ["dials::", "load::"];
/// So do these, whose figures are worth seeing.
const CONFORMANCE: &str = "conformance::";

/// How the programs under test are compiled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

impl Profile {
    pub(crate) fn optimised(yes: bool) -> Self {
        if yes { Self::Release } else { Self::Debug }
    }

    /// Its folder in the target directory.
    fn folder(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }

    fn apply(self, cargo: &mut Command) {
        if self == Self::Release {
            cargo.arg("--release");
        }
    }
}

/// The cargo that started this program, at the root of the repository.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    // What failed in a test is said by its error. Where in the runtime that was takes pages, and whoever
    // has to shorten what was printed keeps those.
    cargo.env("RUST_LIB_BACKTRACE", "0");
    cargo
}

/// The root of the repository. What cargo says of it now, not what it said at compile time:
/// another clone with the same target directory runs the very same program.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let xtask = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let xtask = xtask.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        xtask.parent().expect("xtask is a folder of the repository").into()
    })
}

/// The target directory, which is where cargo put this very program: that holds whatever named
/// it (environment, configuration file, or the default).
pub(crate) fn target_dir() -> anyhow::Result<PathBuf> {
    let program = env::current_exe().context("could not tell where xtask itself is")?;
    let folder = program.parent().and_then(Path::parent);
    Ok(folder.with_context(|| format!("{} is in no target directory", program.display()))?.into())
}

/// Runs `command` on the caller's terminal; an error names `what` failed.
pub(crate) fn run(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("could not run {command:?}"))?;
    if !status.success() {
        bail!("{what} failed; the lines above say why");
    }
    Ok(())
}

/// Builds every crate for this machine; the agent's build script builds the eBPF programs.
pub(crate) fn build_all(profile: Profile) -> anyhow::Result<()> {
    let mut cargo = cargo();
    cargo.args(["build", "--workspace", "--exclude", "sluice-agent-ebpf"]);
    profile.apply(&mut cargo);
    run(&mut cargo, "the build")
}

/// Runs the tests that need no root.
pub(crate) fn unit_tests(filter: Option<&str>) -> anyhow::Result<()> {
    run(cargo().args(["test", "--no-fail-fast"]).args(filter), "a unit test")
}

/// What the end-to-end tests and the demo start.
pub(crate) struct Programs {
    pub(crate) agent: PathBuf,
    pub(crate) sample: PathBuf,
}

/// Builds the agent and the sample application for this machine.
pub(crate) fn programs(profile: Profile) -> anyhow::Result<Programs> {
    programs_with(Arch::HERE, profile, false)
}

/// The same for any machine, with an agent that steers nothing, if so wished: tests must notice.
pub(crate) fn programs_with(
    arch: Arch,
    profile: Profile,
    broken_steer: bool,
) -> anyhow::Result<Programs> {
    let mut cargo = cargo();
    cargo.args(["build", "--package", "sluice", "--package", "sluice-sample", "--bins"]);
    profile.apply(&mut cargo);
    arch.apply(&mut cargo)?;
    if broken_steer {
        cargo.args(["--features", "sluice/broken-steer"]);
    }
    run(&mut cargo, "the build of the agent and the sample application")?;
    let folder = arch.below(&target_dir()?).join(profile.folder());
    Ok(Programs { agent: folder.join("sluice"), sample: folder.join("sluice-sample") })
}

/// The target of programs that run in containers: this machine's, named, so that what is said
/// about it does not concern build scripts.
pub(crate) fn target() -> String {
    format!("{}-unknown-linux-gnu", Arch::HERE.rust())
}

/// Builds packages as containers without any other file need them, with `features` (`PACKAGE/NAME`)
/// beside the usual ones. Returns the programs' folder.
///
/// Linked statically with glibc, not musl: its allocator is the one all figures were measured
/// with, and no further toolchain is needed. Names resolve all the same, since glibc 2.34 has
/// the files and DNS services built in.
pub(crate) fn static_programs(packages: &[&str], features: &[&str]) -> anyhow::Result<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    // What a panic names is no file of the machine that compiled it. Those of the project are named
    // from its root anyway: with that in a flag, each clone would compile everything anew.
    flags.extend(home.map(|home| format!("--remap-path-prefix={}=/cargo", home.display())));
    let mut cargo = cargo();
    cargo.args(["build", "--release", "--locked", "--bins", "--target", &target()]);
    cargo.args(["--config", "profile.release.strip=\"debuginfo\""]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    for feature in features {
        cargo.args(["--features", feature]);
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    run(&mut cargo, "the build of the images' programs")?;
    Ok(target_dir()?.join(target()).join(Profile::Release.folder()))
}

/// Builds the program that makes Kubernetes clusters.
pub(crate) fn kube_bed() -> anyhow::Result<PathBuf> {
    run(cargo().args(["build", "--package", KUBE, "--bins"]), "the build of the cluster's maker")?;
    Ok(target_dir()?.join("debug/kube-bed"))
}

/// Whether a test program of that package has tests that `filter` lets through.
pub(crate) fn kube_test_has(program: &str, filter: Option<&str>) -> anyhow::Result<bool> {
    Ok(!names(KUBE, program, filter.unwrap_or_default())?.is_empty())
}

/// The tests of a program that `filter` lets through, one a line.
fn names(package: &str, program: &str, filter: &str) -> anyhow::Result<String> {
    let mut cargo = cargo();
    cargo.args(["test", "--package", package, "--test", program, filter]);
    let output = cargo.args(["--", "--list", "--format=terse"]).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("could not run {cargo:?}"))?;
    if !output.status.success() {
        bail!("the build of the tests failed; the lines above say why");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a test program of the package that makes Kubernetes clusters.
pub(crate) fn kube_test(
    program: &str,
    filter: Option<&str>,
    environment: &[(&str, &OsStr)],
) -> anyhow::Result<()> {
    let mut cargo = cargo();
    cargo.args(["test", "--package", KUBE, "--no-fail-fast", "--test", program]).args(filter);
    // What was measured is worth seeing.
    cargo.args(["--", "--show-output"]);
    run(cargo.envs(environment.iter().copied()), "a test of the Kubernetes cluster")
}

/// Builds the end-to-end tests and what they start, and returns the tests' program.
pub(crate) fn test_program(arch: Arch) -> anyhow::Result<PathBuf> {
    let mut helpers = cargo();
    helpers.args(["build", "--package", TESTS, "--bins"]);
    arch.apply(&mut helpers)?;
    run(&mut helpers, "the build of the tests")?;
    let mut tests = cargo();
    tests.args(["test", "--package", TESTS, "--no-run", "--message-format=json"]);
    arch.apply(&mut tests)?;
    let output = tests.stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("could not run {tests:?}"))?;
    if !output.status.success() {
        bail!("the build of the tests failed; the lines above say why");
    }
    // One JSON object a line; those of programs name the target and the file.
    let messages = String::from_utf8_lossy(&output.stdout);
    let program = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_ours = message["target"]["name"] == "e2e";
        is_ours.then_some(PathBuf::from(message["executable"].as_str()?))
    };
    messages.lines().find_map(program).context("cargo named no program `e2e`")
}

/// Builds the demo and what it starts.
pub(crate) fn demo_program() -> anyhow::Result<PathBuf> {
    run(cargo().args(["build", "--package", TESTS, "--bins"]), "the build of the demo")?;
    Ok(target_dir()?.join("debug/demo"))
}

impl Programs {
    /// Runs the end-to-end tests; what judges HTTP is in the folder `conformance`.
    pub(crate) fn end_to_end_tests(
        &self,
        conformance: impl FnOnce() -> anyhow::Result<PathBuf>,
        filter: Option<&str>,
    ) -> anyhow::Result<()> {
        // Building what judges takes minutes once, and Go.
        let is_judged = match filter {
            Some(filter) => names(TESTS, "e2e", filter)?.contains(CONFORMANCE),
            None => true,
        };
        let conformance = if is_judged { Some(conformance()?) } else { None };
        let test = |program: &str, arguments: &[&str]| {
            let mut cargo = self.named_to(cargo());
            cargo.envs(conformance.as_ref().map(|folder| ("CONFORMANCE_BIN", folder)));
            cargo.args(["test", "--package", TESTS, "--test", program, "--"]);
            run(cargo.args(arguments).args(filter), "an end-to-end test")
        };
        // One at a time, and what was measured is worth seeing.
        let attacks = || test("attacks", &["--test-threads=1", "--show-output"]);
        if filter.is_some() {
            return test("e2e", &["--show-output"]).and(attacks());
        }
        let others = [HEAVY.as_slice(), &[CONFORMANCE]].concat();
        let others: Vec<_> = others.iter().flat_map(|subject| ["--skip", subject]).collect();
        let heavy = test("e2e", &HEAVY);
        let conformance = test("e2e", &["--show-output", CONFORMANCE]);
        heavy.and(conformance).and(test("e2e", &others)).and(attacks())
    }

    pub(crate) fn demo(&self, keep: bool) -> anyhow::Result<()> {
        let mut demo = self.named_to(Command::new(demo_program()?));
        demo.args(keep.then_some("--keep"));
        // In place of this process: Ctrl-C then reaches nothing but the demo, which cleans up.
        Err(demo.exec()).with_context(|| format!("could not run {demo:?}"))
    }

    pub(crate) fn bench(&self, options: &[String]) -> anyhow::Result<()> {
        let mut build = cargo();
        build.args(["build", "--release", "--package", TESTS, "--bins"]);
        run(&mut build, "the build of the benchmark")?;
        let mut bench = self.named_to(Command::new(target_dir()?.join("release/bench")));
        run(bench.args(options), "the benchmark")
    }

    /// Tells `command` where the programs are, as `sluice_tests::programs` expects it.
    fn named_to(&self, mut command: Command) -> Command {
        command.env("SLUICE_BIN", &self.agent).env("SLUICE_SAMPLE_BIN", &self.sample);
        command.env("ROTEL_BIN", needs::rotel_program());
        if needs::envoy_fits() {
            command.env("ENVOY_BIN", needs::envoy_program());
        }
        command
    }
}
