//! The agent under test, running on a node.

use std::{
    ffi::OsStr,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use crate::{
    PATIENCE,
    ask::{Answer, ask, ask_and_wait},
    cgroup_layout::CgroupLayout,
    mesh::MeshConfig,
    node::Node,
    otlp::{OtlpReceiver, Protocol},
    process::Process,
    programs::agent_program,
};

/// How soon a question is asked again while the agent starts: there is nothing to wait on yet.
const AGAIN: Duration = Duration::from_millis(20);

/// `sluice agent` on a node, with every trace sampled. Killed when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
}

/// What differs from the defaults.
#[derive(Debug, Default)]
pub struct AgentOptions<'a> {
    /// Another program than the one under test, such as a former version's.
    pub program: Option<PathBuf>,
    /// Where spans go, and how.
    pub otlp: Option<(&'a OtlpReceiver, Protocol)>,
    /// The API server to watch, in place of reading the lab's files.
    pub kubeconfig: Option<PathBuf>,
    /// More flags, e.g. `--same-node=tunnel`; or others in place of the usual ones.
    pub flags: Vec<String>,
    /// More of the environment.
    pub environment: Vec<(String, String)>,
}

impl Agent {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time, with what it printed.
    pub async fn start(
        node: &Node,
        mesh: &MeshConfig,
        options: AgentOptions<'_>,
    ) -> anyhow::Result<Self> {
        let agent = Self::launch(node, mesh, options)?;
        agent.ready(node).await?;
        Ok(agent)
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(
        node: &Node,
        mesh: &MeshConfig,
        options: AgentOptions<'_>,
    ) -> anyhow::Result<Self> {
        let command = Self::command(node, mesh, options, Some(node.cgroup()))?;
        Ok(Self { process: node.spawn("agent", command)? })
    }

    /// Starts it where cgroups are mounted as `layout` says, to capture the whole machine's, and
    /// waits until it is ready. It leaves processes alone whose namespace it has not enrolled.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn start_on(
        layout: CgroupLayout,
        node: &Node,
        mesh: &MeshConfig,
        options: AgentOptions<'_>,
    ) -> anyhow::Result<Self> {
        let command = layout.around(node, Self::command(node, mesh, options, None)?);
        let agent = Self { process: node.spawn("agent", command)? };
        agent.ready(node).await?;
        Ok(agent)
    }

    /// Starts it as a container runtime does, with a `/proc/sys` that cannot be written to, and
    /// waits until it is ready.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn start_contained(
        node: &Node,
        mesh: &MeshConfig,
        options: AgentOptions<'_>,
    ) -> anyhow::Result<Self> {
        let command = Self::command(node, mesh, options, Some(node.cgroup()))?;
        let agent = Self { process: node.spawn("agent", contained(command))? };
        agent.ready(node).await?;
        Ok(agent)
    }

    fn command(
        node: &Node,
        mesh: &MeshConfig,
        options: AgentOptions<'_>,
        cgroup: Option<&Path>,
    ) -> anyhow::Result<Command> {
        let ca: PathBuf = node.lab_directory().join("ca");
        let mut command = Command::new(options.program.map_or_else(agent_program, Ok)?);
        command.arg("agent");
        let state = node.lab_directory().join(format!("{}-state", node.name()));
        let source = match options.kubeconfig {
            Some(kubeconfig) => {
                command.env("KUBECONFIG", kubeconfig);
                ("--state-dir", state.as_os_str())
            }
            None => ("--config-dir", mesh.directory().as_os_str()),
        };
        let usual: [(&str, &OsStr); 5] = [
            source,
            ("--node-name", node.name().as_ref()),
            ("--bpffs", node.bpffs().as_os_str()),
            ("--ca-dir", ca.as_os_str()),
            ("--trace-sampling", "1".as_ref()),
        ];
        let cgroup = cgroup.map(|cgroup| ("--cgroup", cgroup.as_os_str()));
        for (flag, value) in usual.into_iter().chain(cgroup) {
            if !options.flags.iter().any(|other| other == flag) {
                command.arg(flag).arg(value);
            }
        }
        if let Some((receiver, protocol)) = options.otlp {
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint(protocol));
            command.env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.name());
            // The receiver takes none, and the connection for them, made a minute after the start,
            // would pass for one that is left of what a test did.
            command.env("OTEL_METRICS_EXPORTER", "none");
        }
        command.args(options.flags).envs(options.environment);
        Ok(command)
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends or does not say so in time, with what it printed.
    pub async fn ready(&self, node: &Node) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let why = match ask(node.netns(), local(15021), "/healthz/ready", PATIENCE).await {
                Ok(Answer { status: 200, .. }) => return Ok(()),
                Ok(answer) => answer.body.trim().to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if self.process.output().has_ended() || Instant::now() > deadline {
                let last = self.process.output().tail(40);
                bail!("the agent of {} is not ready: {why}\n{last}", node.name());
            }
            sleep(AGAIN).await;
        }
    }

    /// Its process: output, signals.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its process, to wait for.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Kills it as a crash would; what it pinned stays.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Errors
    /// When it does not end within `at_most`, or not in order.
    pub async fn terminate(&mut self, at_most: Duration) -> anyhow::Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.exit(at_most).await?;
        if !status.success() {
            bail!("the agent ended with {status}:\n{}", self.process.output().tail(20));
        }
        Ok(())
    }

    /// What `sluice status` asks for, of whichever agent runs on the node. Asked without that
    /// program, which takes long to start on an emulated processor.
    ///
    /// # Errors
    /// When no agent answers.
    pub fn status(node: &Node) -> anyhow::Result<serde_json::Value> {
        let answer = ask_and_wait(node.netns(), local(15000), "/status", PATIENCE)?;
        ensure!(answer.status == 200, "the agent of {} answers {answer:?}", node.name());
        serde_json::from_str(&answer.body).context("the status is not JSON")
    }

    /// A counter of the status; 0 before it first counts.
    ///
    /// # Errors
    /// When no agent answers.
    pub fn counter(node: &Node, name: &str) -> anyhow::Result<u64> {
        Ok(Self::status(node)?["counters"][name].as_u64().unwrap_or(0))
    }

    /// What a scraper sees.
    ///
    /// # Errors
    /// When no agent answers.
    pub async fn metrics(node: &Node) -> anyhow::Result<String> {
        Ok(ask(node.netns(), local(15020), "/stats/prometheus", PATIENCE).await?.body)
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// `command`, with mounts of its own: nothing changes for anybody else.
fn contained(command: Command) -> Command {
    const LAY: &str = "set -e\nmount --bind /proc/sys /proc/sys\n\
                       mount -o remount,bind,ro /proc/sys\nexec \"$@\"";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", LAY, "sh"]);
    unshare.arg(command.get_program()).args(command.get_args());
    unshare.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    unshare
}
