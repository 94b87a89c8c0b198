//! What really crosses a link.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

use crate::{link::CHILD_INTERFACE, node::Node, pod::Pod, process::Process};

/// How long tcpdump may take to start and to stop.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon its answer is looked for again.
const AGAIN: Duration = Duration::from_millis(5);

/// A recording of packets, from the moment `start` returns.
#[derive(Debug)]
pub struct Tcpdump {
    process: Process,
    file: PathBuf,
}

impl Tcpdump {
    /// Records what crosses between `node` and the other nodes, and matches `filter`. `name`
    /// tells recordings of one node apart.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub async fn on_node(node: &Node, name: &str, filter: &str) -> anyhow::Result<Self> {
        let file = node.lab_directory().join(format!("{}-{name}.pcap", node.name()));
        let command = command(CHILD_INTERFACE, &file, filter);
        Self::start(node.spawn(&format!("tcpdump-{name}"), command)?, file).await
    }

    /// Records what crosses an interface of a pod, `lo` or `eth0`, and matches `filter`.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub async fn in_pod(pod: &Pod, interface: &str, filter: &str) -> anyhow::Result<Self> {
        let file = pod.lab_directory().join(format!("{}-{interface}.pcap", pod.name()));
        let command = command(interface, &file, filter);
        Self::start(pod.spawn(&format!("tcpdump-{interface}"), command)?, file).await
    }

    async fn start(process: Process, file: PathBuf) -> anyhow::Result<Self> {
        process.output().line(PATIENCE, |line| line.contains("listening on")).await?;
        Ok(Self { process, file })
    }

    /// Waits until it has read all that crossed so far: asked to end, it ends at once, and leaves
    /// what it had not come to.
    async fn catch_up(&self) -> anyhow::Result<()> {
        let reports = || {
            let lines = self.process.output().lines().into_iter();
            lines.filter(|line| line.starts_with(REPORT) && line.contains(" by filter"))
        };
        loop {
            let before = reports().count();
            self.process.signal(Signal::SIGUSR1)?;
            let report = loop {
                match reports().nth(before) {
                    Some(report) => break report,
                    None => sleep(AGAIN).await,
                }
            };
            if is_complete(&report) {
                return Ok(());
            }
        }
    }

    /// Ends the recording and reads it.
    ///
    /// # Errors
    /// When tcpdump does not end, or the kernel dropped packets: what is not there proves
    /// nothing then.
    pub async fn stop(mut self) -> anyhow::Result<Recording> {
        timeout(PATIENCE, self.catch_up()).await.context("tcpdump falls behind")??;
        self.process.signal(Signal::SIGINT)?;
        self.process.exit(PATIENCE).await?;
        let lines = self.process.output().lines();
        let lines: Vec<_> = lines.iter().filter(|line| !line.starts_with(REPORT)).collect();
        let count = |what: &str| {
            let line = lines.iter().find(|line| line.contains(what))?;
            line.split(' ').next()?.parse::<u64>().ok()
        };
        let packets = count(" captured");
        if count("dropped by kernel") != Some(0) {
            bail!("the recording has gaps: {}", self.process.output().tail(5));
        }
        let bytes = fs::read(&self.file)
            .with_context(|| format!("could not read {}", self.file.display()))?;
        Ok(Recording { bytes, packets: packets.context("tcpdump did not count its packets")? })
    }
}

/// How the lines begin that tcpdump prints on SIGUSR1: `tcpdump: 3 packets captured, 5 packets
/// received by filter, 0 packets dropped by kernel`.
const REPORT: &str = "tcpdump: ";

/// Whether a report counts as many packets captured as the filter let through.
fn is_complete(report: &str) -> bool {
    let counts = report.trim_start_matches(REPORT).split(", ");
    let counts: Vec<_> = counts.filter_map(|count| count.split(' ').next()).collect();
    counts.len() >= 2 && counts[0] == counts[1]
}

fn command(interface: &str, file: &std::path::Path, filter: &str) -> Command {
    let mut tcpdump = Command::new("tcpdump");
    tcpdump.args(["-i", interface, "-n", "--immediate-mode", "-U", "-Z", "root", "-B", "16384"]);
    tcpdump.arg("-w").arg(file).arg(filter);
    tcpdump
}

/// Recorded packets.
#[derive(Clone, Debug)]
pub struct Recording {
    bytes: Vec<u8>,
    /// How many there are.
    pub packets: u64,
}

impl Recording {
    /// Whether any packet carries `text`. A text that two packets share is not found: look for
    /// short ones.
    pub fn contains(&self, text: &str) -> bool {
        self.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }
}
