//! What the CA counts.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::SystemTime,
};

use super::{authority::Authority, refusal::Refusal};
use crate::telemetry::{Kind, Reading};

/// Counters of one replica.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    issued: AtomicU64,
    refused: [AtomicU64; Refusal::REASONS.len()],
    failed_looks: AtomicU64,
}

impl Metrics {
    pub(super) fn issued(&self) {
        self.issued.fetch_add(1, Relaxed);
    }

    pub(super) fn refused(&self, refusal: &Refusal) {
        self.refused[refusal.reason()].fetch_add(1, Relaxed);
    }

    pub(super) fn look_failed(&self) {
        self.failed_looks.fetch_add(1, Relaxed);
    }

    pub(super) fn readings(&self, authority: Option<&Authority>) -> Vec<Reading> {
        let counter = |name, help, labels, value: &AtomicU64| Reading {
            name,
            help,
            kind: Kind::Counter,
            labels,
            value: value.load(Relaxed) as f64,
        };
        let mut readings = vec![
            counter(
                "sluice_ca_certificates_issued_total",
                "Certificates signed for workloads",
                Vec::new(),
                &self.issued,
            ),
            counter(
                "sluice_ca_root_failures_total",
                "Times the roots could not be looked after",
                Vec::new(),
                &self.failed_looks,
            ),
        ];
        readings.extend(Refusal::REASONS.iter().zip(&self.refused).map(|(reason, count)| {
            counter(
                "sluice_ca_requests_refused_total",
                "Requests that got no certificate, by reason",
                vec![("reason", (*reason).to_owned())],
                count,
            )
        }));
        readings.extend(authority.map(|authority| {
            Reading {
                name: "sluice_ca_root_expiry_seconds",
                help: "When the root that signs expires, Unix time",
                kind: Kind::Gauge,
                labels: Vec::new(),
                value: authority
                    .expires()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .map_or(0.0, |since| since.as_secs() as f64),
            }
        }));
        readings
    }
}
