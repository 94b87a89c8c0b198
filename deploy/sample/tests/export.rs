//! The program as a process: it exports its spans over OTLP and loses none when it ends.

use std::{process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// Long enough for a loaded machine; nothing but a failure lasts so long.
const DEADLINE: Duration = Duration::from_secs(20);

struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn a_service_told_to_stop_exports_its_last_spans_first() {
    let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let (export, mut exported) = mpsc::unbounded_channel();
    let server = Server::builder().add_service(TraceServiceServer::new(Collector(export)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(collector)));

    let mut service = Command::new(env!("CARGO_BIN_EXE_sluice-sample"))
        .args(["order", "--listen", "127.0.0.1:0", "--name", "order-a"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        // Longer than the test may take: what arrives was flushed at the end.
        .env("OTEL_BSP_SCHEDULE_DELAY", "600000")
        .env_remove("OTEL_SERVICE_NAME")
        .env_remove("OTEL_RESOURCE_ATTRIBUTES")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(service.stderr.take().unwrap()).lines();
    let line = timeout(DEADLINE, log.next_line()).await.unwrap().unwrap().unwrap();
    let address = line.strip_prefix("listening on ").unwrap();

    let mut client = TcpStream::connect(address).await.unwrap();
    let request = "POST /api/order HTTP/1.1\r\nhost: order\r\nconnection: close\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(exported.try_recv().is_err());

    let pid = Pid::from_raw(service.id().unwrap().try_into().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let export = timeout(DEADLINE, exported.recv()).await.unwrap().unwrap();
    let [of_service] = export.resource_spans.as_slice() else { panic!("{export:?}") };
    let resource = format!("{:?}", of_service.resource);
    assert!(resource.contains("\"order-service\""), "{resource}");
    assert_eq!(of_service.scope_spans[0].spans[0].name, "handle-order");
    assert!(timeout(DEADLINE, service.wait()).await.unwrap().unwrap().success());
}
