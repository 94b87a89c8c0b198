//! The agent's own health as OTLP metrics, through the OpenTelemetry SDK: a few values once a
//! minute need nothing faster.

use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::{KeyValue, metrics::MeterProvider};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    Compression, MetricExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider},
};
use tokio::runtime::Handle;

use super::{grpc, http::Transport, refusal::UntilRefused};
use crate::telemetry::{
    TelemetryOptions,
    metrics::{Dropped, Health},
    options::{Protocol, Receiver},
    queue::Queue,
    semconv,
};

/// Exports to `receiver` until the provider is shut down. To be called within the runtime of
/// `handle`.
pub(super) fn start(
    receiver: &Receiver,
    options: &TelemetryOptions,
    queue: Option<Arc<Queue>>,
    health: Arc<Health>,
    handle: &Handle,
) -> anyhow::Result<SdkMeterProvider> {
    let exporter = exporter(receiver, handle).with_context(|| {
        format!("could not set up the export of metrics to {}", receiver.endpoint)
    })?;
    let attributes = options
        .resource_attributes
        .iter()
        .map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    let resource = Resource::builder_empty()
        .with_attribute(KeyValue::new(semconv::SERVICE_NAME, "sluice"))
        .with_attribute(KeyValue::new(semconv::SERVICE_VERSION, semconv::SCOPE_VERSION))
        .with_attributes(attributes)
        .build();
    let exporter = UntilRefused::new(exporter);
    let reader = PeriodicReader::builder(exporter).with_interval(options.metrics_interval).build();
    let provider = SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build();
    observe(&provider, queue, health);
    Ok(provider)
}

fn observe(provider: &SdkMeterProvider, queue: Option<Arc<Queue>>, health: Arc<Health>) {
    let meter = provider.meter(semconv::SCOPE_NAME);
    let exported = health.clone();
    meter
        .u64_observable_counter("sluice.telemetry.spans.exported")
        .with_description("Spans the receiver has taken")
        .with_unit("{span}")
        .with_callback(move |observer| observer.observe(exported.exported_total(), &[]))
        .build();
    meter
        .u64_observable_counter("sluice.telemetry.spans.dropped")
        .with_description("Spans that never arrived, by reason")
        .with_unit("{span}")
        .with_callback(move |observer| {
            for reason in Dropped::ALL {
                let attributes = [KeyValue::new("reason", reason.as_str())];
                observer.observe(health.dropped_total(reason), &attributes);
            }
        })
        .build();
    if let Some(queue) = queue {
        meter
            .u64_observable_gauge("sluice.telemetry.queue.size")
            .with_description("Encoded spans that wait for the receiver or are on their way to it")
            .with_unit("By")
            .with_callback(move |observer| observer.observe(queue.held_bytes() as u64, &[]))
            .build();
    }
}

fn exporter(receiver: &Receiver, handle: &Handle) -> anyhow::Result<MetricExporter> {
    Ok(match receiver.protocol {
        Protocol::Grpc => {
            let mut builder = MetricExporter::builder()
                .with_tonic()
                .with_channel(grpc::channel(receiver)?)
                .with_metadata(grpc::metadata(receiver))
                .with_timeout(receiver.timeout);
            if receiver.gzip {
                builder = builder.with_compression(Compression::Gzip);
            }
            builder.build()?
        }
        Protocol::Http => {
            let headers = receiver.headers.iter().filter_map(|(name, value)| {
                Some((name.to_string(), value.to_str().ok()?.to_owned()))
            });
            let client = OnRuntime { transport: Transport::new(receiver)?, handle: handle.clone() };
            let mut builder = MetricExporter::builder()
                .with_http()
                .with_http_client(client)
                .with_endpoint(receiver.endpoint.to_string())
                .with_headers(headers.collect())
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .with_timeout(receiver.timeout);
            if receiver.gzip {
                builder = builder.with_compression(Compression::Gzip);
            }
            builder.build()?
        }
    })
}

/// The SDK's reader exports from a thread of its own, where sockets have no runtime.
#[derive(Debug)]
struct OnRuntime {
    transport: Transport,
    handle: Handle,
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let transport = self.transport.clone();
        let sent = self.handle.spawn(async move { transport.send(request).await });
        Ok(sent.await??)
    }
}
