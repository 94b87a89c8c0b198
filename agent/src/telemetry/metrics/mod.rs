//! Istio's standard metrics, and the agent's own, as Prometheus scrapes them.
//!
//! Every connection and request counts, recorded as a span or not. The data path finds its
//! series by a flow and an outcome, without building a label, and then only adds to atomics.

mod health;
mod histogram;
mod labels;
mod series;
#[cfg(test)]
mod tests;
mod text;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

pub use text::{Kind, Reading, openmetrics};

pub(super) use health::{Dropped, Health};
pub(super) use labels::Outcome;
use labels::{Names, flow_labels, overflow_labels};
use series::{Connections, Requests, Series};

use super::{
    context::TraceId,
    flow::{Failure, Flow, Reporter, SecurityPolicy},
    queue::Queue,
    semconv,
};
use crate::mesh::{Principal, Snapshot};

/// Series held at most. What would be one more is counted in a series of its own kind whose
/// labels are all `overflow`.
const MOST_SERIES: usize = 10_000;

/// Counters and histograms of one agent.
#[derive(Debug)]
pub struct Metrics {
    flows: papaya::HashMap<FlowKey, Arc<FlowSeries>>,
    requests: papaya::HashMap<Arc<str>, Arc<Series<Requests>>>,
    connections: papaya::HashMap<Arc<str>, Arc<Series<Connections>>>,
    most_series: usize,
    overflows: AtomicUsize,
    cluster: String,
    pub(super) health: Arc<Health>,
    queue: Option<Arc<Queue>>,
}

/// What of a flow its labels depend on. Workloads and Services count by address, which
/// [`FlowSeries`] keeps theirs.
#[derive(PartialEq, Eq, Hash, Debug)]
struct FlowKey {
    reporter: Reporter,
    security: SecurityPolicy,
    local: usize,
    remote: Option<usize>,
    service: Option<usize>,
    source_principal: Option<Principal>,
    destination_principal: Option<Principal>,
}

/// The series a flow has reached so far.
#[derive(Debug)]
struct FlowSeries {
    /// Held so that the addresses in the key stay its own.
    _flow: Arc<Flow>,
    labels: String,
    names: Names,
    requests: papaya::HashMap<Outcome, Arc<Series<Requests>>>,
    connections: papaya::HashMap<&'static str, Arc<Series<Connections>>>,
}

impl Metrics {
    pub(super) fn new(cluster: String, health: Arc<Health>, queue: Option<Arc<Queue>>) -> Self {
        Self {
            flows: papaya::HashMap::new(),
            requests: papaya::HashMap::new(),
            connections: papaya::HashMap::new(),
            most_series: MOST_SERIES,
            overflows: AtomicUsize::new(0),
            cluster,
            health,
            queue,
        }
    }

    pub(super) fn request(
        &self,
        flow: &Arc<Flow>,
        outcome: Outcome,
        lasted: Duration,
        request_bytes: u64,
        response_bytes: u64,
        traced: Option<TraceId>,
    ) {
        let flow = self.flow(flow);
        let series = self.series(&self.requests, &flow.requests, outcome, &flow, |labels| {
            outcome.append_to(labels);
        });
        series.values.add(lasted, request_bytes, response_bytes, traced);
    }

    pub(super) fn connection_opened(&self, flow: &Arc<Flow>) {
        self.connection(flow, None).values.opened.fetch_add(1, Relaxed);
    }

    /// `sent` from client to server, `received` from server to client. Istio names them the
    /// other way round: bytes sent are those of the response.
    pub(super) fn connection_closed(
        &self,
        flow: &Arc<Flow>,
        sent: u64,
        received: u64,
        failure: Option<Failure>,
    ) {
        let series = &self.connection(flow, failure).values;
        series.closed.fetch_add(1, Relaxed);
        series.sent_bytes.fetch_add(received, Relaxed);
        series.received_bytes.fetch_add(sent, Relaxed);
    }

    fn connection(&self, flow: &Arc<Flow>, failure: Option<Failure>) -> Arc<Series<Connections>> {
        let flags = labels::flags(failure);
        let flow = self.flow(flow);
        self.series(&self.connections, &flow.connections, flags, &flow, |labels| {
            labels::append_connection(labels, flags);
        })
    }

    fn flow(&self, flow: &Arc<Flow>) -> Arc<FlowSeries> {
        let key = FlowKey {
            reporter: flow.reporter,
            security: flow.security,
            local: Arc::as_ptr(&flow.local).addr(),
            remote: flow.remote.as_ref().map(|workload| Arc::as_ptr(workload).addr()),
            service: flow.service.as_ref().map(|service| Arc::as_ptr(service).addr()),
            source_principal: flow.source_principal.clone(),
            destination_principal: flow.destination_principal.clone(),
        };
        let flows = self.flows.pin();
        if let Some(known) = flows.get(&key) {
            return known.clone();
        }
        let new = Arc::new(FlowSeries {
            _flow: flow.clone(),
            labels: flow_labels(flow, &self.cluster),
            names: Names::of(flow),
            requests: papaya::HashMap::new(),
            connections: papaya::HashMap::new(),
        });
        // More pairs of pods than series would be a strange mesh; it is slow then, not large.
        if flows.len() < self.most_series {
            flows.insert(key, new.clone());
        }
        new
    }

    /// The series of `flow` for `outcome`: as the flow remembers it, or by its labels.
    fn series<O, V>(
        &self,
        all: &papaya::HashMap<Arc<str>, Arc<Series<V>>>,
        remembered: &papaya::HashMap<O, Arc<Series<V>>>,
        outcome: O,
        flow: &FlowSeries,
        append: impl FnOnce(&mut String),
    ) -> Arc<Series<V>>
    where
        O: Eq + std::hash::Hash,
        V: Default,
    {
        let remembered = remembered.pin();
        if let Some(series) = remembered.get(&outcome) {
            return series.clone();
        }
        let mut labels = flow.labels.clone();
        append(&mut labels);
        let all = all.pin();
        let labels: Arc<str> = labels.into();
        if let Some(series) = all.get(&labels) {
            remembered.insert(outcome, series.clone());
            return series.clone();
        }
        if self.requests.len() + self.connections.len() >= self.most_series {
            // Not remembered, so that the flow gets its own once there is room.
            self.overflows.fetch_add(1, Relaxed);
            let labels: Arc<str> = overflow_labels(&labels).into();
            return all.get_or_insert_with(labels, || Series::new(Names::default())).clone();
        }
        let series = all.get_or_insert_with(labels, || Series::new(flow.names.clone()));
        remembered.insert(outcome, series.clone());
        series.clone()
    }

    /// Forgets the series of workloads that `snapshot` no longer has. To be called with every
    /// new snapshot; off the data path, which it does not hold up.
    pub fn retain(&self, snapshot: &Snapshot) {
        let pods: HashSet<_> =
            snapshot.workloads().iter().map(|pod| Arc::as_ptr(pod).addr()).collect();
        let services: HashSet<_> =
            snapshot.services().iter().map(|service| Arc::as_ptr(service).addr()).collect();
        self.flows.pin().retain(|key, _| {
            pods.contains(&key.local)
                && key.remote.is_none_or(|pod| pods.contains(&pod))
                && key.service.is_none_or(|service| services.contains(&service))
        });
        let names: HashSet<_> = snapshot
            .workloads()
            .iter()
            .map(|pod| (&*pod.namespace, pod.owner.name.as_str()))
            .collect();
        self.requests.pin().retain(|_, series| series.names.are_among(&names));
        self.connections.pin().retain(|_, series| series.names.are_among(&names));
    }

    /// Everything as OpenMetrics 1.0 text, `extra` included.
    pub fn render(&self, extra: &[Reading]) -> String {
        let mut out = text::Text::default();
        let requests = self.requests.pin();
        series::render_requests(&mut out, &sorted(requests.iter()));
        let connections = self.connections.pin();
        series::render_connections(&mut out, &sorted(connections.iter()));
        out.readings(&self.own());
        out.readings(extra);
        out.finish()
    }

    /// What telemetry says about itself.
    pub fn own(&self) -> Vec<Reading> {
        let mut own = vec![
            Reading {
                name: "istio_build",
                help: "The version of the component that reports Istio's metrics",
                kind: Kind::Gauge,
                labels: vec![
                    ("component", "sluice".to_owned()),
                    ("tag", semconv::SCOPE_VERSION.to_owned()),
                ],
                value: 1.0,
            },
            Reading {
                name: "sluice_metrics_series",
                help: "Series of Istio's metrics held",
                kind: Kind::Gauge,
                labels: Vec::new(),
                value: (self.requests.len() + self.connections.len()) as f64,
            },
            Reading {
                name: "sluice_metrics_overflows_total",
                help: "Connections and requests counted in the overflow series",
                kind: Kind::Counter,
                labels: Vec::new(),
                value: self.overflows.load(Relaxed) as f64,
            },
        ];
        if let Some(queue) = &self.queue {
            own.extend(self.health.readings(queue.held_bytes()));
        }
        own
    }
}

/// Series in an order that does not change from scrape to scrape.
fn sorted<'a, V>(
    series: impl Iterator<Item = (&'a Arc<str>, &'a Arc<Series<V>>)>,
) -> Vec<(&'a str, &'a V)>
where
    V: 'a,
{
    let mut all: Vec<_> = series.map(|(labels, series)| (&**labels, &series.values)).collect();
    all.sort_unstable_by_key(|(labels, _)| *labels);
    all
}
