//! What really crosses a link.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::{
    PATIENCE, link::CHILD_INTERFACE, mesh_fixture::eventually, node::Node, pod::Pod,
    process::Process,
};

/// A recording of packets, from the moment `start` returns.
#[derive(Debug)]
pub struct Tcpdump {
    process: Process,
    file: PathBuf,
    /// Packets that the kernel dropped before it had the filter: whatever passed then.
    dropped: u64,
}

/// How tcpdump's count of those ends.
const DROPPED: &str = "packets dropped by kernel";

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
        // It has given the kernel the filter by now, and tells what it has counted.
        process.signal(Signal::SIGUSR1)?;
        let counts = process.output().line(PATIENCE, |line| line.ends_with(DROPPED)).await?;
        let dropped =
            counts.rsplit(", ").next().and_then(|count| count.split(' ').next()?.parse().ok());
        let dropped = dropped.with_context(|| format!("tcpdump counts nothing: {counts}"))?;
        Ok(Self { process, file, dropped })
    }

    /// Ends the recording and reads it.
    ///
    /// # Errors
    /// When tcpdump does not end, or the kernel dropped packets: what is not there proves
    /// nothing then.
    pub async fn stop(mut self) -> anyhow::Result<Recording> {
        self.catch_up().await?;
        self.process.signal(Signal::SIGINT)?;
        self.process.exit(PATIENCE).await?;
        let lines = self.process.output().lines();
        let count = |what: &str| {
            let line = lines.iter().rfind(|line| line.ends_with(what))?;
            line.split(' ').next()?.parse::<u64>().ok()
        };
        let packets = count("packets captured").or_else(|| count("packet captured"));
        if count(DROPPED) != Some(self.dropped) {
            bail!("the recording has gaps: {}", self.process.output().tail(5));
        }
        let bytes = fs::read(&self.file)
            .with_context(|| format!("could not read {}", self.file.display()))?;
        Ok(Recording { bytes, packets: packets.context("tcpdump did not count its packets")? })
    }

    /// Waits until tcpdump has written down what the kernel has for it: asked to end, it ends.
    /// It sleeps only when nothing is left; what it and the kernel have counted need never agree,
    /// since the kernel counts packets from before tcpdump gave it the filter.
    async fn catch_up(&self) -> anyhow::Result<()> {
        let what = "tcpdump has caught up";
        let sleeps = eventually(what, || async { Ok(self.process.sleeps()?.then_some(())) });
        sleeps.await.with_context(|| format!("tcpdump: {}", self.process.output().tail(3)))
    }
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
