//! The services together, on loopback.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::{Request, Uri};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use opentelemetry::trace::{SpanId, SpanKind, Status, TraceId};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SimpleSpanProcessor, SpanData};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use crate::{
    frontend::Frontend,
    http::{self, Service},
    order::Order,
    trace::Tracing,
    user::User,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

async fn started(service: impl Service) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(http::serve(listener, service, std::future::pending()));
    address
}

fn url(address: SocketAddr) -> Uri {
    format!("http://{address}").parse().unwrap()
}

/// The status and JSON that `address` answers a request with trace headers with.
async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, Value) {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{address}{path}"))
        .header("traceparent", format!("00-{TRACE}-{PARENT}-01"))
        .header("tracestate", "vendor=opaque")
        .header("baggage", "customer=7")
        .body(Full::<bytes::Bytes>::default())
        .unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

/// Records the spans of one service.
fn recorded(service: &'static str) -> (Tracing, InMemorySpanExporter) {
    let exporter = InMemorySpanExporter::default();
    (Tracing::with(SimpleSpanProcessor::new(exporter.clone()), service), exporter)
}

fn spans(exporter: &InMemorySpanExporter) -> Vec<SpanData> {
    exporter.get_finished_spans().unwrap()
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == key)?;
    Some(found.value.to_string())
}

#[tokio::test]
async fn an_order_is_one_trace_through_all_services() {
    let (user, user_spans) = recorded("user-service");
    let (order, order_spans) = recorded("order-service");
    let (frontend, frontend_spans) = recorded("frontend");
    let user = started(User::new(user)).await;
    let order = started(Order::new("order-a".to_owned(), order)).await;
    let frontend = started(Frontend::new(url(user), url(order), frontend)).await;

    let (status, body) = ask(frontend, "POST", "/order").await;
    assert_eq!(
        (status, body),
        (
            200,
            serde_json::json!({"order_id": "order-a-1", "user_id": "user-1", "status": "success"})
        )
    );

    let [call_user, call_order, handle] = spans(&frontend_spans).try_into().unwrap();
    let [of_user] = spans(&user_spans).try_into().unwrap();
    let [of_order] = spans(&order_spans).try_into().unwrap();
    let trace = TraceId::from_hex(TRACE).unwrap();
    for (span, name, kind, parent) in [
        (&handle, "handle-order", SpanKind::Server, SpanId::from_hex(PARENT).unwrap()),
        (&call_user, "call-user-service", SpanKind::Client, handle.span_context.span_id()),
        (&call_order, "call-order-service", SpanKind::Client, handle.span_context.span_id()),
        (&of_user, "handle-user", SpanKind::Server, call_user.span_context.span_id()),
        (&of_order, "handle-order", SpanKind::Server, call_order.span_context.span_id()),
    ] {
        assert_eq!(span.span_context.trace_id(), trace);
        assert_eq!((&*span.name, &span.span_kind, span.parent_span_id), (name, &kind, parent));
        assert_eq!(span.span_context.trace_state().get("vendor"), Some("opaque"));
        assert_eq!(attribute(span, "http.response.status_code").as_deref(), Some("200"));
    }
    assert_eq!(attribute(&handle, "user.id").as_deref(), Some("user-1"));
}

#[tokio::test]
async fn without_an_exporter_the_trace_headers_pass_unchanged() {
    let (order, order_spans) = recorded("order-service");
    let (user, user_spans) = recorded("user-service");
    let user = started(User::new(user)).await;
    let order = started(Order::new("order-a".to_owned(), order)).await;
    let frontend = started(Frontend::new(url(user), url(order), Tracing::off())).await;
    assert_eq!(ask(frontend, "GET", "/order").await.0, 200);
    for span in [spans(&user_spans), spans(&order_spans)].concat() {
        assert_eq!(span.parent_span_id, SpanId::from_hex(PARENT).unwrap());
    }
}

#[tokio::test]
async fn an_order_that_cannot_be_placed_is_a_502_that_says_why() {
    let (user, _) = recorded("user-service");
    let (frontend, frontend_spans) = recorded("frontend");
    let user = started(User::new(user)).await;
    // The listener is dropped at once, so that a connection is refused.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let frontend = started(Frontend::new(url(user), url(nobody), frontend)).await;
    let (status, body) = ask(frontend, "POST", "/order").await;
    assert_eq!(status, 502);
    let error = body["error"].as_str().unwrap();
    assert!(error.starts_with(&format!("http://{nobody}/api/order does not answer: ")), "{error}");
    let [_, call, handle] = spans(&frontend_spans).try_into().unwrap();
    assert!(matches!(call.status, Status::Error { .. }));
    assert!(matches!(handle.status, Status::Error { .. }));
}

#[tokio::test]
async fn the_order_service_says_who_answered_and_who_asked() {
    let (order, _) = recorded("order-service");
    let order = started(Order::new("order-b".to_owned(), order)).await;
    let (_, body) = ask(order, "POST", "/api/order").await;
    assert_eq!(body["replica"], "order-b");
    assert!(body["client"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(ask(order, "GET", "/health").await, (200, serde_json::json!({"status": "ok"})));
    assert_eq!(ask(order, "GET", "/api/order").await.0, 404);
}

#[tokio::test]
async fn a_server_that_is_stopped_ends_though_a_client_keeps_its_connection() {
    let (order, _) = recorded("order-service");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let order = Order::new("order-a".to_owned(), order);
    let serving = tokio::spawn(http::serve(listener, order, async { _ = stopped.await }));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /health HTTP/1.1\r\nhost: order\r\n\r\n").await.unwrap();
    assert_ne!(client.read(&mut [0; 1024]).await.unwrap(), 0);
    stop.send(()).unwrap();
    serving.await.unwrap();
    assert_eq!(client.read(&mut [0; 1024]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_echo_sends_back_what_it_gets() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(crate::echo::serve(listener, std::future::pending()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "hello");
}
