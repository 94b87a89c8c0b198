//! Spans and metrics, from a connection or request to the receiver.
//!
//! Enters: a [`Flow`], which says between whom, and the headers and outcome of what passes.
//! Leaves: OTLP messages, Prometheus text, and the trace context of the next hop. It knows the
//! mesh's types, but neither eBPF nor TLS of the mesh, and no sockets but those to the
//! receiver. Nothing here makes traffic wait: a span is encoded once, at its end, into a
//! bounded buffer ([`queue`]), and what does not fit is counted.

mod context;
mod export;
mod flow;
mod grpc;
mod judgement;
mod metrics;
mod options;
#[cfg(test)]
mod oracle;
mod queue;
mod resource;
mod sampling;
mod semconv;
mod span;
#[cfg(test)]
pub(crate) mod testing;
mod wire;

use std::sync::Arc;

use http::HeaderMap;

pub use export::Exporter;
pub use flow::{Failure, Flow, Reporter, SecurityPolicy};
pub use judgement::{Judgement, Ruling};
pub use metrics::{Kind, Metrics, Reading, Rendering, openmetrics};
pub use options::{Protocol, Receiver, TelemetryOptions};
pub use queue::Batching;
pub use span::{Cause, HttpSpan, TcpSpan};

use crate::http::AnyRequest;
use metrics::Health;
use queue::Queue;
use sampling::Sampler;

/// Where connections and requests are reported. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Telemetry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sampler: Sampler,
    /// `None` where spans have nowhere to go: none are made then, and trace context passes
    /// through untouched.
    queue: Option<Arc<Queue>>,
    metrics: Metrics,
}

impl Telemetry {
    /// Starts recording, and exporting where `options` name a receiver. A receiver that cannot
    /// be reached is no error: it may come.
    ///
    /// # Errors
    /// When a certificate that `options` name cannot be used.
    pub fn start(options: TelemetryOptions) -> anyhow::Result<(Self, Exporter)> {
        let health = Arc::new(Health::default());
        let queue = options.traces.as_ref().map(|_| {
            let attributes = options.resource_attributes.clone();
            Arc::new(Queue::new(options.batching.clone(), attributes, health.clone()))
        });
        let exporter = Exporter::start(&options, queue.as_ref(), &health)?;
        let shared = Shared {
            sampler: Sampler::new(options.sampling),
            metrics: Metrics::new(options.cluster, health, queue.clone()),
            queue,
        };
        Ok((Self(Arc::new(shared)), exporter))
    }

    /// A connection began. `parent` are the headers of the CONNECT it came with, if it came
    /// through a tunnel.
    pub fn connection(&self, flow: &Arc<Flow>, parent: Option<&HeaderMap>) -> TcpSpan {
        TcpSpan::open(self, flow, parent)
    }

    /// A request began. Its trace context is read from its head and replaced with the span's own,
    /// so that whoever receives it becomes its child.
    pub fn http_request(&self, flow: &Arc<Flow>, request: &mut impl AnyRequest) -> HttpSpan {
        HttpSpan::open(self, flow, request)
    }

    /// The connection that `http` was upgraded to: a child of it that goes on after its end.
    pub fn upgraded_connection(&self, flow: &Arc<Flow>, http: &HttpSpan) -> TcpSpan {
        http.upgraded(self, flow)
    }

    /// Counters of everything reported, and of telemetry itself.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }
}
