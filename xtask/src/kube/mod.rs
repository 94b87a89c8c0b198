//! `kube`: a real Kubernetes cluster of two nodes on this machine, and the tests in it.
//!
//! Enters: a command. Leaves: programs in the cache (`../go.rs`), images in the target directory,
//! and a cluster, which is the work of `tests/kube`.

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::{cargo, go, image, needs::Purpose, setup, step::Step};

/// A Kubernetes cluster of two nodes on this machine (root)
#[derive(Args, Debug)]
pub(crate) struct Kube {
    #[command(subcommand)]
    command: Do,
}

#[derive(Debug, Subcommand)]
enum Do {
    /// Bring it up, with the mesh and the sample application of this workspace in it
    Up,
    /// A prompt beside the API server, with kubectl and helm, or on a node
    Shell {
        /// node-1 or node-2
        node: Option<String>,
    },
    /// Run the tests that need a cluster, in the one that is up or in one of their own
    Test {
        /// Leave the cluster up
        #[arg(long)]
        keep: bool,

        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Take it down, or what is left of one
    Down,
}

impl Kube {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Do::Up => {
                let bed = prepare()?;
                if is_up(&bed)? {
                    bail!("a cluster is up already (hint: cargo xtask kube down)");
                }
                up(&bed, &Materials::make()?)?;
                install(&bed, true)?;
                println!(
                    "Two nodes are ready, with the mesh and the sample application in it.\n\
                     Go there: cargo xtask kube shell"
                );
                Ok(())
            }
            Do::Shell { node } => {
                let mut shell = Command::new(cargo::kube_bed()?);
                shell.arg("shell").args(node);
                Err(shell.exec()).with_context(|| format!("could not run {shell:?}"))
            }
            Do::Test { keep, filter } => test(keep, filter.as_deref()),
            Do::Down => down(&cargo::kube_bed()?),
        }
    }
}

/// Runs the tests that need a cluster.
pub(crate) fn test(keep: bool, filter: Option<&str>) -> anyhow::Result<()> {
    let bed = prepare()?;
    // One that is up is someone's: it stays as it is.
    let ours = !is_up(&bed)?;
    let mut red = Vec::new();
    if ours {
        let materials = Materials::make()?;
        let environment = [
            ("SLUICE_KUBE_PROGRAMS", materials.programs.as_os_str()),
            ("SLUICE_KUBE_IMAGES", materials.images.as_os_str()),
        ];
        red.extend(cargo::kube_test("death", filter, &environment).err());
        up(&bed, &materials)?;
        install(&bed, false)?;
    }
    // The last ones disturb whoever else is there.
    for program in ["cluster", "mesh", "annotation", "kinds", "policies", "taint", "restart"] {
        red.extend(cargo::kube_test(program, filter, &[]).err());
    }
    red.extend(upgrade(filter).err());
    red.extend(cargo::kube_test("outage", filter, &[]).err());
    if ours && !keep {
        down(&bed)?;
    }
    red.into_iter().next().map_or(Ok(()), Err)
}

/// The tests that need a next version's image, which is made for them alone.
fn upgrade(filter: Option<&str>) -> anyhow::Result<()> {
    let program = "upgrade";
    if !cargo::kube_test_has(program, filter)? {
        return Ok(());
    }
    let image = image::make_next()?;
    cargo::kube_test(program, filter, &[("SLUICE_KUBE_NEXT", image.as_os_str())])
}

/// What the machine lacks; then the program that makes and knows clusters.
fn prepare() -> anyhow::Result<PathBuf> {
    setup::run(&[Purpose::Build, Purpose::Lab, Purpose::Kube, Purpose::Go])?;
    cargo::kube_bed()
}

/// What a cluster is made of.
struct Materials {
    /// Folders of its programs, in the form of PATH.
    programs: OsString,
    /// The folder of its images.
    images: PathBuf,
}

impl Materials {
    fn make() -> anyhow::Result<Self> {
        let programs = env::join_paths(go::kube()?).context("a folder has a colon in its name")?;
        Ok(Self { programs, images: image::make()? })
    }
}

fn is_up(bed: &Path) -> anyhow::Result<bool> {
    let mut command = Command::new(bed);
    let status = command.arg("status").stderr(Stdio::null()).status();
    Ok(status.with_context(|| format!("could not run {command:?}"))?.success())
}

fn up(bed: &Path, materials: &Materials) -> anyhow::Result<()> {
    let step = Step::start("Starting the cluster");
    let mut command = Command::new(bed);
    command.args(["up", "--programs"]).arg(&materials.programs);
    step.run(command.arg("--images").arg(&materials.images))?;
    step.done();
    Ok(())
}

/// Installs the mesh from the chart, and the sample application where it is wanted.
fn install(bed: &Path, sample: bool) -> anyhow::Result<()> {
    let step = Step::start("Installing the chart");
    let deploy = cargo::root().join("deploy");
    let mut command = Command::new(bed);
    command.args(["install", "--chart"]).arg(deploy.join("chart"));
    if sample {
        command.arg("--sample").arg(deploy.join("sample/kubernetes.yaml"));
    }
    step.run(&mut command)?;
    step.done();
    Ok(())
}

fn down(bed: &Path) -> anyhow::Result<()> {
    let step = Step::start("Taking the cluster down");
    step.run(Command::new(bed).arg("down"))?;
    step.done();
    Ok(())
}
