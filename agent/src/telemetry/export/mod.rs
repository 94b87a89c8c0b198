//! Spans on their way to an OTLP receiver.
//!
//! Runs on a thread of its own, so that compressing a batch holds up no connection. One message
//! is under way at a time; what comes meanwhile waits in the bounded queue.

mod batch;
mod grpc;
mod http;
mod own;
mod refusal;
mod retry;
#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use tokio::{runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::{
    batch::{Batches, Message},
    retry::Backoff,
};
use super::{
    TelemetryOptions,
    metrics::{Dropped, Health},
    options::{Protocol, Receiver},
    queue::Queue,
    wire,
};

/// Sends what telemetry records. Dropping it stops that at once; [`shutdown`](Self::shutdown)
/// sends what waits first.
#[derive(Debug)]
pub struct Exporter {
    /// Taken only to end it: a runtime must not be dropped where blocking is not allowed.
    runtime: Option<Runtime>,
    spans: Option<Spans>,
    metrics: Option<SdkMeterProvider>,
}

#[derive(Debug)]
struct Spans {
    queue: Arc<Queue>,
    health: Arc<Health>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Exporter {
    pub(super) fn start(
        options: &TelemetryOptions,
        queue: Option<&Arc<Queue>>,
        health: &Arc<Health>,
    ) -> anyhow::Result<Self> {
        if options.traces.is_none() && options.metrics.is_none() {
            return Ok(Self { runtime: None, spans: None, metrics: None });
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("sluice-otlp")
            .enable_all()
            .build()
            .context("could not start the thread that exports telemetry")?;
        let handle = runtime.handle().clone();
        let _entered = handle.enter();
        let mut exporter = Self { runtime: Some(runtime), spans: None, metrics: None };
        exporter.spans = match (&options.traces, queue) {
            (Some(receiver), Some(queue)) => {
                let client = Client::new(receiver)?;
                let stop = CancellationToken::new();
                let sender =
                    Sender { queue: queue.clone(), health: health.clone(), client, failing: false };
                let task = handle.spawn(sender.run(stop.clone()));
                Some(Spans { queue: queue.clone(), health: health.clone(), stop, task })
            }
            _ => None,
        };
        exporter.metrics = match &options.metrics {
            Some(receiver) => {
                let queue = queue.cloned();
                Some(own::start(receiver, options, queue, health.clone(), &handle)?)
            }
            None => None,
        };
        Ok(exporter)
    }

    /// Sends what waits, for at most `deadline`, then stops. Spans left over are counted as
    /// dropped.
    pub async fn shutdown(mut self, deadline: Duration) {
        let began = Instant::now();
        if let Some(Spans { queue, health, stop, mut task }) = self.spans.take() {
            stop.cancel();
            if tokio::time::timeout(deadline, &mut task).await.is_err() {
                task.abort();
                // Once it has ended nothing is counted twice.
                let _ = task.await;
            }
            let left = queue.held_spans();
            if left > 0 {
                health.dropped(Dropped::Shutdown, left);
                tracing::warn!(spans = left, "spans were not exported before the agent ended");
            }
        }
        if let Some(metrics) = self.metrics.take() {
            let left = deadline.saturating_sub(began.elapsed());
            // The SDK blocks until its last export is through.
            let last = tokio::task::spawn_blocking(move || metrics.shutdown_with_timeout(left));
            if let Ok(Ok(Err(error))) = tokio::time::timeout(left, last).await {
                tracing::debug!(%error, "the agent's last metrics were not exported");
            }
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// How one attempt to send a message failed.
#[derive(Debug, PartialEq, Eq)]
enum ExportError {
    /// Another attempt may succeed, not before `after` if the receiver asked for patience.
    Retry { after: Option<Duration>, cause: String },
    /// The receiver will never take it.
    Refused { cause: String },
}

enum Client {
    Grpc(grpc::Client),
    Http(Box<http::Client>),
}

impl Client {
    fn new(receiver: &Receiver) -> anyhow::Result<Self> {
        Ok(match receiver.protocol {
            Protocol::Grpc => Client::Grpc(grpc::Client::new(receiver)?),
            Protocol::Http => Client::Http(http::Client::new(receiver)?.into()),
        })
    }

    /// The receiver's answer, an `ExportTraceServiceResponse`.
    async fn export(&mut self, message: Bytes) -> Result<Bytes, ExportError> {
        match self {
            Client::Grpc(client) => client.export(message).await,
            Client::Http(client) => client.export(message).await,
        }
    }
}

struct Sender {
    queue: Arc<Queue>,
    health: Arc<Health>,
    client: Client,
    /// The last message was lost; said once in the log, not for each.
    failing: bool,
}

impl Sender {
    /// Sends until `stop`, then what is left, then ends.
    async fn run(mut self, stop: CancellationToken) {
        let queue = self.queue.clone();
        loop {
            tokio::select! {
                () = queue.due() => {}
                () = stop.cancelled() => {}
            }
            // What is recorded from here on is for the next round, or too late.
            let stopping = stop.is_cancelled();
            let mut batches = Batches::new(&queue);
            while let Some(message) = batches.next() {
                self.send(&message).await;
                queue.release(&message.held);
            }
            if stopping {
                return;
            }
        }
    }

    async fn send(&mut self, message: &Message) {
        let began = Instant::now();
        let mut backoff = Backoff::default();
        let (reason, cause) = loop {
            match self.client.export(message.bytes.clone()).await {
                Ok(answer) => return self.taken(message, &answer),
                Err(ExportError::Refused { cause }) => break (Dropped::Rejected, cause),
                Err(ExportError::Retry { after, cause }) => {
                    let wait = after.unwrap_or_else(|| backoff.next());
                    if began.elapsed().saturating_add(wait) > self.queue.batching().export_timeout {
                        break (Dropped::ExportFailed, cause);
                    }
                    tracing::debug!(%cause, ?wait, "spans will be sent again");
                    tokio::time::sleep(wait).await;
                }
            }
        };
        self.health.dropped(reason, message.spans);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                %cause, spans = message.spans, reason = reason.as_str(),
                "the OTLP receiver does not take spans; they are dropped until it does"
            );
        }
    }

    /// A partial success is final: what was rejected must not be sent again (OTLP §Partial
    /// Success).
    fn taken(&mut self, message: &Message, answer: &[u8]) {
        if std::mem::take(&mut self.failing) {
            tracing::info!("the OTLP receiver takes spans again");
        }
        let partial = wire::submessage(answer, 1).unwrap_or_default();
        let rejected = usize::try_from(wire::number(partial, 1)).unwrap_or(0).min(message.spans);
        let text = wire::submessage(partial, 2).unwrap_or_default();
        if rejected > 0 || !text.is_empty() {
            let text = String::from_utf8_lossy(text);
            tracing::warn!(rejected, message = %text.escape_debug(), "from the OTLP receiver");
        }
        self.health.dropped(Dropped::Rejected, rejected);
        self.health.exported(message.spans - rejected);
    }
}

/// An error with its causes, which the texts of hyper and tonic leave out.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
