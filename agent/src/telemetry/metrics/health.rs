//! How the agent's own telemetry fares.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Kind, Reading};

/// Why a span never arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::telemetry) enum Dropped {
    /// The queue, or the workload's share of it, was full.
    QueueFull,
    /// The receiver could not be reached or did not take it until its time was up.
    ExportFailed,
    /// The receiver said that it will not take it.
    Rejected,
    /// The agent ended before it could be sent.
    Shutdown,
}

impl Dropped {
    pub(in crate::telemetry) const ALL: [Self; 4] =
        [Self::QueueFull, Self::ExportFailed, Self::Rejected, Self::Shutdown];

    pub(in crate::telemetry) fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::ExportFailed => "export_failed",
            Self::Rejected => "rejected",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Spans by what became of them.
#[derive(Debug, Default)]
pub(in crate::telemetry) struct Health {
    exported: AtomicU64,
    dropped: [AtomicU64; Dropped::ALL.len()],
}

impl Health {
    pub(in crate::telemetry) fn exported(&self, spans: usize) {
        self.exported.fetch_add(spans as u64, Relaxed);
    }

    pub(in crate::telemetry) fn dropped(&self, reason: Dropped, spans: usize) {
        self.dropped[reason as usize].fetch_add(spans as u64, Relaxed);
    }

    pub(in crate::telemetry) fn exported_total(&self) -> u64 {
        self.exported.load(Relaxed)
    }

    pub(in crate::telemetry) fn dropped_total(&self, reason: Dropped) -> u64 {
        self.dropped[reason as usize].load(Relaxed)
    }

    pub(super) fn readings(&self, queue_bytes: usize) -> Vec<Reading> {
        let mut readings = vec![
            Reading {
                name: "sluice_telemetry_queue_bytes",
                help: "Encoded spans that wait for the receiver or are on their way to it",
                kind: Kind::Gauge,
                labels: Vec::new(),
                value: queue_bytes as f64,
            },
            Reading {
                name: "sluice_telemetry_spans_exported_total",
                help: "Spans the receiver has taken",
                kind: Kind::Counter,
                labels: Vec::new(),
                value: self.exported_total() as f64,
            },
        ];
        readings.extend(Dropped::ALL.map(|reason| Reading {
            name: "sluice_telemetry_spans_dropped_total",
            help: "Spans that never arrived, by reason",
            kind: Kind::Counter,
            labels: vec![("reason", reason.as_str().to_owned())],
            value: self.dropped_total(reason) as f64,
        }));
        readings
    }
}
