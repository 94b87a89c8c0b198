//! `vm`: the end-to-end tests on Debian's kernels, each in a virtual machine.
//!
//! Enters: which kernels, which tests. Leaves: a table, and an error unless every kernel passed.
//! A machine is run by QEMU (`qemu.rs`). It has a kernel of Debian's archive (`archive.rs`), a
//! root file system in memory made of this machine's tools and our programs (`initramfs.rs`),
//! and as its init program `tests/src/bin/vm-init`.

mod archive;
mod initramfs;
mod kernel;
mod machine;
mod qemu;
mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Instant,
};

use anyhow::{Context, bail};
use clap::Args;

use self::{
    archive::Unpacked,
    initramfs::{Archive, Root},
    kernel::{Kernel, Kernels},
    machine::Machine,
    qemu::Accelerator,
    report::{Matrix, Report},
};
use crate::{
    arch::Arch,
    cargo::{self, Profile, Programs},
    needs::Purpose,
    setup,
    step::Step,
};

/// Subjects that say nothing about a kernel, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    ANNOTATION,
    ("authorization", "what policy means"),
    ("bad_input", "what is said of mistakes"),
    ("bugreport", "what is collected"),
    ("ca", "certificates and who may use them"),
    CONFORMANCE,
    ENVOY_VERDICTS,
    ("exchanges", "what HTTP messages mean, and servers in languages that are not there"),
    ("grpc", "what HTTP/2 frames mean"),
    ("http", "what HTTP messages mean"),
    ("identity", "certificates and who may use them"),
    KUBE_SOURCE,
    ("load", "sizes and rates for a real processor; `dials` has those that concern the kernel"),
    ("observing", "status, metrics and health"),
    ("otlp", "the encoding of spans"),
    ("peer_authentication", "what policy means"),
    ROTEL,
    ("routes", "numbers of routes for a real processor; `evasion` has what a kernel makes of them"),
    ("service_addresses", "what an address means"),
    ("service_endpoints", "where a Service leads"),
    ("server_first", "how protocols are told apart"),
    ("spans", "what is recorded"),
    ("strangers", "what the servers and the log take; thousands of sockets at once"),
    ("tunnel", "HBONE between agents"),
];
// These cannot run in a virtual machine, whoever asks for them.
const CONFORMANCE: (&str, &str) =
    ("conformance", "what HTTP messages and frames mean, by programs that are not there");
const ANNOTATION: (&str, &str) =
    ("annotation", "what an API server is told; it takes the machine's root certificates");
const ENVOY_VERDICTS: (&str, &str) =
    ("envoy_verdicts", "what policy means to an Envoy, which comes as a Python package");
const KUBE_SOURCE: (&str, &str) =
    ("kube_source", "what an API server says; it takes the machine's root certificates");
const ROTEL: (&str, &str) = ("rotel", "a receiver that comes as a Python package");
const UNABLE: &[(&str, &str)] = &[ANNOTATION, CONFORMANCE, ENVOY_VERDICTS, KUBE_SOURCE, ROTEL];
/// Single tests that run elsewhere, of subjects that do not, and why.
const TESTS_ELSEWHERE: &[(&str, &str)] = &[
    (
        "addresses_and_interfaces_beyond_what_capture_knows_are_refused",
        "numbers of addresses for a real processor; what the kernel makes of one is in `evasion`",
    ),
    (
        "an_upgrade_on_both_nodes_fails_no_connect_and_no_request",
        "a load for a real processor; beside it each kernel sees agents take over from one another",
    ),
    (
        "the_api_server_tells_of_policies_and_of_kinds_that_only_the_cni_understands",
        "what an API server says; it takes the machine's root certificates",
    ),
];
/// Between these lines of `docs/kernels.md` a run writes its table.
const BEGIN: &str = "<!-- begin: cargo xtask vm --record -->\n";
const END: &str = "<!-- end -->\n";
const DOCUMENT: &str = "docs/kernels.md";

/// Run the end-to-end tests on other kernels, each in a virtual machine (QEMU)
#[derive(Args, Clone, Debug)]
pub(crate) struct Vm {
    /// 5.10, 6.1, 6.12, latest, several with commas, or all: the newest of each in Debian
    #[arg(long, default_value = "all", value_name = "KERNELS")]
    kernel: Kernels,

    /// Only tests whose name contains this, those that do not concern the kernel included, except
    /// `annotation`, `conformance`, `envoy_verdicts`, `kube_source` and `rotel`, which cannot run there
    #[arg(long, value_name = "FILTER")]
    test: Option<String>,

    /// Drop into a shell on the oldest kernel chosen: two nodes, their pods and agents are ready there
    #[arg(long, conflicts_with_all = ["test", "record", "broken_steer"])]
    shell: bool,

    /// Write the table into docs/kernels.md
    #[arg(long, conflicts_with = "test")]
    record: bool,

    /// Build the agent with a steer program that hands nothing over: every kernel must fail
    #[arg(long)]
    broken_steer: bool,
}

impl Vm {
    /// Every kernel, every test that concerns it.
    pub(crate) fn matrix() -> Self {
        let kernel = Kernels(Kernel::ALL.to_vec());
        Self { kernel, test: None, shell: false, record: false, broken_steer: false }
    }

    pub(crate) fn run(&self) -> anyhow::Result<()> {
        setup::run(&[Purpose::Build, Purpose::Lab, Purpose::Test, Purpose::Vm])?;
        let accelerator = Accelerator::find();
        let programs = cargo::programs_with(Arch::HERE, Profile::Release, self.broken_steer)?;
        let folder = Folder::make()?;
        let path = folder.0.join("root.cpio");
        let Kernels(kernels) = &self.kernel;
        if self.shell {
            let kernel = archive::fetch(kernels[0])?;
            let archive = pack_programs(&programs, &cargo::demo_program()?, "/sluice/demo", path)?;
            let root = archive.with_modules(&kernel)?;
            return Machine { accelerator, kernel: &kernel, root: &root }.shell();
        }
        let tests = cargo::test_program(Arch::HERE)?;
        let archive = pack_programs(&programs, &tests, "/sluice/tests", path)?;

        let unpacked = |&kernel| Ok((kernel, archive::fetch(kernel)?));
        let kernels = kernels.iter().map(unpacked).collect::<anyhow::Result<Vec<_>>>()?;
        let began = Instant::now();
        let reports = self.run_on_all(&kernels, accelerator, &archive)?;
        let matrix = Matrix(&reports);
        println!("\n{}\n\ntogether: {} s\n", matrix.table(), began.elapsed().as_secs());
        let red: Vec<_> = reports.iter().filter(|(_, report)| !report.passed()).collect();
        if !red.is_empty() {
            let names: Vec<_> = red.iter().map(|(kernel, _)| kernel.name()).collect();
            bail!("not every test passed on {}", names.join(", "));
        }
        if self.record { record(&matrix) } else { Ok(()) }
    }

    /// Which tests are left out, by parts of their names with commas between.
    fn elsewhere(&self) -> String {
        let subjects = if self.test.is_some() { UNABLE } else { ELSEWHERE };
        let subjects = subjects.iter().map(|(subject, _)| format!("{subject}::"));
        let tests = TESTS_ELSEWHERE.iter().filter(|_| self.test.is_none());
        subjects.chain(tests.map(|(test, _)| (*test).to_owned())).collect::<Vec<_>>().join(",")
    }

    /// Runs as many machines at once as there are processors for. The newest kernels go first: they
    /// take longest.
    fn run_on_all(
        &self,
        kernels: &[(Kernel, Unpacked)],
        accelerator: Accelerator,
        archive: &Archive,
    ) -> anyhow::Result<Vec<(Kernel, Report)>> {
        let here = thread::available_parallelism().context("could not count processors")?;
        let at_once = (here.get() / accelerator.processors()).clamp(1, kernels.len());
        let waiting = Mutex::new(kernels.iter());
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next_back();
        let (sender, reports) = mpsc::channel();
        let one_after_the_other = || {
            while let Some((kernel, unpacked)) = next() {
                let report = self.run_on(*kernel, unpacked, accelerator, archive);
                sender.send((*kernel, report)).expect("the receiver is below");
            }
        };
        thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(one_after_the_other);
            }
        });
        drop(sender);
        let mut reports: Vec<_> = reports.into_iter().collect();
        reports.sort_by_key(|(kernel, _)| *kernel);
        Ok(reports)
    }

    fn run_on(
        &self,
        kernel: Kernel,
        unpacked: &Unpacked,
        accelerator: Accelerator,
        archive: &Archive,
    ) -> Report {
        println!("[{kernel}] {}", unpacked.release);
        let began = Instant::now();
        let mut report = Report::default();
        let ran = archive.with_modules(unpacked).and_then(|root| {
            let machine = Machine { accelerator, kernel: unpacked, root: &root };
            let ran = self.run_in(&machine, kernel, &mut report);
            // It is large.
            let _ = fs::remove_file(&root);
            ran
        });
        // The other kernels still have something to say.
        if let Err(error) = ran {
            println!("[{kernel}] error: {error:#}");
        }
        report.seconds = began.elapsed().as_secs();
        report
    }

    fn run_in(
        &self,
        machine: &Machine<'_>,
        kernel: Kernel,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let console = cargo::target_dir()?.join(format!("vm-console-{kernel}.log"));
        let elsewhere = self.elsewhere();
        let mut arguments = vec!["test", "--cgroups", kernel.cgroups(), "--skip", &elsewhere];
        arguments.extend(self.test.as_deref());
        let ran = machine.run(&arguments, &console, |line| {
            if report.line(line) {
                println!("[{kernel}] {line}");
            }
        });
        if report.verdict.is_none() {
            let said = fs::read_to_string(&console).unwrap_or_default();
            let last: Vec<_> = said.lines().rev().take(80).collect();
            for line in last.iter().rev() {
                println!("[{kernel} console] {line}");
            }
        }
        ran
    }
}

/// Lays the root file system and packs it: the agent, the sample application, and `what` the init
/// program is to run, at the place where it looks for that.
fn pack_programs(
    programs: &Programs,
    what: &Path,
    place: &str,
    archive: PathBuf,
) -> anyhow::Result<Archive> {
    let step = Step::start("Packing the virtual machines' programs");
    let root = Root::lay(archive.with_extension("root"))?;
    root.program(&programs.agent, "/sluice/sluice")?;
    root.program(&programs.sample, "/sluice/sluice-sample")?;
    let helpers = cargo::target_dir()?.join("debug");
    root.program(&helpers.join("vm-init"), "/sluice/init")?;
    root.program(&helpers.join("pod-sockets"), "/sluice/pod-sockets")?;
    root.program(what, place)?;
    let archive = root.pack(archive)?;
    step.done();
    Ok(archive)
}

/// Where archives are made; gone afterwards, for they are large.
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Self> {
        let path = cargo::target_dir()?.join(format!("vm-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("could not make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn record(matrix: &Matrix<'_>) -> anyhow::Result<()> {
    let path = cargo::root().join(DOCUMENT);
    let text =
        fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    let between = text
        .split_once(BEGIN)
        .and_then(|(before, rest)| rest.split_once(END).map(|(_, after)| (before, after)));
    let (before, after) =
        between.with_context(|| format!("{DOCUMENT} lacks the lines that enclose the table"))?;
    let text = format!("{before}{BEGIN}\n{}\n{END}{after}", matrix.markdown());
    fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
    println!("{DOCUMENT} holds the table of this run");
    Ok(())
}
