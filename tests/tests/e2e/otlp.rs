//! The receiver that other tests trust, spoken to by clients that are not ours.

use std::{io::Write, net::SocketAddr, time::Duration};

use flate2::{Compression, write::GzEncoder};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;
use sluice_tests::{Lab, OtlpReceiver, PATIENCE, Pod, Protocol, trace_tree};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{codec::CompressionEncoding, transport::Endpoint};

fn export(id: u8, parent: Option<u8>, name: &str) -> ExportTraceServiceRequest {
    let service = KeyValue {
        key: "service.name".into(),
        value: Some(AnyValue { value: Some(Value::StringValue("shop".into())) }),
        ..KeyValue::default()
    };
    let span = Span {
        trace_id: vec![7; 16],
        span_id: vec![id; 8],
        parent_span_id: parent.map(|id| vec![id; 8]).unwrap_or_default(),
        name: name.into(),
        kind: 3,
        start_time_unix_nano: u64::from(id) * 1_000_000,
        end_time_unix_nano: 10_000_000,
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
    let resource = Some(Resource { attributes: vec![service], ..Resource::default() });
    let spans = ResourceSpans { resource, scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![spans] }
}

fn address(receiver: &OtlpReceiver, protocol: Protocol) -> anyhow::Result<SocketAddr> {
    Ok(receiver.endpoint(protocol).trim_start_matches("http://").parse()?)
}

async fn post(pod: &Pod, to: SocketAddr, head: &str, body: &[u8]) -> anyhow::Result<String> {
    let mut stream = pod.connect(to).await?;
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-length: {}\r\n\
         {head}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn spans_from_a_pod_arrive_over_grpc_and_over_http() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let pod = lab.node("a")?.pod("pod")?;
    let receiver = OtlpReceiver::start(&lab)?;

    let grpc = address(&receiver, Protocol::Grpc)?;
    let stream = pod.connect(grpc).await?;
    let mut stream = Some(TokioIo::new(stream));
    let channel = Endpoint::from_shared(receiver.endpoint(Protocol::Grpc))?
        .connect_with_connector(tower::service_fn(move |_| {
            let stream = stream.take();
            async move { stream.ok_or_else(|| std::io::Error::other("one connection is enough")) }
        }))
        .await?;
    let mut client = TraceServiceClient::new(channel).send_compressed(CompressionEncoding::Gzip);
    client.export(export(1, None, "parent")).await?;

    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&export(2, Some(1), "child").encode_to_vec())?;
    let head = "content-type: application/x-protobuf\r\ncontent-encoding: gzip\r\n";
    let http = address(&receiver, Protocol::Http)?;
    let answer = post(&pod, http, head, &gzip.finish()?).await?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let spans = receiver.wait_for(PATIENCE, |spans| spans.len() == 2).await?;
    assert!(spans.iter().all(|span| span.service == "shop"));
    let tree = trace_tree(&spans);
    let lines: Vec<_> = tree.lines().collect();
    assert_eq!(lines.len(), 3, "{tree}");
    assert!(lines[1].starts_with("└─ shop") && lines[1].contains("parent"), "{tree}");
    assert!(lines[2].starts_with("   └─ shop") && lines[2].contains("child"), "{tree}");
    Ok(())
}

#[tokio::test]
async fn what_is_no_otlp_is_refused_and_counts_for_nothing() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let pod = lab.node("a")?.pod("pod")?;
    let receiver = OtlpReceiver::start(&lab)?;
    let http = address(&receiver, Protocol::Http)?;
    let protobuf = "content-type: application/x-protobuf\r\n";
    let answer = post(&pod, http, protobuf, b"\xff not protobuf").await?;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let answer = post(&pod, http, "content-type: application/json\r\n", b"{}").await?;
    assert!(answer.starts_with("HTTP/1.1 415"), "{answer}");
    assert!(receiver.spans().is_empty());
    let error = receiver.wait_for(Duration::from_millis(1), |spans| !spans.is_empty()).await;
    assert!(error.unwrap_err().to_string().contains("did not arrive"));
    Ok(())
}
