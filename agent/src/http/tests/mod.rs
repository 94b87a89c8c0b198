//! Requests through [`serve`] and [`Pool`] together, byte for byte on both ends.

mod drain;
mod held;
mod silence;
mod unread;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio_util::sync::CancellationToken;

use super::{
    Body, Handler, Leaving, Pool, PoolKey, Stream, Tap, forwardable, forwardable_request, hold,
    plain, serve,
};
use crate::limits::{Budget, Share};

/// More than any test lets wait.
fn plenty() -> Arc<Share> {
    Budget::new(128 << 20).share()
}

fn new_pool() -> Pool {
    Pool::new(&plenty())
}

/// Passes every request to one server, whose ends of the connections a test plays.
struct Forward {
    pool: Pool,
    connections: tokio::sync::mpsc::UnboundedSender<DuplexStream>,
    dialled: Arc<AtomicUsize>,
}

impl Handler for Forward {
    async fn handle(&self, mut request: Request<Body>) -> Response<Body> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let key = PoolKey::new(Ipv4Addr::LOCALHOST.into(), server, request.version());
        forwardable_request(request.headers_mut());
        let dial = || async {
            self.dialled.fetch_add(1, Ordering::Relaxed);
            let (ours, theirs) = duplex(64 << 10);
            self.connections.send(theirs).map_err(|_| "the test is over")?;
            Ok::<_, &str>(ours)
        };
        match self.pool.send(key, request, dial).await {
            Ok(mut response) => {
                forwardable(response.headers_mut());
                response
            }
            Err(error) => plain(StatusCode::BAD_GATEWAY, error.to_string()),
        }
    }
}

/// A client's end, and the servers' ends as they are dialled.
struct Bench {
    client: DuplexStream,
    servers: tokio::sync::mpsc::UnboundedReceiver<DuplexStream>,
    dialled: Arc<AtomicUsize>,
    drain: CancellationToken,
}

fn bench() -> Bench {
    let (connections, servers) = tokio::sync::mpsc::unbounded_channel();
    let dialled = Arc::new(AtomicUsize::new(0));
    let forward = Forward { pool: new_pool(), connections, dialled: dialled.clone() };
    let (client, agent) = duplex(64 << 10);
    let drain = CancellationToken::new();
    let asked = drain.clone();
    tokio::spawn(async move { serve(agent, Arc::new(forward), &plenty(), &asked).await });
    Bench { client, servers, dialled, drain }
}

impl Bench {
    async fn say(&mut self, bytes: &str) {
        self.client.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Everything up to and including `end`.
    async fn hear(&mut self, end: &str) -> String {
        read_until(&mut self.client, end).await
    }

    async fn server(&mut self) -> DuplexStream {
        self.servers.recv().await.unwrap()
    }
}

async fn read_until(stream: &mut DuplexStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        match stream.read_u8().await {
            Ok(byte) => text.push(byte.into()),
            Err(error) => panic!("{error} after {text:?}, wanted {end:?}"),
        }
    }
    text
}

/// Answers every request by itself.
struct Hello;

impl Handler for Hello {
    async fn handle(&self, _request: Request<Body>) -> Response<Body> {
        plain(StatusCode::OK, "hello")
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_on_one_upstream_connection() {
    let mut bench = bench();
    bench.say("GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut server = bench.server().await;
    for path in ["/a", "/b"] {
        let request = read_until(&mut server, "\r\n\r\n").await;
        assert!(request.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{request}");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{path}");
        server.write_all(answer.as_bytes()).await.unwrap();
        assert!(bench.hear(path).await.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    assert_eq!(bench.dialled.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn header_names_keep_their_case() {
    let mut bench = bench();
    bench.say("GET / HTTP/1.1\r\nHost: a\r\nX-Odd-CASE: 1\r\n\r\n").await;
    let request = read_until(&mut bench.server().await, "\r\n\r\n").await;
    assert!(request.contains("X-Odd-CASE: 1\r\n"), "{request}");
}

#[tokio::test]
async fn a_client_that_expects_100_is_told_to_continue() {
    let mut bench = bench();
    bench
        .say("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
        .await;
    assert_eq!(bench.hear("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    bench.say("abc").await;
    let mut server = bench.server().await;
    assert!(read_until(&mut server, "abc").await.starts_with("POST / HTTP/1.1\r\n"));
}

#[tokio::test]
async fn chunked_bodies_and_their_trailers_pass() {
    let mut bench = bench();
    bench.say("GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n").await;
    let mut server = bench.server().await;
    let request = read_until(&mut server, "\r\n\r\n").await;
    assert!(request.contains("te: trailers"), "{request}");
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                  3\r\nabc\r\n0\r\nx-sum: 9\r\n\r\n";
    server.write_all(answer.as_bytes()).await.unwrap();
    let response = bench.hear("x-sum: 9\r\n\r\n").await;
    assert!(response.contains("3\r\nabc\r\n0\r\n"), "{response}");
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let mut bench = bench();
    bench
        .say("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await;
    let mut server = bench.server().await;
    let request = read_until(&mut server, "\r\n\r\n").await;
    assert!(request.contains("upgrade: websocket"), "{request}");
    let answer =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    server.write_all(answer.as_bytes()).await.unwrap();
    assert!(bench.hear("\r\n\r\n").await.starts_with("HTTP/1.1 101 "));
    bench.say("ping").await;
    assert_eq!(read_until(&mut server, "ping").await, "ping");
    server.write_all(b"pong").await.unwrap();
    assert_eq!(bench.hear("pong").await, "pong");
}

#[tokio::test]
async fn a_request_that_two_parsers_could_read_in_two_ways_gets_400() {
    for request in [
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n folded: b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        "GET  / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\0b\r\n\r\n",
    ] {
        let mut bench = bench();
        bench.say(request).await;
        let status = bench.hear("\r\n").await;
        assert_eq!(status, "HTTP/1.1 400 Bad Request\r\n", "{request:?}");
        assert_eq!(bench.dialled.load(Ordering::Relaxed), 0, "{request:?} went upstream");
    }
}

#[tokio::test]
async fn length_and_chunked_together_go_upstream_as_chunked_only_and_end_the_connection() {
    let mut bench = bench();
    bench
        .say(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
        )
        .await;
    let mut server = bench.server().await;
    let request = read_until(&mut server, "0\r\n\r\n").await;
    assert!(!request.contains("content-length"), "{request}");
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let mut rest = String::new();
    bench.client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest.matches("HTTP/1.1 200").count(), 1, "{rest:?}");
}

#[tokio::test]
async fn a_server_that_closed_its_idle_connection_is_dialled_again() {
    let mut bench = bench();
    for turn in 1..=2 {
        bench.say("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut server = bench.server().await;
        read_until(&mut server, "\r\n\r\n").await;
        server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        assert!(bench.hear("ok").await.starts_with("HTTP/1.1 200"));
        drop(server);
        assert_eq!(bench.dialled.load(Ordering::Relaxed), turn);
    }
}

/// A connection whose other end can say that it wants to be rid of it.
struct Moving(DuplexStream, Arc<AtomicBool>);

impl Stream for Moving {
    fn leaving(&self) -> Option<Leaving> {
        let leaving = self.1.clone();
        Some(Box::new(move || leaving.load(Ordering::Relaxed)))
    }
}

impl AsyncRead for Moving {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Moving {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_server_that_wants_to_be_rid_of_an_idle_connection_is_dialled_again() {
    let pool = new_pool();
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    let key = PoolKey {
        client: Ipv4Addr::LOCALHOST.into(),
        server,
        http2: false,
        mark: 0,
        generation: 0,
    };
    let leaving = Arc::new(AtomicBool::new(false));
    let (dialled, mut servers) = tokio::sync::mpsc::unbounded_channel();
    let mut kept = Vec::new();
    for (moves, connections) in [(false, 1), (false, 1), (true, 2)] {
        leaving.store(moves, Ordering::Relaxed);
        let dial = || async {
            let (ours, theirs) = duplex(64 << 10);
            dialled.send(theirs).map_err(|_| "the test is over")?;
            Ok::<_, &str>(Moving(ours, leaving.clone()))
        };
        let request = Request::builder().header("host", "a").body(Body::default()).unwrap();
        let serve = async {
            if kept.len() < connections {
                kept.push(servers.recv().await.unwrap());
            }
            let server: &mut DuplexStream = kept.last_mut().unwrap();
            read_until(server, "\r\n\r\n").await;
            server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        };
        let (response, ()) = tokio::join!(pool.send(key, request, dial), serve);
        let body = response.unwrap().into_body();
        http_body_util::BodyExt::collect(body).await.unwrap();
        assert_eq!(kept.len(), connections);
        assert!(servers.is_empty(), "dialled more often");
    }
}

#[tokio::test]
async fn a_request_of_another_generation_goes_by_another_connection() {
    let pool = new_pool();
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    for http2 in [false, true] {
        let key =
            PoolKey { client: Ipv4Addr::LOCALHOST.into(), server, http2, mark: 0, generation: 0 };
        let dialled = AtomicUsize::new(0);
        for (generation, connections) in [(0, 1), (0, 1), (1, 2), (1, 2)] {
            let dial = || async {
                dialled.fetch_add(1, Ordering::Relaxed);
                let (ours, theirs) = duplex(64 << 10);
                tokio::spawn(answer_all(theirs, http2));
                Ok::<_, &str>(ours)
            };
            let request = Request::builder().uri("http://a/").header("host", "a");
            let request = request.body(Body::default()).unwrap();
            let response = pool.send(key.of_generation(generation), request, dial).await;
            let body = response.unwrap().into_body();
            http_body_util::BodyExt::collect(body).await.unwrap();
            assert_eq!(dialled.load(Ordering::Relaxed), connections, "HTTP/2: {http2}");
        }
    }
}

/// A server that has nothing to say to any request.
async fn answer_all(stream: DuplexStream, http2: bool) {
    let nothing = hyper::service::service_fn(|_| async {
        Ok::<_, std::convert::Infallible>(Response::new(http_body_util::Empty::<Bytes>::new()))
    });
    let io = TokioIo::new(stream);
    if http2 {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(io, nothing).await;
    } else {
        let server = hyper::server::conn::http1::Builder::new();
        let _ = server.serve_connection(io, nothing).await;
    }
}

#[tokio::test]
async fn a_server_that_breaks_off_mid_body_breaks_the_client_s_connection_too() {
    let mut bench = bench();
    bench.say("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut server = bench.server().await;
    read_until(&mut server, "\r\n\r\n").await;
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await.unwrap();
    bench.hear("abc").await;
    drop(server);
    let mut rest = Vec::new();
    assert_eq!(bench.client.read_to_end(&mut rest).await.unwrap(), 0);
}

#[tokio::test]
async fn a_chunked_body_passes_whatever_the_method() {
    let mut bench = bench();
    bench
        .say("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .await;
    let request = read_until(&mut bench.server().await, "0\r\n\r\n").await;
    assert!(request.ends_with("3\r\nabc\r\n0\r\n\r\n"), "{request}");
}

#[tokio::test(start_paused = true)]
async fn requests_that_waited_for_an_http_2_dial_that_failed_do_not_queue_up() {
    let pool = Arc::new(new_pool());
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    let key =
        PoolKey { client: Ipv4Addr::LOCALHOST.into(), server, http2: true, mark: 0, generation: 0 };
    let slow = Duration::from_secs(10);
    let began = tokio::time::Instant::now();
    let requests = (0..20).map(|_| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let dial = || async {
                tokio::time::sleep(slow).await;
                Err::<DuplexStream, _>("nobody there")
            };
            pool.send(key, Request::new(Body::default()), dial).await.is_err()
        })
    });
    for request in requests.collect::<Vec<_>>() {
        assert!(request.await.unwrap());
    }
    assert_eq!(began.elapsed(), 2 * slow);
}

/// Tells how a body ended.
struct Ended(tokio::sync::mpsc::UnboundedSender<&'static str>);

impl Tap for Ended {
    fn data(&mut self, _bytes: usize) {}
    fn trailers(&mut self, _trailers: &http::HeaderMap) {
        let _ = self.0.send("trailers");
    }
    fn complete(&mut self) {
        let _ = self.0.send("complete");
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

struct Tapped(Forward, tokio::sync::mpsc::UnboundedSender<&'static str>);

impl Handler for Tapped {
    async fn handle(&self, request: Request<Body>) -> Response<Body> {
        self.0.handle(request).await.map(|body| body.tapped(Ended(self.1.clone())))
    }
}

#[tokio::test]
async fn a_body_that_ends_with_trailers_is_complete() {
    let (connections, mut servers) = tokio::sync::mpsc::unbounded_channel();
    let (ended, mut how) = tokio::sync::mpsc::unbounded_channel();
    let forward = Forward { pool: new_pool(), connections, dialled: Arc::default() };
    let (mut client, agent) = duplex(64 << 10);
    let handler = Arc::new(Tapped(forward, ended));
    tokio::spawn(async move { serve(agent, handler, &plenty(), &CancellationToken::new()).await });
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut server = servers.recv().await.unwrap();
    read_until(&mut server, "\r\n\r\n").await;
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                  3\r\nabc\r\n0\r\nx-sum: 9\r\n\r\n";
    server.write_all(answer.as_bytes()).await.unwrap();
    read_until(&mut client, "x-sum: 9\r\n\r\n").await;
    assert_eq!(how.recv().await, Some("trailers"));
    assert_eq!(how.recv().await, Some("complete"));
}

#[tokio::test(start_paused = true)]
async fn an_http_2_connection_is_closed_once_nothing_was_asked_for_a_while() {
    let (pool, server) = (new_pool(), SocketAddr::from((Ipv4Addr::LOCALHOST, 80)));
    let key =
        PoolKey { client: Ipv4Addr::LOCALHOST.into(), server, http2: true, mark: 0, generation: 0 };
    let (ours, theirs) = duplex(64 << 10);
    let served = tokio::spawn(async move {
        let mut connection = h2::server::handshake(theirs).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                // As long as a connection may be idle.
                tokio::time::sleep(Duration::from_secs(50)).await;
                respond.send_response(Response::new(()), true).unwrap();
            });
        }
    });
    let request = Request::get("http://a/").version(http::Version::HTTP_2).body(Body::default());
    let response = pool.send(key, request.unwrap(), async || Ok::<_, &str>(ours)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    drop(response);
    assert!(!served.is_finished(), "closed while it was in use");
    tokio::time::timeout(Duration::from_secs(100), served).await.unwrap().unwrap();
}
