//! The values behind one set of labels, and how they are written.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use super::{
    histogram::{BOUNDS, Histogram, bucket},
    labels::Names,
    text::{Exemplar, Text},
};
use crate::telemetry::context::TraceId;

/// Values and the workloads they are about.
#[derive(Debug)]
pub(super) struct Series<V> {
    pub(super) names: Names,
    pub(super) values: V,
}

impl<V: Default> Series<V> {
    pub(super) fn new(names: Names) -> Arc<Self> {
        Arc::new(Self { names, values: V::default() })
    }
}

/// HTTP and gRPC requests.
#[derive(Debug, Default)]
pub(super) struct Requests {
    total: AtomicU64,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    /// The last request that was recorded as a span.
    traced: Mutex<Option<Traced>>,
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
        self.total.fetch_add(1, Relaxed);
        self.duration.observe(microseconds);
        self.request_bytes.observe(request_bytes.saturating_mul(1000));
        self.response_bytes.observe(response_bytes.saturating_mul(1000));
        // One example is as good as another: nobody waits to leave theirs.
        if let Some(trace) = traced
            && let Ok(mut slot) = self.traced.try_lock()
        {
            *slot = Some(Traced { trace, microseconds, at: SystemTime::now() });
        }
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

pub(super) fn render_requests(out: &mut Text, all: &[(&str, &Requests)]) {
    out.family("istio_requests", "counter", "Requests");
    for (labels, values) in all {
        out.sample("istio_requests_total", labels, values.total.load(Relaxed) as f64);
    }
    out.family("istio_request_duration_milliseconds", "histogram", "Duration of requests");
    for (labels, values) in all {
        let traced = values.traced.lock().ok().and_then(|traced| *traced);
        let exemplar = traced.map(|Traced { trace, microseconds, at }| Exemplar {
            bucket: bucket(microseconds),
            trace,
            value: microseconds as f64 / 1000.0,
            at,
        });
        histogram(
            out,
            "istio_request_duration_milliseconds",
            labels,
            &values.duration,
            exemplar.as_ref(),
        );
    }
    out.family("istio_request_bytes", "histogram", "Size of request bodies");
    for (labels, values) in all {
        histogram(out, "istio_request_bytes", labels, &values.request_bytes, None);
    }
    out.family("istio_response_bytes", "histogram", "Size of response bodies");
    for (labels, values) in all {
        histogram(out, "istio_response_bytes", labels, &values.response_bytes, None);
    }
}

pub(super) fn render_connections(out: &mut Text, all: &[(&str, &Connections)]) {
    type Value = fn(&Connections) -> &AtomicU64;
    let families: [(&str, &str, Value); 4] = [
        ("istio_tcp_connections_opened", "Connections opened", |c| &c.opened),
        ("istio_tcp_connections_closed", "Connections closed", |c| &c.closed),
        ("istio_tcp_sent_bytes", "Bytes of responses on TCP connections", |c| &c.sent_bytes),
        ("istio_tcp_received_bytes", "Bytes of requests on TCP connections", |c| &c.received_bytes),
    ];
    for (name, help, value) in families {
        out.family(name, "counter", help);
        for (labels, values) in all {
            let value = value(values).load(Relaxed);
            out.sample(&format!("{name}_total"), labels, value as f64);
        }
    }
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
