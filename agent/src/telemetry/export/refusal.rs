//! Receivers that take spans and no metrics, as Jaeger does.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::{
    error::{OTelSdkError, OTelSdkResult},
    metrics::{Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
};

/// How the exporters' errors end when the receiver does not have the service, or the path. They
/// carry no code beside their text.
const NO_SUCH_SERVICE: [&str; 2] = ["gRPC code: Unimplemented", "status code: 404"];

/// Exports until the receiver says that it takes no metrics. The SDK would ask it again, and log
/// two lines, at every interval.
pub(super) struct UntilRefused {
    exporter: MetricExporter,
    refused: AtomicBool,
}

impl UntilRefused {
    pub(super) fn new(exporter: MetricExporter) -> Self {
        Self { exporter, refused: AtomicBool::new(false) }
    }
}

impl PushMetricExporter for UntilRefused {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        if self.refused.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.exporter.export(metrics).await {
            Err(error) if is_refusal(&error) => {
                self.refused.store(true, Ordering::Relaxed);
                tracing::warn!(
                    %error,
                    "the OTLP receiver takes no metrics: it gets none from here on, and \
                     /stats/prometheus has them (hint: OTEL_METRICS_EXPORTER=none, or another \
                     receiver in OTEL_EXPORTER_OTLP_METRICS_ENDPOINT)"
                );
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

fn is_refusal(error: &OTelSdkError) -> bool {
    let text = error.to_string();
    NO_SUCH_SERVICE.iter().any(|end| text.ends_with(end))
}
