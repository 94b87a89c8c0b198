//! The three small HTTP servers.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, Request, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, runtime::Handle, time::timeout};

use super::answer::{Answer, text};
use crate::listen::{Bounds, Guest, Listener};

/// Connections at a time, of each server.
const BOUNDS: Bounds = Bounds { most: 64, per_source: 16 };
/// How long a head may take.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may take, to the last byte of its one answer. Scrapers wait 10 s by
/// default, probes less.
const LONGEST: Duration = Duration::from_secs(60);

/// The agent could not listen.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not listen on {address}, the address of {what}: {cause} (hint: {flag} takes another one)"
)]
pub struct AdminError {
    what: &'static str,
    address: SocketAddr,
    flag: &'static str,
    cause: io::Error,
}

/// A thread for answers that take long to make, so that no connection of a pod waits for them.
///
/// # Errors
/// When there is no thread to be had.
pub fn own_thread() -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new().name("sluice-admin".into()).spawn(move || {
        // What is spawned by the handle runs here, as long as the process does.
        runtime.block_on(std::future::pending::<()>());
    })?;
    Ok(handle)
}

/// Serves `answer` for GET requests on `address` for as long as the process lives, on the
/// threads of `on`.
///
/// # Errors
/// When `address` cannot be bound.
pub fn serve<F>(
    on: &Handle,
    what: &'static str,
    flag: &'static str,
    address: SocketAddr,
    answer: impl Fn(&str) -> F + Send + Sync + 'static,
) -> Result<(), AdminError>
where
    F: Future<Output = Option<Answer>> + Send + 'static,
{
    let _there = on.enter();
    let listener = Listener::bind(what, address, BOUNDS);
    let listener = listener.map_err(|cause| AdminError { what, address, flag, cause })?;
    on.spawn(run(listener, answer));
    Ok(())
}

async fn run<F>(
    listener: Listener,
    answer: impl Fn(&str) -> F + Send + Sync + 'static,
) -> Infallible
where
    F: Future<Output = Option<Answer>> + Send + 'static,
{
    let answer = Arc::new(answer);
    loop {
        let (stream, guest) = listener.accept().await;
        tokio::spawn(connection(stream, guest, answer.clone()));
    }
}

/// One connection, which is one request: who asks again comes anew, and meanwhile holds nobody's
/// place.
async fn connection<F>(stream: TcpStream, guest: Guest, answer: Arc<impl Fn(&str) -> F>)
where
    F: Future<Output = Option<Answer>>,
{
    let service = service_fn(move |request| {
        let response = respond(&request, &*answer);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        () = guest.dismissed() => {}
        // However it ends, there is nobody to tell.
        _ = timeout(LONGEST, connection) => {}
    }
}

fn respond<A, F>(
    request: &Request<Incoming>,
    answer: &A,
) -> impl Future<Output = Answer> + use<A, F>
where
    A: Fn(&str) -> F,
    F: Future<Output = Option<Answer>>,
{
    let answer = matches!(*request.method(), Method::GET | Method::HEAD)
        .then(|| answer(request.uri().path()));
    async move {
        match answer {
            Some(answer) => {
                answer.await.unwrap_or_else(|| text(StatusCode::NOT_FOUND, "not found\n"))
            }
            None => text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::admin::{openmetrics, text};

    async fn started() -> SocketAddr {
        let listener = Listener::bind("test", "127.0.0.1:0".parse().unwrap(), BOUNDS).unwrap();
        let address = listener.address();
        tokio::spawn(run(listener, |path| {
            ready(match path {
                "/small" => Some(text(StatusCode::OK, "ready\n")),
                "/large" => Some(openmetrics((0..1000).map(|_| "x".repeat(64 << 10)))),
                _ => None,
            })
        }));
        address
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_crowd_that_says_nothing_keeps_nobody_out() {
        let address = started().await;
        let mut crowd = Vec::new();
        for _ in 0..500 {
            crowd.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(get(address, "/small").await.ends_with("\r\n\r\nready\n"));
        // All but the newest were told to go.
        for stream in &mut crowd[..500 - BOUNDS.per_source] {
            assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
        }
    }

    #[tokio::test]
    async fn who_does_not_read_a_large_answer_holds_up_nobody() {
        let address = started().await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        slow.read_u8().await.unwrap();
        assert!(get(address, "/small").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/large").await.len() > 1000 * (64 << 10));
        assert!(get(address, "/nothing").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn a_thread_of_its_own_answers_too() {
        let thread = own_thread().unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        serve(&thread, "test", "--test", address, |_| ready(None)).unwrap();
    }
}
