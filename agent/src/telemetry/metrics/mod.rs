//! Istio's standard metrics, and the agent's own, as Prometheus scrapes them.
//!
//! Every connection and request counts, recorded as a span or not. The data path finds its
//! series by a flow and an outcome, without building a label, and then only adds to atomics.

mod flows;
mod health;
mod histogram;
mod labels;
mod parties;
mod rendering;
mod series;
#[cfg(test)]
mod tests;
mod text;

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

pub use rendering::Rendering;
pub use text::{Kind, Reading, openmetrics};

use flows::Flows;
pub(super) use health::{Dropped, Health};
pub(super) use labels::Outcome;
use labels::{Close, Ending};
use parties::{Labels, Parties};
use series::{Connections, Requests, Series, Sought};

use super::{
    context::TraceId,
    flow::{Failure, Flow},
    queue::Queue,
    semconv,
};
use crate::mesh::Snapshot;

/// Series held at most. What would be one more is counted in a series of its own kind whose
/// labels are all `overflow`.
const MOST_SERIES: usize = 10_000;
/// How long the series of a workload that is gone are kept: a Job that ends between two scrapes
/// is seen by the next.
const KEPT: Duration = Duration::from_secs(300);

/// Counters and histograms of one agent.
#[derive(Debug)]
pub struct Metrics {
    flows: Flows,
    parties: Parties,
    requests: All<Outcome, Requests>,
    connections: All<Close, Connections>,
    most_series: usize,
    held: AtomicUsize,
    overflows: AtomicUsize,
    cluster: String,
    started: Instant,
    pub(super) health: Arc<Health>,
    queue: Option<Arc<Queue>>,
}

/// Every series of a kind.
#[derive(Debug)]
struct All<O: Ending, V> {
    series: papaya::HashMap<Arc<Series<O, V>>, ()>,
    /// Takes what is over the limits.
    overflow: Arc<Series<O, V>>,
}

impl<O: Ending, V: Default> All<O, V> {
    fn new(parties: &Parties) -> Self {
        let labels = Labels::overflow(parties);
        let overflow = Series { labels, outcome: O::OVERFLOW, values: V::default() };
        Self { series: papaya::HashMap::new(), overflow: Arc::new(overflow) }
    }
}

/// Where the bytes of a connection are counted as they are moved: how it will end, and with it what
/// `response_flags` says of it, is not known yet.
#[derive(Debug)]
pub(super) struct OpenConnection(Arc<Series<Close, Connections>>);

impl OpenConnection {
    /// `sent` from client to server, `received` from server to client. Istio names them the
    /// other way round: bytes sent are those of the response.
    pub(super) fn moved(&self, sent: u64, received: u64) {
        let Connections { sent_bytes, received_bytes, .. } = &self.0.values;
        for (counter, bytes) in [(sent_bytes, received), (received_bytes, sent)] {
            if bytes > 0 {
                counter.fetch_add(bytes, Relaxed);
            }
        }
    }
}

impl Metrics {
    pub(super) fn new(cluster: String, health: Arc<Health>, queue: Option<Arc<Queue>>) -> Self {
        let parties = Parties::default();
        Self {
            flows: Flows::default(),
            requests: All::new(&parties),
            connections: All::new(&parties),
            parties,
            most_series: MOST_SERIES,
            held: AtomicUsize::new(0),
            overflows: AtomicUsize::new(0),
            cluster,
            started: Instant::now(),
            health,
            queue,
        }
    }

    pub(super) fn request(
        &self,
        flow: &Flow,
        outcome: Outcome,
        lasted: Duration,
        request_bytes: u64,
        response_bytes: u64,
        traced: Option<TraceId>,
    ) {
        self.count(&self.requests, flow, outcome, |series| {
            series.values.add(lasted, request_bytes, response_bytes, traced);
        });
    }

    /// Returns where the bytes are counted while the connection is open.
    pub(super) fn connection_opened(&self, flow: &Flow) -> OpenConnection {
        let opened = Cell::new(None);
        self.count(&self.connections, flow, Close::of(None), |series| {
            series.values.opened.fetch_add(1, Relaxed);
            opened.set(Some(series.clone()));
        });
        OpenConnection(opened.take().unwrap_or_else(|| self.connections.overflow.clone()))
    }

    pub(super) fn connection_closed(&self, flow: &Flow, failure: Option<Failure>) {
        self.count(&self.connections, flow, Close::of(failure), |series| {
            series.values.closed.fetch_add(1, Relaxed);
        });
    }

    /// Adds to the series of `flow` for `outcome`.
    fn count<O: Ending, V: Default>(
        &self,
        all: &All<O, V>,
        flow: &Flow,
        outcome: O,
        add: impl Fn(&Arc<Series<O, V>>),
    ) {
        let make = || Labels::of(flow, &self.parties, &self.cluster);
        self.flows.with_labels(flow, self.most_series, make, |labels| {
            let series = all.series.pin();
            if let Some((found, ())) = series.get_key_value(&Sought { labels, outcome: &outcome }) {
                return add(found);
            }
            if !self.admit(labels) {
                self.overflows.fetch_add(1, Relaxed);
                return add(&all.overflow);
            }
            let labels = labels.clone();
            let new = Arc::new(Series { labels, outcome, values: V::default() });
            // Before it can be found, so that it cannot be gone before this has counted.
            add(&new);
            if series.try_insert(new.clone(), ()).is_err() {
                // Another thread was quicker.
                self.release(&new.labels);
                if let Some((found, ())) = series.get_key_value(&new) {
                    add(found);
                }
            }
        });
    }

    /// Takes a place for one more series, if the workload it is counted for may have it: no
    /// workload holds more than is still free, so that whatever one of them does, others find
    /// room.
    fn admit(&self, labels: &Labels) -> bool {
        let (local, held) = (labels.local(), self.held.fetch_add(1, Relaxed));
        let own = local.series.fetch_add(1, Relaxed);
        let admitted = own < self.most_series.saturating_sub(held);
        if !admitted {
            self.release(labels);
        }
        admitted
    }

    fn release(&self, labels: &Labels) {
        self.held.fetch_sub(1, Relaxed);
        labels.local().series.fetch_sub(1, Relaxed);
    }

    /// Notes which workloads `snapshot` no longer has; their series are kept a while longer. To
    /// be called soon after a new snapshot; off the data path, which it does not hold up.
    pub fn retain(&self, snapshot: &Snapshot) {
        self.flows.retain(snapshot);
        let is_there = |(namespace, owner): (&str, &str)| snapshot.has_pods_of(namespace, owner);
        let now = self.seconds(Instant::now());
        let note = |labels: &Labels| {
            for side in labels.sides() {
                if side.workload().is_none_or(is_there) {
                    side.left.store(0, Relaxed);
                } else {
                    let _ = side.left.compare_exchange(0, now, Relaxed, Relaxed);
                }
            }
        };
        self.requests.series.pin().keys().for_each(|series| note(&series.labels));
        self.connections.series.pin().keys().for_each(|series| note(&series.labels));
        self.expire(Instant::now());
    }

    /// Forgets the series of workloads that left long enough before `now`.
    fn expire(&self, now: Instant) {
        let now = self.seconds(now);
        self.forget(&self.requests, now);
        self.forget(&self.connections, now);
        self.parties.retain();
    }

    fn forget<O: Ending, V>(&self, all: &All<O, V>, now: u32) {
        let series = all.series.pin();
        let over = |side: &parties::Party| match side.left.load(Relaxed) {
            0 => false,
            left => now.saturating_sub(left) >= KEPT.as_secs() as u32,
        };
        for one in series.keys().filter(|one| one.labels.sides().into_iter().any(over)) {
            // Several may be at it, and each place is given back once.
            if series.remove(one).is_some() {
                self.release(&one.labels);
            }
        }
    }

    /// Seconds since these metrics are, from 1.
    fn seconds(&self, now: Instant) -> u32 {
        let since = now.saturating_duration_since(self.started).as_secs();
        u32::try_from(since).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Everything as OpenMetrics 1.0 text, `extra` included.
    pub fn render(&self, extra: Vec<Reading>) -> Rendering {
        self.expire(Instant::now());
        let mut requests: Vec<_> = self.requests.series.pin().keys().cloned().collect();
        let mut connections: Vec<_> = self.connections.series.pin().keys().cloned().collect();
        // Not there until something is over the limits, as any other.
        if self.requests.overflow.values.any() {
            requests.push(self.requests.overflow.clone());
        }
        if self.connections.overflow.values.any() {
            connections.push(self.connections.overflow.clone());
        }
        let mut readings = self.own();
        readings.extend(extra);
        Rendering::new(requests, connections, readings)
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
                value: self.held.load(Relaxed) as f64,
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
