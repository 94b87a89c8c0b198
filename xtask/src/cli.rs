//! The commands, and what each runs in which order.

use anyhow::bail;
use clap::{Args, Parser, Subcommand};

use crate::{
    arch::Arch,
    cargo::{self, Profile},
    chart::Chart,
    fuzz::Fuzz,
    go, image,
    kube::{self, Kube},
    lint,
    needs::Purpose,
    setup,
    vm::Vm,
};

/// Every chore of Sluice. Whatever a command needs and the machine lacks, it installs first.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Setup(Setup),
    Build(Build),
    /// Check formatting and run clippy with warnings denied, the eBPF programs included
    Lint,
    Test(Test),
    Vm(Vm),
    Demo(Demo),
    Bench(Bench),
    Fuzz(Fuzz),
    /// Make the container images, as OCI archives, each with its bill of materials
    Image,
    Kube(Kube),
    Chart(Chart),
}

/// Install what building and testing need (Debian 12, root); quick when all is there
#[derive(Args, Debug)]
struct Setup {
    /// Only say what is there and what is missing
    #[arg(long)]
    check: bool,
}

/// Build every crate, the eBPF programs included
#[derive(Args, Debug)]
struct Build {
    /// With optimisations
    #[arg(long)]
    release: bool,

    /// The machines to build for. For others than this one: the agent, the sample application
    /// and the end-to-end tests
    #[arg(long, value_enum, default_value_t = Arch::HERE)]
    arch: Arch,
}

/// Run every test: unit tests, end-to-end tests on namespaces (root), the kernel matrix, and those
/// in a Kubernetes cluster
#[derive(Args, Debug)]
struct Test {
    /// The unit tests, which need no root
    #[arg(long)]
    unit: bool,

    /// The end-to-end tests, on this machine's kernel, the conformance suites of HTTP/2, gRPC and
    /// Connect among them
    #[arg(long)]
    e2e: bool,

    /// Those of them that concern the kernel, on four others; `cargo xtask vm` has more options
    #[arg(long, conflicts_with = "filter")]
    vm: bool,

    /// Those that need a Kubernetes cluster; `cargo xtask kube` has more options
    #[arg(long, conflicts_with = "filter")]
    kube: bool,

    /// Drive an agent built without optimisations: quicker to build, slower to run
    #[arg(long)]
    debug: bool,

    /// Only tests whose name contains this, on this machine's kernel alone
    filter: Option<String>,
}

/// Show the mesh at work: two nodes and their pods as namespaces, an agent on each (root)
#[derive(Args, Debug)]
struct Demo {
    /// Leave everything running until Ctrl-C, and print commands to try
    #[arg(long)]
    keep: bool,

    /// Run an agent built without optimisations: quicker to build, slower to run
    #[arg(long)]
    debug: bool,
}

/// Measure what the mesh costs, beside no mesh and beside sidecars, in one interleaved run (root)
#[derive(Args, Debug)]
struct Bench {
    /// For the benchmark itself; `cargo xtask bench -- --help` lists them
    #[arg(last = true)]
    options: Vec<String>,
}

impl Cli {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Setup(Setup { check: true }) => setup::check(),
            Command::Setup(Setup { check: false }) => setup::run(Purpose::ALL),
            Command::Build(build) => build.run(),
            Command::Lint => {
                setup::run(&[Purpose::Build, Purpose::Lint])?;
                lint::run()
            }
            Command::Test(test) => test.run(),
            Command::Vm(vm) => vm.run(),
            Command::Demo(demo) => demo.run(),
            Command::Bench(Bench { options }) => {
                setup::run(&[Purpose::Build, Purpose::Lab])?;
                if let Err(error) = setup::run(&[Purpose::Envoy]) {
                    eprintln!("Measuring without Envoy: {error:#}");
                }
                cargo::programs(Profile::Release)?.bench(&options)
            }
            Command::Fuzz(fuzz) => fuzz.run(),
            Command::Image => {
                setup::run(&[Purpose::Build])?;
                image::make().map(drop)
            }
            Command::Kube(kube) => kube.run(),
            Command::Chart(chart) => chart.run(),
        }
    }
}

impl Build {
    fn run(self) -> anyhow::Result<()> {
        let profile = Profile::optimised(self.release);
        if self.arch == Arch::HERE {
            setup::run(&[Purpose::Build])?;
            return cargo::build_all(profile);
        }
        setup::run(&[Purpose::Build, Purpose::Cross])?;
        let programs = cargo::programs_with(self.arch, profile, false)?;
        let tests = cargo::test_program(self.arch)?;
        for program in [programs.agent, programs.sample, tests] {
            println!("{}", program.display());
        }
        Ok(())
    }
}

impl Test {
    fn run(self) -> anyhow::Result<()> {
        let filter = self.filter.as_deref();
        // Without a choice, all kinds.
        let all = !(self.unit || self.e2e || self.vm || self.kube);
        // All run whatever the first says: one run shows everything that is red.
        let mut red = Vec::new();
        if all || self.unit {
            setup::run(&[Purpose::Build])?;
            red.extend(cargo::unit_tests(filter).err());
        }
        if all || self.e2e {
            setup::run(&[Purpose::Build, Purpose::Lab, Purpose::Test, Purpose::Envoy])?;
            let programs = cargo::programs(Profile::optimised(!self.debug))?;
            let conformance = || {
                setup::run(&[Purpose::Go])?;
                go::conformance()
            };
            red.extend(programs.end_to_end_tests(conformance, filter).err());
        }
        if self.vm || all && filter.is_none() {
            red.extend(Vm::matrix().run().err());
        }
        if self.kube || all && filter.is_none() {
            red.extend(kube::test(false, None).err());
        }
        if !red.is_empty() {
            let red: Vec<_> = red.iter().map(|error| format!("{error:#}")).collect();
            bail!("{}", red.join("\n       "));
        }
        Ok(())
    }
}

impl Demo {
    fn run(self) -> anyhow::Result<()> {
        setup::run(&[Purpose::Build, Purpose::Lab])?;
        cargo::programs(Profile::optimised(!self.debug))?.demo(self.keep)
    }
}
