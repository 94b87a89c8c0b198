//! Who carries what pods send: nobody, agents, or Envoys.

use std::{path::Path, time::Duration};

use sluice_tests::{Agent, AgentOptions, MeshConfig, Node, Pod, Process};

use crate::{column::Carriers, cpu, envoy, sink::Sink};

/// The processes between client and server, the client's first.
pub(crate) enum Carrier {
    Nobody,
    Agents { agents: [Agent; 2], nodes: Box<[Node; 2]> },
    Envoys([Process; 2]),
}

/// What they are put into.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) mesh: &'a MeshConfig,
    pub(crate) client: &'a Pod,
    pub(crate) server: &'a Pod,
    pub(crate) sink: &'a Sink,
}

impl Carrier {
    pub(crate) async fn start(
        carriers: Carriers,
        program: Option<&Path>,
        place: Place<'_>,
        nodes: [Node; 2],
    ) -> anyhow::Result<Self> {
        match carriers {
            Carriers::Nobody => Ok(Self::Nobody),
            Carriers::Envoys => Ok(Self::Envoys(envoy::start(place).await?)),
            Carriers::Agents { sampling } => {
                let options = || AgentOptions {
                    program: program.map(Path::to_owned),
                    flags: ["--trace-sampling", sampling, "--log", "warn"].map(String::from).into(),
                    environment: exporting(place.sink),
                    ..AgentOptions::default()
                };
                let [a, b] = &nodes;
                let first = Agent::start(a, place.mesh, options());
                let second = Agent::start(b, place.mesh, options());
                let agents = tokio::try_join!(first, second)?.into();
                Ok(Self::Agents { agents, nodes: Box::new(nodes) })
            }
        }
    }

    fn processes(&self) -> Vec<&Process> {
        match self {
            Self::Nobody => Vec::new(),
            Self::Agents { agents, .. } => agents.iter().map(Agent::process).collect(),
            Self::Envoys(envoys) => envoys.iter().collect(),
        }
    }

    /// Their process ids.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.processes().into_iter().map(Process::id).collect()
    }

    /// CPU time that they have used together.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        cpu::used(self.ids())
    }

    /// Bytes that each has in memory.
    pub(crate) fn resident(&self) -> anyhow::Result<Vec<u64>> {
        self.processes().into_iter().map(Process::resident).collect()
    }

    /// Spans that agents have dropped: an export that is left out costs nothing, and should not pass
    /// for a cheap one.
    pub(crate) async fn spans_dropped(&self) -> anyhow::Result<u64> {
        let Self::Agents { nodes, .. } = self else { return Ok(0) };
        let mut dropped = 0.0;
        for node in nodes.iter() {
            let metrics = Agent::metrics(node).await?;
            let lines = metrics.lines();
            let counts = lines.filter(|line| line.starts_with("sluice_telemetry_spans_dropped"));
            let counts = counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
            dropped += counts.sum::<f64>();
        }
        Ok(dropped as u64)
    }
}

/// What tells an agent where its spans go.
fn exporting(sink: &Sink) -> Vec<(String, String)> {
    let endpoint = format!("http://{}", sink.address());
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_METRICS_EXPORTER", "none"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}
