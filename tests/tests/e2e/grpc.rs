//! HTTP/2 with prior knowledge and gRPC, spoken by hyper and tonic at both ends.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, trace_service_client::TraceServiceClient,
};
use sluice_tests::{
    Kind, PATIENCE, Pod, Shop, Span,
    ports::{GRPC, UNDECLARED},
};
use tokio::{sync::Barrier, task::JoinSet, time::timeout};
use tonic::{
    Code,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tonic_health::{
    ServingStatus,
    pb::{
        HealthCheckRequest, health_check_response::ServingStatus as Answer,
        health_client::HealthClient,
    },
    server::{HealthReporter, health_reporter},
};

/// How many requests are open at once on one connection.
const STREAMS: usize = 100;

/// A port that no Service has.
const NO_SERVICE: u16 = 5050;

/// Where a server can be reached, declared as gRPC and not declared at all, and where it
/// listens for that.
fn ways(shop: &Shop, server: &Pod) -> [(SocketAddr, u16); 3] {
    [
        (shop.service(server.name(), GRPC), GRPC.target),
        (shop.service(server.name(), UNDECLARED), UNDECLARED.target),
        (SocketAddr::new(server.ip(), NO_SERVICE), NO_SERVICE),
    ]
}

/// Answers HTTP/2 with the path in the body and in a trailer, but no request before `all` are
/// there, and not more of a connection at once than `most`.
fn serve_http2(
    pod: &Pod,
    port: u16,
    most: usize,
    all: Arc<Barrier>,
) -> anyhow::Result<JoinSet<()>> {
    let most = u32::try_from(most)?;
    let listener = pod.listen(port)?;
    let answer = move |request: Request<Incoming>| {
        let all = all.clone();
        async move {
            all.wait().await;
            let through_mesh = request.headers().contains_key("traceparent");
            let path = Bytes::from(request.uri().path().to_owned());
            let trailer = HeaderValue::from_bytes(&path).expect("a path is a header value");
            let trailers =
                HeaderMap::from_iter([(http::HeaderName::from_static("x-path"), trailer)]);
            let frames = [Ok::<_, Infallible>(Frame::data(path)), Ok(Frame::trailers(trailers))];
            let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
            if through_mesh {
                response.headers_mut().insert("x-mesh", HeaderValue::from_static("yes"));
            }
            Ok::<_, Infallible>(response)
        }
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(answer.clone());
            let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.max_concurrent_streams(most);
            connections.spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(tasks)
}

#[tokio::test]
async fn a_hundred_requests_are_open_at_once_on_one_http2_connection() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        for (to, target) in ways(&shop, server) {
            let _app = serve_http2(server, target, STREAMS, Arc::new(Barrier::new(STREAMS)))?;
            let stream = shop.dial(to).await?.into_stream();
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
            let (client, connection) = timeout(PATIENCE, handshake).await??;
            let mut tasks = JoinSet::new();
            for n in 0..STREAMS {
                let mut client = client.clone();
                tasks.spawn(async move {
                    let uri = format!("http://shop/{n}");
                    let request = Request::builder().uri(uri).version(Version::HTTP_2);
                    let request = request.body(Full::<Bytes>::default())?;
                    let response = client.send_request(request).await?;
                    let mesh = response.headers().contains_key("x-mesh");
                    let body = response.into_body().collect().await?;
                    let trailer = body.trailers().and_then(|t| t.get("x-path")).cloned();
                    let path = format!("/{n}");
                    anyhow::ensure!(mesh, "the request did not pass the mesh");
                    anyhow::ensure!(trailer.is_some_and(|t| t == path), "another's trailers");
                    anyhow::ensure!(body.to_bytes() == path, "another's body");
                    Ok(())
                });
            }
            let all = async {
                while let Some(done) = tasks.join_next().await {
                    done??;
                }
                anyhow::Ok(())
            };
            tokio::select! {
                done = timeout(PATIENCE, all) => done.with_context(|| to.to_string())??,
                ended = connection => anyhow::bail!("the connection to {to} ended: {ended:?}"),
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn clients_that_ask_more_than_a_server_takes_of_one_connection_are_all_answered()
-> anyhow::Result<()> {
    const CLIENTS: usize = 3;
    const EACH: usize = 2;
    let shop = Shop::open().await?;
    for server in shop.servers() {
        for (to, target) in ways(&shop, server) {
            let all = Arc::new(Barrier::new(CLIENTS * EACH));
            let _app = serve_http2(server, target, EACH, all)?;
            let (mut connections, mut answers) = (JoinSet::new(), JoinSet::new());
            for _ in 0..CLIENTS {
                let stream = TokioIo::new(shop.dial(to).await?.into_stream());
                let handshake = http2::handshake(TokioExecutor::new(), stream);
                let (client, connection) = timeout(PATIENCE, handshake).await??;
                connections.spawn(connection);
                for _ in 0..EACH {
                    let mut client = client.clone();
                    let request = Request::builder().uri("http://shop/").version(Version::HTTP_2);
                    let request = request.body(Full::<Bytes>::default())?;
                    answers.spawn(async move { client.send_request(request).await });
                }
            }
            while let Some(answer) = timeout(PATIENCE, answers.join_next()).await? {
                anyhow::ensure!(answer??.status() == 200, "{to}");
            }
        }
    }
    Ok(())
}

/// The health service of tonic, as a gRPC server whose answers a test decides.
async fn serve_health(pod: &Pod, port: u16) -> anyhow::Result<(HealthReporter, JoinSet<()>)> {
    let (reporter, service) = health_reporter();
    reporter.set_service_status("order", ServingStatus::Serving).await;
    let incoming = TcpIncoming::from(pod.listen(port)?);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let server = Server::builder().add_service(service).serve_with_incoming(incoming);
        server.await.expect("the gRPC server serves until it is dropped");
    });
    Ok((reporter, tasks))
}

async fn client(shop: &Shop, to: SocketAddr) -> anyhow::Result<HealthClient<Channel>> {
    Ok(HealthClient::new(channel(shop, to).await?))
}

async fn channel(shop: &Shop, to: SocketAddr) -> anyhow::Result<Channel> {
    let mut stream = Some(TokioIo::new(shop.dial(to).await?.into_stream()));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| std::io::Error::other("one connection is enough")) }
    });
    let endpoint = Endpoint::from_static("http://health.shop:90").timeout(PATIENCE);
    Ok(endpoint.connect_with_connector(connector).await?)
}

fn asking(service: &str, trace: u8) -> tonic::Request<HealthCheckRequest> {
    let mut request = tonic::Request::new(HealthCheckRequest { service: service.into() });
    let parent = format!("00-{}-00f067aa0ba902b7-01", trace_id(trace));
    let parent = parent.parse().expect("hexadecimal digits are ASCII");
    request.metadata_mut().insert("traceparent", parent);
    request
}

fn trace_id(trace: u8) -> String {
    format!("{trace:02x}").repeat(16)
}

#[tokio::test]
async fn unary_calls_are_answered_with_a_message_or_with_a_status() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        for (to, target) in ways(&shop, server) {
            let (_reporter, _app) = serve_health(server, target).await?;
            let mut client = client(&shop, to).await?;
            let answer = client.check(asking("order", 1)).await?.into_inner();
            assert_eq!(answer.status(), Answer::Serving, "{to}");
            let status = client.check(asking("nobody", 2)).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "{to}");
            assert_eq!(status.message(), "service not registered", "{to}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_call_that_nobody_is_there_for_fails_as_grpc_has_it() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let mut client = client(&shop, shop.service(server.name(), GRPC)).await?;
        let status = client.check(asking("order", 1)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert_eq!(status.message(), "sluice: connect_failure");
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_s_messages_arrive_while_it_is_open() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        for (to, target) in ways(&shop, server) {
            let (reporter, _app) = serve_health(server, target).await?;
            let mut client = client(&shop, to).await?;
            let mut answers = client.watch(asking("order", 1)).await?.into_inner();
            for (next, expected) in [
                (ServingStatus::NotServing, Answer::Serving),
                (ServingStatus::Serving, Answer::NotServing),
                (ServingStatus::NotServing, Answer::Serving),
            ] {
                let answer = timeout(PATIENCE, answers.message()).await??;
                assert_eq!(answer.context("the stream ended")?.status(), expected, "{to}");
                reporter.set_service_status("order", next).await;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn spans_of_calls_say_which_method_and_how_it_ended() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for (turn, server) in shop.servers().into_iter().enumerate() {
        let (_reporter, _app) = serve_health(server, GRPC.target).await?;
        let mut client = client(&shop, shop.service(server.name(), GRPC)).await?;
        let [fine, unknown, unimplemented] = [[1, 2, 3], [4, 5, 6]][turn];
        client.check(asking("order", fine)).await?;
        client.check(asking("nobody", unknown)).await.unwrap_err();
        // A service the server has not.
        let channel = channel(&shop, shop.service(server.name(), GRPC)).await?;
        let mut traces = TraceServiceClient::new(channel);
        let mut export = tonic::Request::new(ExportTraceServiceRequest::default());
        *export.metadata_mut() = asking("", unimplemented).metadata().clone();
        let status = traces.export(export).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);

        let export_method = "opentelemetry.proto.collector.trace.v1.TraceService/Export";
        let check = "grpc.health.v1.Health/Check";
        for (trace, method, status, errors) in [
            (fine, check, "OK", [false, false]),
            // The client asked for what is not there: no fault of the server.
            (unknown, check, "NOT_FOUND", [true, false]),
            (unimplemented, export_method, "UNIMPLEMENTED", [true, true]),
        ] {
            let pair = shop.pair(&trace_id(trace)).await?;
            for (span, is_error) in pair.iter().zip(errors) {
                let expected = if is_error { status } else { "" };
                assert_eq!(span.name, method);
                assert_eq!(rpc(span), ["grpc", method, status, "200", "2"]);
                assert_eq!(span.error.is_some(), is_error, "{span:?}");
                assert_eq!(span.attribute("error.type"), expected, "{span:?}");
            }
            let [client, server] = &pair;
            assert_eq!((client.kind, server.kind), (Kind::Client, Kind::Server));
            assert_eq!(server.parent_id.as_ref(), Some(&client.span_id));
            assert_eq!(client.parent_id.as_deref(), Some("00f067aa0ba902b7"));
        }
    }
    Ok(())
}

fn rpc(span: &Span) -> [&str; 5] {
    [
        "rpc.system.name",
        "rpc.method",
        "rpc.response.status_code",
        "http.response.status_code",
        "network.protocol.version",
    ]
    .map(|name| span.attribute(name))
}
