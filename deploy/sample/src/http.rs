//! HTTP for the services: a server that ends in order, and a client that keeps connections.

use std::{convert::Infallible, future::ready, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::{Body, Incoming},
    header::{self, HeaderName, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client as Pooled, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use opentelemetry::Context;
use serde_json::Value;
use tokio::{net::TcpListener, time::timeout};

use crate::trace;

/// How long open requests may take after the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);
/// How long a request to another service may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest body taken from another service.
const BODY_LIMIT: usize = 64 * 1024;

/// One of the sample's services.
pub(crate) trait Service: Send + Sync + 'static {
    /// Answers a request of `client`.
    fn answer(
        &self,
        request: Request<Incoming>,
        client: SocketAddr,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// Serves HTTP/1.1 and HTTP/2 until `stop`, then lets open requests end.
pub(crate) async fn serve<S: Service>(
    listener: TcpListener,
    service: S,
    stop: impl Future<Output = ()>,
) {
    let service = Arc::new(service);
    let open = GracefulShutdown::new();
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new());
    tokio::pin!(stop);
    loop {
        let (stream, client) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // The peer is gone already, or there are no descriptors left just now.
                Err(error) => {
                    eprintln!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let service = service.clone();
        let handler = service_fn(move |request: Request<Incoming>| {
            let service = service.clone();
            async move {
                Ok::<_, Infallible>(match request.uri().path() {
                    "/health" => {
                        let health = serde_json::json!({ "status": "ok" });
                        answer(StatusCode::OK, &health).map(Either::Left)
                    }
                    "/grpc.health.v1.Health/Check" => serving().map(Either::Right),
                    _ => service.answer(request, client).await.map(Either::Left),
                })
            }
        });
        let connection = server.serve_connection(TokioIo::new(stream), handler).into_owned();
        let connection = open.watch(connection);
        tokio::spawn(async move {
            // A client that breaks off is no news.
            let _ = connection.await;
        });
    }
    drop(listener);
    if timeout(GRACE, open.shutdown()).await.is_err() {
        eprintln!("connections still open after {GRACE:?} were cut");
    }
}

/// The answer to gRPC's health check: a HealthCheckResponse whose status, field 1, is SERVING.
fn serving() -> Response<impl Body<Data = Bytes, Error = Infallible>> {
    let message = [0, 0, 0, 0, 2, 0x08, 0x01];
    let status = HeaderMap::from_iter([(
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let body = Full::from(Bytes::copy_from_slice(&message)).with_trailers(ready(Some(Ok(status))));
    let mut response = Response::new(body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// A JSON answer.
pub(crate) fn answer(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{body}\n")));
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// The answer to a request that no service has a use for.
pub(crate) fn unknown(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let what = format!("nothing at {} {}", request.method(), request.uri().path());
    answer(StatusCode::NOT_FOUND, &serde_json::json!({ "error": what }))
}

/// Calls other services.
#[derive(Clone, Debug)]
pub(crate) struct Client(Pooled<HttpConnector, Full<Bytes>>);

impl Client {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(REQUEST_TIMEOUT));
        Self(Pooled::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector))
    }

    /// Sends `body` as JSON, with the trace headers of `context`; returns status and body.
    pub(crate) async fn send(
        &self,
        method: Method,
        uri: Uri,
        body: Option<&Value>,
        context: &Context,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let mut request = Request::builder().method(method).uri(uri.clone());
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = request.body(Full::from(body))?;
        trace::inject(context, request.headers_mut());
        let exchange = async {
            let response = self.0.request(request).await.map_err(anyhow::Error::from)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!(error))?;
            Ok::<_, anyhow::Error>((status, body.to_bytes()))
        };
        match timeout(REQUEST_TIMEOUT, exchange).await {
            Ok(result) => result.with_context(|| format!("{uri} does not answer")),
            Err(_) => bail!("{uri} did not answer within {REQUEST_TIMEOUT:?}"),
        }
    }
}

/// `path` on the server that `base` names.
pub(crate) fn join(base: &Uri, path: &str) -> anyhow::Result<Uri> {
    let base = base.to_string();
    let base = base.trim_end_matches('/');
    format!("{base}{path}").parse().with_context(|| {
        format!("`{base}` is not the URL of a service (hint: http://order-service:8080)")
    })
}
