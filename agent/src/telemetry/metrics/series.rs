//! The values behind one set of labels, and how they are written.

use std::{
    hash::{Hash, Hasher},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use papaya::Equivalent;

use super::{
    histogram::{BOUNDS, Histogram, bucket},
    labels::Ending,
    parties::Labels,
    text::{Exemplar, Text},
};
use crate::telemetry::context::TraceId;

/// Values with what they are about. A series is found by that alone.
#[derive(Debug)]
pub(super) struct Series<O, V> {
    pub(super) labels: Labels,
    pub(super) outcome: O,
    pub(super) values: V,
}

impl<O: Ending, V> Series<O, V> {
    /// The labels as they stand in the text format.
    pub(super) fn text(&self) -> String {
        let mut text = String::with_capacity(1024);
        self.labels.append_to(&mut text);
        self.outcome.append_to(&mut text);
        text
    }
}

impl<O: PartialEq, V> PartialEq for Series<O, V> {
    fn eq(&self, other: &Self) -> bool {
        self.outcome == other.outcome && self.labels == other.labels
    }
}

impl<O: Eq, V> Eq for Series<O, V> {}

impl<O: Hash, V> Hash for Series<O, V> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Sought { labels: &self.labels, outcome: &self.outcome }.hash(state);
    }
}

/// A series to be found.
#[derive(Hash)]
pub(super) struct Sought<'a, O> {
    pub(super) labels: &'a Labels,
    pub(super) outcome: &'a O,
}

impl<O: PartialEq, V> Equivalent<Arc<Series<O, V>>> for Sought<'_, O> {
    fn equivalent(&self, series: &Arc<Series<O, V>>) -> bool {
        *self.outcome == series.outcome && *self.labels == series.labels
    }
}

/// HTTP and gRPC requests.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// The number of its values is that of the requests.
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    /// The last request that was recorded as a span. On its own, because most series have none.
    traced: Mutex<Option<Box<Traced>>>,
}

#[derive(Clone, Copy, Debug)]
struct Traced {
    trace: TraceId,
    microseconds: u64,
    at: SystemTime,
}

impl Requests {
    pub(super) fn add(
        &self,
        lasted: Duration,
        request_bytes: u64,
        response_bytes: u64,
        traced: Option<TraceId>,
    ) {
        // A thousandth of a millisecond.
        let microseconds = u64::try_from(lasted.as_micros()).unwrap_or(u64::MAX);
        self.duration.observe(microseconds);
        self.request_bytes.observe(request_bytes.saturating_mul(1000));
        self.response_bytes.observe(response_bytes.saturating_mul(1000));
        // One example is as good as another: nobody waits to leave theirs.
        if let Some(trace) = traced
            && let Ok(mut slot) = self.traced.try_lock()
        {
            let traced = Traced { trace, microseconds, at: SystemTime::now() };
            match &mut *slot {
                Some(slot) => **slot = traced,
                None => *slot = Some(Box::new(traced)),
            }
        }
    }

    fn exemplar(&self) -> Option<Exemplar> {
        let traced = self.traced.lock().ok().and_then(|traced| traced.as_deref().copied());
        traced.map(|Traced { trace, microseconds, at }| Exemplar {
            bucket: bucket(microseconds),
            trace,
            value: microseconds as f64 / 1000.0,
            at,
        })
    }
}

/// Connections that are not looked into.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) opened: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) received_bytes: AtomicU64,
}

impl Requests {
    /// Whether there were any.
    pub(super) fn any(&self) -> bool {
        self.duration.count() > 0
    }
}

impl Connections {
    /// Whether there were any.
    pub(super) fn any(&self) -> bool {
        self.opened.load(Relaxed) + self.closed.load(Relaxed) > 0
    }
}

/// One metric of many series: its name, what it is, and how a series' samples are written.
pub(super) struct Family<V> {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) help: &'static str,
    pub(super) write: fn(&mut Text, &str, &V),
}

pub(super) const REQUESTS: [Family<Requests>; 4] = [
    Family {
        name: "istio_requests",
        kind: "counter",
        help: "Requests",
        write: |out, labels, values| {
            out.sample("istio_requests_total", labels, values.duration.count() as f64);
        },
    },
    Family {
        name: "istio_request_duration_milliseconds",
        kind: "histogram",
        help: "Duration of requests",
        write: |out, labels, values| {
            let (name, exemplar) = ("istio_request_duration_milliseconds", values.exemplar());
            histogram(out, name, labels, &values.duration, exemplar.as_ref());
        },
    },
    Family {
        name: "istio_request_bytes",
        kind: "histogram",
        help: "Size of request bodies",
        write: |out, labels, values| {
            histogram(out, "istio_request_bytes", labels, &values.request_bytes, None);
        },
    },
    Family {
        name: "istio_response_bytes",
        kind: "histogram",
        help: "Size of response bodies",
        write: |out, labels, values| {
            histogram(out, "istio_response_bytes", labels, &values.response_bytes, None);
        },
    },
];

pub(super) const CONNECTIONS: [Family<Connections>; 4] = [
    Family {
        name: "istio_tcp_connections_opened",
        kind: "counter",
        help: "Connections opened",
        write: |out, labels, values| {
            counter(out, "istio_tcp_connections_opened_total", labels, &values.opened);
        },
    },
    Family {
        name: "istio_tcp_connections_closed",
        kind: "counter",
        help: "Connections closed",
        write: |out, labels, values| {
            counter(out, "istio_tcp_connections_closed_total", labels, &values.closed);
        },
    },
    Family {
        name: "istio_tcp_sent_bytes",
        kind: "counter",
        help: "Bytes of responses on TCP connections",
        write: |out, labels, values| {
            counter(out, "istio_tcp_sent_bytes_total", labels, &values.sent_bytes);
        },
    },
    Family {
        name: "istio_tcp_received_bytes",
        kind: "counter",
        help: "Bytes of requests on TCP connections",
        write: |out, labels, values| {
            counter(out, "istio_tcp_received_bytes_total", labels, &values.received_bytes);
        },
    },
];

fn counter(out: &mut Text, name: &str, labels: &str, value: &AtomicU64) {
    out.sample(name, labels, value.load(Relaxed) as f64);
}

fn histogram(
    out: &mut Text,
    name: &str,
    labels: &str,
    histogram: &Histogram,
    exemplar: Option<&Exemplar>,
) {
    let counts = histogram.cumulative();
    let bounds = BOUNDS.iter().map(|(_, text)| *text).chain(["+Inf"]);
    for (n, (bound, count)) in bounds.zip(counts).enumerate() {
        out.bucket(name, labels, bound, count, exemplar.filter(|exemplar| exemplar.bucket == n));
    }
    out.sample(&format!("{name}_sum"), labels, histogram.sum());
    out.sample(&format!("{name}_count"), labels, counts[BOUNDS.len()] as f64);
}
