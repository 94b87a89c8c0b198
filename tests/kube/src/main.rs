//! `kube-bed`: brings a Kubernetes cluster up on this machine, enters it, takes it down.

#![forbid(unsafe_code)]

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use sluice_kube::{Bed, CONTROL, Group, Mesh, NODES, NodeName, join, run_control, run_node};

/// A Kubernetes cluster of two nodes on this machine (root).
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Do,
}

#[derive(Debug, Subcommand)]
enum Do {
    /// Bring it up
    Up {
        /// Folders of its programs, in the form of PATH
        #[arg(long)]
        programs: OsString,
        /// Folder of image archives for its nodes
        #[arg(long)]
        images: PathBuf,
    },
    /// Install the mesh from its chart, or bring what is installed up to date
    Install {
        /// The chart's folder
        #[arg(long)]
        chart: PathBuf,
        /// Objects of the sample application, which is to run in the mesh too
        #[arg(long)]
        sample: Option<PathBuf>,
    },
    /// A prompt beside the API server, or on a node
    Shell {
        /// node-1 or node-2
        #[arg(value_parser = NodeName::parse)]
        node: Option<NodeName>,
    },
    /// Succeed when it is up
    Status,
    /// Take it down, or what is left of one
    Down,
    /// Be the first process of a bed
    #[command(hide = true)]
    Control {
        #[arg(long)]
        images: PathBuf,
    },
    /// Be the first process of a node
    #[command(hide = true)]
    Node {
        #[arg(value_parser = NodeName::parse)]
        node: NodeName,
        #[arg(long)]
        images: PathBuf,
    },
    /// Run a command in a cgroup of the bed
    #[command(hide = true)]
    Within {
        #[arg(value_parser = group)]
        group: Group,
        program: OsString,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn group(name: &str) -> Result<Group, String> {
    match name.strip_suffix("/kubelet") {
        Some(node) => NodeName::parse(node).map(Group::Kubelet),
        None if name == "control" => Ok(Group::Control),
        None => NodeName::parse(name).map(Group::System),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Do) -> anyhow::Result<()> {
    match command {
        Do::Up { programs, images } => {
            let maker = env::current_exe().context("could not tell where this program is")?;
            Bed::up(&maker, &programs, &images).map(drop)
        }
        Do::Install { chart, sample } => {
            let bed = Bed::find()?.context("there is no bed (hint: cargo xtask kube up)")?;
            let mesh = Mesh::install(&bed, &chart)?;
            sample.map_or(Ok(()), |sample| mesh.run_sample(&sample))
        }
        Do::Shell { node } => shell(node),
        Do::Status => Bed::find()?.map(drop).context("there is no bed"),
        Do::Down => Bed::down(),
        Do::Control { images } => run_control(&images),
        Do::Node { node, images } => run_node(node, &images),
        Do::Within { group, program, arguments } => {
            join(group)?;
            let error = Command::new(&program).args(arguments).exec();
            Err(error).with_context(|| format!("could not run {}", program.display()))
        }
    }
}

fn shell(node: Option<NodeName>) -> anyhow::Result<()> {
    let bed = Bed::find()?.context("there is no bed (hint: cargo xtask kube up)")?;
    let (mut shell, place) = match node {
        Some(node) => (bed.node_command(node, "bash")?, node.to_string()),
        None => {
            println!(
                "kubectl and helm know the cluster; nodes are {}. Agents send spans to {CONTROL}:4317, \
                 where a receiver started here gets them.",
                names()
            );
            (bed.command("bash"), "kube".to_owned())
        }
    };
    // Without the user's own settings, which may replace PATH.
    shell.arg("--norc").env("PS1", format!("[{place}] \\w \\$ "));
    if env::var_os("TERM").is_none() {
        shell.env("TERM", "dumb");
    }
    Err(shell.exec()).context("could not run nsenter (hint: it is in util-linux)")
}

fn names() -> String {
    NODES.map(|node| node.to_string()).join(" and ")
}
