//! The three small HTTP servers.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// The agent could not listen.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not listen on {address}, the address of {what}: {cause} (hint: {flag} takes another one)"
)]
pub struct AdminError {
    what: &'static str,
    address: SocketAddr,
    flag: &'static str,
    cause: std::io::Error,
}

/// Serves `answer` for GET requests on `address` for as long as the process lives.
///
/// # Errors
/// When `address` cannot be bound.
pub async fn serve(
    what: &'static str,
    flag: &'static str,
    address: SocketAddr,
    answer: impl Fn(&str) -> Option<Response<String>> + Send + Sync + 'static,
) -> Result<(), AdminError> {
    let listener = TcpListener::bind(address).await.map_err(|cause| AdminError {
        what,
        address,
        flag,
        cause,
    })?;
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of file descriptors; the next connection may fare better.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let response = respond(&request, &*answer);
                async move { Ok::<_, Infallible>(response) }
            });
            tokio::spawn(
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(std::time::Duration::from_secs(10))
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Ok(())
}

fn respond(
    request: &Request<Incoming>,
    answer: &impl Fn(&str) -> Option<Response<String>>,
) -> Response<Full<Bytes>> {
    let response = if request.method() == Method::GET || request.method() == Method::HEAD {
        answer(request.uri().path()).unwrap_or_else(|| text(StatusCode::NOT_FOUND, "not found\n"))
    } else {
        text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n")
    };
    response.map(|body| Full::new(body.into()))
}

/// An answer in JSON.
pub fn json(body: String) -> Response<String> {
    typed("application/json", body)
}

/// An answer in the text format of OpenMetrics.
pub fn openmetrics(body: String) -> Response<String> {
    typed("application/openmetrics-text; version=1.0.0; charset=utf-8", body)
}

fn typed(content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// A plain-text answer.
pub fn text(status: StatusCode, body: impl Into<String>) -> Response<String> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
