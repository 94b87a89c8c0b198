//! The exporter against real receivers on loopback.

use std::{
    convert::Infallible,
    io::Read,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use flate2::read::GzDecoder;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::{
    metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
};
use prost::Message as _;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::mpsc,
};
use tonic::{Code, Request, Status, codec::CompressionEncoding, transport::server::TcpIncoming};

use crate::telemetry::{
    Batching, Exporter, Protocol, Receiver, Reporter, Telemetry, TelemetryOptions,
    metrics::Dropped, testing::flow,
};

/// Longer than anything here takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a receiver was sent, and how it is to answer.
#[derive(Clone)]
struct Script {
    answers: Arc<Mutex<Vec<Answer>>>,
    seen: mpsc::UnboundedSender<Seen>,
}

/// One attempt as the receiver saw it.
#[derive(Debug)]
struct Seen {
    spans: usize,
    service: String,
    gzip: bool,
    token: Option<String>,
}

#[derive(Clone)]
enum Answer {
    Take,
    Reject(i64),
    Grpc(Code),
    Http(StatusCode),
}

impl Script {
    /// Gives `answers` in turn, then takes everything.
    fn new(answers: &[Answer]) -> (Self, mpsc::UnboundedReceiver<Seen>) {
        let (seen, attempts) = mpsc::unbounded_channel();
        let answers = answers.iter().rev().cloned().collect();
        (Self { answers: Arc::new(Mutex::new(answers)), seen }, attempts)
    }

    fn answer(
        &self,
        request: &ExportTraceServiceRequest,
        gzip: bool,
        token: Option<&str>,
    ) -> Answer {
        let resource = &request.resource_spans[0].resource.as_ref().unwrap().attributes;
        let seen = Seen {
            spans: request
                .resource_spans
                .iter()
                .flat_map(|resource| &resource.scope_spans)
                .map(|scope| scope.spans.len())
                .sum(),
            service: crate::telemetry::testing::attributes(resource)["service.name"].clone(),
            gzip,
            token: token.map(str::to_owned),
        };
        let _ = self.seen.send(seen);
        self.answers.lock().unwrap().pop().unwrap_or(Answer::Take)
    }
}

fn response(rejected: i64) -> ExportTraceServiceResponse {
    let partial =
        ExportTracePartialSuccess { rejected_spans: rejected, error_message: "no thanks\n".into() };
    ExportTraceServiceResponse { partial_success: (rejected > 0).then_some(partial) }
}

#[tonic::async_trait]
impl TraceService for Script {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        let metadata = request.metadata();
        let gzip = metadata.get("grpc-encoding").is_some_and(|encoding| encoding == "gzip");
        let token = metadata.get("authorization").and_then(|token| token.to_str().ok());
        match self.answer(request.get_ref(), gzip, token) {
            Answer::Take => Ok(tonic::Response::new(response(0))),
            Answer::Reject(spans) => Ok(tonic::Response::new(response(spans))),
            Answer::Grpc(code) => Err(Status::new(code, "as scripted")),
            Answer::Http(status) => Err(Status::internal(status.to_string())),
        }
    }
}

async fn grpc_receiver(script: Script, gzip: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut service = TraceServiceServer::new(script);
    if gzip {
        service = service.accept_compressed(CompressionEncoding::Gzip);
    }
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    address
}

async fn http_receiver(script: Script) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let script = script.clone();
            let service = service_fn(move |request| {
                let script = script.clone();
                async move { Ok::<_, Infallible>(answer_http(&script, request).await) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

async fn answer_http(
    script: &Script,
    request: http::Request<Incoming>,
) -> Response<Full<bytes::Bytes>> {
    let (parts, body) = request.into_parts();
    assert_eq!(parts.uri.path(), "/v1/traces");
    assert_eq!(parts.headers[header::CONTENT_TYPE], "application/x-protobuf");
    let gzip = parts.headers.get(header::CONTENT_ENCODING).is_some_and(|value| value == "gzip");
    let body = body.collect().await.unwrap().to_bytes();
    let mut message = Vec::new();
    if gzip {
        GzDecoder::new(&*body).read_to_end(&mut message).unwrap();
    } else {
        message.extend_from_slice(&body);
    }
    let request = ExportTraceServiceRequest::decode(&*message).unwrap();
    let token = parts.headers.get("authorization").and_then(|token| token.to_str().ok());
    let (status, rejected) = match script.answer(&request, gzip, token) {
        Answer::Take | Answer::Grpc(_) => (StatusCode::OK, 0),
        Answer::Reject(spans) => (StatusCode::OK, spans),
        Answer::Http(status) => (status, 0),
    };
    let mut answer = Response::new(Full::from(response(rejected).encode_to_vec()));
    *answer.status_mut() = status;
    let patience = match status {
        StatusCode::TOO_MANY_REQUESTS => Some(header::HeaderValue::from(0_u64)),
        StatusCode::BAD_GATEWAY => Some(header::HeaderValue::from(u64::MAX)),
        _ => None,
    };
    if let Some(patience) = patience {
        answer.headers_mut().insert(header::RETRY_AFTER, patience);
    }
    answer
}

fn receiver(protocol: Protocol, address: SocketAddr) -> Receiver {
    let path = match protocol {
        Protocol::Grpc => "",
        Protocol::Http => "/v1/traces",
    };
    Receiver {
        protocol,
        endpoint: format!("http://{address}{path}").parse().unwrap(),
        headers: vec![(header::AUTHORIZATION, header::HeaderValue::from_static("Bearer abc"))],
        timeout: Duration::from_secs(10),
        gzip: true,
        certificate: None,
    }
}

fn options(receiver: Receiver) -> TelemetryOptions {
    TelemetryOptions { sampling: 1.0, traces: Some(receiver), ..TelemetryOptions::default() }
}

fn start(options: TelemetryOptions) -> (Telemetry, Exporter) {
    Telemetry::start(options).unwrap()
}

fn record(telemetry: &Telemetry, spans: usize) {
    let flow = Arc::new(flow(Reporter::Source));
    for _ in 0..spans {
        telemetry.connection(&flow, None).finish(None);
    }
}

fn exported(telemetry: &Telemetry) -> u64 {
    telemetry.metrics().health.exported_total()
}

fn dropped(telemetry: &Telemetry, reason: Dropped) -> u64 {
    telemetry.metrics().health.dropped_total(reason)
}

fn held(telemetry: &Telemetry) -> (usize, usize) {
    let queue = telemetry.0.queue.as_ref().unwrap();
    (queue.held_bytes(), queue.held_spans())
}

/// Sends what was recorded and waits until it is settled.
async fn settle(exporter: Exporter) {
    exporter.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn spans_arrive_compressed_over_grpc_with_their_headers() {
    let (script, mut attempts) = Script::new(&[]);
    let address = grpc_receiver(script, true).await;
    let (telemetry, exporter) = start(options(receiver(Protocol::Grpc, address)));
    record(&telemetry, 3);
    settle(exporter).await;
    let seen = attempts.recv().await.unwrap();
    assert_eq!((seen.spans, seen.service.as_str(), seen.gzip), (3, "frontend", true));
    assert_eq!(seen.token.as_deref(), Some("Bearer abc"));
    assert_eq!(exported(&telemetry), 3);
    assert_eq!(held(&telemetry), (0, 0));
}

#[tokio::test]
async fn spans_arrive_compressed_over_http_with_their_headers() {
    let (script, mut attempts) = Script::new(&[]);
    let address = http_receiver(script).await;
    let (telemetry, exporter) = start(options(receiver(Protocol::Http, address)));
    record(&telemetry, 3);
    settle(exporter).await;
    let seen = attempts.recv().await.unwrap();
    assert_eq!((seen.spans, seen.service.as_str(), seen.gzip), (3, "frontend", true));
    assert_eq!(seen.token.as_deref(), Some("Bearer abc"));
    assert_eq!(exported(&telemetry), 3);
}

#[tokio::test]
async fn a_receiver_that_cannot_decompress_gets_plain_messages() {
    let (script, mut attempts) = Script::new(&[]);
    let address = grpc_receiver(script, false).await;
    let (telemetry, exporter) = start(options(receiver(Protocol::Grpc, address)));
    record(&telemetry, 2);
    settle(exporter).await;
    let seen = attempts.recv().await.unwrap();
    assert_eq!((seen.spans, seen.gzip), (2, false));
    assert_eq!(exported(&telemetry), 2);
}

#[tokio::test]
async fn a_message_goes_again_when_the_receiver_is_unavailable_for_a_moment() {
    let (script, mut attempts) =
        Script::new(&[Answer::Grpc(Code::Unavailable), Answer::Grpc(Code::DeadlineExceeded)]);
    let address = grpc_receiver(script, true).await;
    let (telemetry, exporter) = start(options(receiver(Protocol::Grpc, address)));
    record(&telemetry, 2);
    settle(exporter).await;
    for _ in 0..3 {
        assert_eq!(attempts.recv().await.unwrap().spans, 2);
    }
    assert!(attempts.try_recv().is_err());
    assert_eq!(exported(&telemetry), 2);
}

#[tokio::test]
async fn a_throttled_message_goes_again_over_http() {
    let (script, mut attempts) = Script::new(&[
        Answer::Http(StatusCode::TOO_MANY_REQUESTS),
        Answer::Http(StatusCode::SERVICE_UNAVAILABLE),
    ]);
    let address = http_receiver(script).await;
    let (telemetry, exporter) = start(options(receiver(Protocol::Http, address)));
    record(&telemetry, 2);
    settle(exporter).await;
    for _ in 0..3 {
        assert_eq!(attempts.recv().await.unwrap().spans, 2);
    }
    assert_eq!(exported(&telemetry), 2);
}

#[tokio::test]
async fn a_receiver_that_asks_to_wait_for_ever_is_not_waited_for() {
    let (script, _attempts) = Script::new(&[Answer::Http(StatusCode::BAD_GATEWAY)]);
    let address = http_receiver(script).await;
    let (telemetry, exporter) = start(options(receiver(Protocol::Http, address)));
    record(&telemetry, 2);
    settle(exporter).await;
    assert_eq!(dropped(&telemetry, Dropped::ExportFailed), 2);
    assert_eq!(dropped(&telemetry, Dropped::Shutdown), 0);
}

#[tokio::test]
async fn a_refused_message_is_dropped_and_never_sent_again() {
    for (protocol, answer) in [
        (Protocol::Grpc, Answer::Grpc(Code::InvalidArgument)),
        (Protocol::Grpc, Answer::Grpc(Code::ResourceExhausted)),
        (Protocol::Http, Answer::Http(StatusCode::BAD_REQUEST)),
    ] {
        let (script, mut attempts) = Script::new(&[answer]);
        let address = match protocol {
            Protocol::Grpc => grpc_receiver(script, true).await,
            Protocol::Http => http_receiver(script).await,
        };
        let (telemetry, exporter) = start(options(receiver(protocol, address)));
        record(&telemetry, 2);
        settle(exporter).await;
        assert_eq!(attempts.recv().await.unwrap().spans, 2);
        assert!(attempts.try_recv().is_err());
        assert_eq!((exported(&telemetry), dropped(&telemetry, Dropped::Rejected)), (0, 2));
        assert_eq!(held(&telemetry), (0, 0));
    }
}

#[tokio::test]
async fn what_a_receiver_rejects_of_a_message_is_counted_and_never_sent_again() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let (script, mut attempts) = Script::new(&[Answer::Reject(2)]);
        let address = match protocol {
            Protocol::Grpc => grpc_receiver(script, true).await,
            Protocol::Http => http_receiver(script).await,
        };
        let (telemetry, exporter) = start(options(receiver(protocol, address)));
        record(&telemetry, 5);
        settle(exporter).await;
        assert_eq!(attempts.recv().await.unwrap().spans, 5);
        assert!(attempts.try_recv().is_err());
        assert_eq!((exported(&telemetry), dropped(&telemetry, Dropped::Rejected)), (3, 2));
    }
}

#[tokio::test]
async fn a_dead_receiver_costs_spans_and_no_more_memory_than_allowed() {
    // Bound but never accepting: connections hang, as with a host that is gone.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut receiver = receiver(Protocol::Grpc, silent.local_addr().unwrap());
    receiver.timeout = Duration::from_millis(20);
    let batching = Batching {
        queue_bytes: 20_000,
        batch_spans: 10,
        export_timeout: Duration::from_millis(50),
        ..Batching::default()
    };
    let (telemetry, exporter) = start(TelemetryOptions { batching, ..options(receiver) });
    let recorded = 5000;
    for _ in 0..recorded {
        record(&telemetry, 1);
        assert!(held(&telemetry).0 <= 20_000);
    }
    exporter.shutdown(Duration::from_millis(200)).await;
    assert_eq!(exported(&telemetry), 0);
    assert!(dropped(&telemetry, Dropped::QueueFull) > 0);
    let all: u64 = Dropped::ALL.into_iter().map(|reason| dropped(&telemetry, reason)).sum();
    assert_eq!(all, recorded, "every span is accounted for");
}

#[tokio::test]
async fn a_receiver_that_refuses_connections_fails_the_export() {
    // Bound, so that nobody else is, but not listening.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = closed.local_addr().unwrap();
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let batching =
            Batching { export_timeout: Duration::from_millis(50), ..Batching::default() };
        let (telemetry, exporter) =
            start(TelemetryOptions { batching, ..options(receiver(protocol, address)) });
        record(&telemetry, 4);
        settle(exporter).await;
        assert_eq!(dropped(&telemetry, Dropped::ExportFailed), 4);
        assert_eq!(held(&telemetry), (0, 0));
    }
}

#[tokio::test]
async fn spans_leave_on_their_own_after_the_delay_and_in_batches() {
    let (script, mut attempts) = Script::new(&[]);
    let address = grpc_receiver(script, true).await;
    let batching =
        Batching { batch_spans: 4, delay: Duration::from_millis(10), ..Batching::default() };
    let (telemetry, _exporter) =
        start(TelemetryOptions { batching, ..options(receiver(Protocol::Grpc, address)) });
    record(&telemetry, 10);
    let mut spans = 0;
    while spans < 10 {
        let seen = tokio::time::timeout(PATIENCE, attempts.recv()).await.unwrap().unwrap();
        assert!(seen.spans <= 4);
        spans += seen.spans;
    }
    assert_eq!(spans, 10);
}

#[derive(Clone)]
struct MetricsReceiver(mpsc::UnboundedSender<ExportMetricsServiceRequest>);

#[tonic::async_trait]
impl MetricsService for MetricsReceiver {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner());
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn assert_own_metrics(request: &ExportMetricsServiceRequest) {
    let scope = &request.resource_metrics[0].scope_metrics[0];
    let mut names: Vec<_> = scope.metrics.iter().map(|metric| metric.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["sluice.telemetry.spans.dropped", "sluice.telemetry.spans.exported"]);
    let resource = request.resource_metrics[0].resource.as_ref().unwrap();
    let attributes = crate::telemetry::testing::attributes(&resource.attributes);
    assert_eq!(attributes["service.name"], "sluice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_own_metrics_leave_over_grpc() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut received) = mpsc::unbounded_channel();
    let service = MetricsServiceServer::new(MetricsReceiver(sender))
        .accept_compressed(CompressionEncoding::Gzip);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    let metrics = Some(receiver(Protocol::Grpc, address));
    let (_telemetry, exporter) = start(TelemetryOptions { metrics, ..Default::default() });
    exporter.shutdown(PATIENCE).await;
    assert_own_metrics(&received.recv().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_own_metrics_leave_over_http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(move |request: http::Request<Incoming>| {
            let sender = sender.clone();
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut message = Vec::new();
                GzDecoder::new(&*body).read_to_end(&mut message).unwrap();
                let _ = sender.send(ExportMetricsServiceRequest::decode(&*message).unwrap());
                Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::default()))
            }
        });
        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.unwrap();
    });
    let metrics = Some(receiver(Protocol::Http, address));
    let (_telemetry, exporter) = start(TelemetryOptions { metrics, ..Default::default() });
    exporter.shutdown(PATIENCE).await;
    assert_own_metrics(&received.recv().await.unwrap());
}

/// Takes no metrics, and tells that it was asked to.
struct NoMetrics(mpsc::UnboundedSender<()>);

#[tonic::async_trait]
impl MetricsService for NoMetrics {
    async fn export(
        &self,
        _: Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, Status> {
        let _ = self.0.send(());
        Err(Status::unimplemented("unknown service"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_receiver_that_takes_no_metrics_is_asked_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, asked) = mpsc::unbounded_channel();
    let service =
        MetricsServiceServer::new(NoMetrics(sender)).accept_compressed(CompressionEncoding::Gzip);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    is_asked_once(receiver(Protocol::Grpc, address), asked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_receiver_that_takes_no_metrics_is_asked_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(move |_: http::Request<Incoming>| {
            let _ = sender.send(());
            let mut response = Response::new(Full::<bytes::Bytes>::default());
            *response.status_mut() = StatusCode::NOT_FOUND;
            async move { Ok::<_, Infallible>(response) }
        });
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    });
    is_asked_once(receiver(Protocol::Http, address), asked).await;
}

async fn is_asked_once(receiver: Receiver, mut asked: mpsc::UnboundedReceiver<()>) {
    let metrics_interval = Duration::from_millis(10);
    let metrics = Some(receiver);
    let (_telemetry, exporter) =
        start(TelemetryOptions { metrics, metrics_interval, ..Default::default() });
    asked.recv().await.unwrap();
    // The end would be another occasion.
    exporter.shutdown(PATIENCE).await;
    assert!(asked.try_recv().is_err(), "asked again");
}

#[tokio::test]
async fn a_certificate_file_that_is_missing_is_an_error_that_names_it() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let receiver = Receiver {
            endpoint: "https://collector:4317".parse().unwrap(),
            certificate: Some("/nonexistent/roots.pem".into()),
            ..receiver(protocol, "127.0.0.1:4317".parse().unwrap())
        };
        let error = format!("{:#}", Telemetry::start(options(receiver)).unwrap_err());
        assert!(error.contains("/nonexistent/roots.pem") && error.contains("hint"), "{error}");
    }
}
