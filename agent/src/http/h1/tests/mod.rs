//! Requests through [`serve`], byte for byte on both ends.

mod drain;
mod reuse;
mod silence;
mod unread;

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{Served, Tunnel, serve};
use crate::{
    http::{
        Stream,
        handler::{Answer, Ended, Handler, Route, Watch},
        message::{AnyRequest, AnyResponse},
    },
    limits::{Budget, Share},
};

/// Sends every request to a server that the test plays, and writes down what became of it.
#[derive(Clone)]
struct Forward {
    /// `None` where nobody can be reached.
    servers: Option<UnboundedSender<DuplexStream>>,
    dialled: Arc<AtomicUsize>,
    /// Servers want to be rid of their connections.
    leaving: Arc<AtomicBool>,
    log: Arc<Mutex<Vec<String>>>,
}

struct To(Forward, String);

impl Handler for Forward {
    type Route = To;

    async fn route(&self, request: &mut (impl AnyRequest + Send)) -> Result<To, Answer> {
        request.add("x-seen", b"1");
        if request.target().path == b"/refused" {
            return Err(Answer::new(403, "no".into()));
        }
        Ok(To(self.clone(), String::from_utf8_lossy(request.target().path).into_owned()))
    }

    fn malformed(&self, status: u16, why: &dyn fmt::Display) {
        self.log.lock().unwrap().push(format!("{status}: {why}"));
    }
}

impl Watch for To {
    fn response(&mut self, head: &mut impl AnyResponse) {
        self.1 += &format!(" {}", head.status());
    }
    fn sent(&mut self, _: usize) {}
    fn received(&mut self, _: usize) {}
}

impl Route for To {
    type Stream = Moving;
    type Key = ();

    fn key(&self) {}

    async fn connect(&mut self) -> Result<Moving, Answer> {
        let nobody = || Answer::new(503, "nobody\n".into());
        let servers = self.0.servers.as_ref().ok_or_else(nobody)?;
        self.0.dialled.fetch_add(1, Relaxed);
        let (ours, theirs) = duplex(64 << 10);
        servers.send(theirs).map_err(|_| nobody())?;
        Ok(Moving(ours, self.0.leaving.clone()))
    }

    fn unanswered(&mut self, ended: &Ended) -> Answer {
        Answer::new(502, format!("{ended}\n"))
    }

    fn finish(self, ended: &Ended) {
        let ended = format!("{ended:?}");
        let word = ended.split([' ', '(', '{']).next().unwrap();
        self.0.log.lock().unwrap().push(format!("{} {word}", self.1));
    }
}

/// A connection whose other end can say that it wants to be rid of it.
struct Moving(DuplexStream, Arc<AtomicBool>);

impl Stream for Moving {
    fn is_leaving(&self) -> bool {
        self.1.load(Relaxed)
    }

    fn abort(self) {}
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

/// A client's end, and the servers' ends as they are dialled.
struct Bench {
    client: DuplexStream,
    servers: UnboundedReceiver<DuplexStream>,
    forward: Forward,
    drain: CancellationToken,
    served: JoinHandle<Served<DuplexStream, To>>,
}

fn bench() -> Bench {
    bench_with(64 << 10, &Budget::new(128 << 20).share())
}

/// As many bytes are on their way to and from the client at most; what waits counts in `buffered`.
fn bench_with(room: usize, buffered: &Arc<Share>) -> Bench {
    let (sender, servers) = unbounded_channel();
    let forward = Forward {
        servers: Some(sender),
        dialled: Arc::default(),
        leaving: Arc::default(),
        log: Arc::default(),
    };
    begin(room, buffered, forward, servers, None)
}

/// With a connection to a server that was made before.
fn bench_on(first: Option<DuplexStream>) -> Bench {
    let (sender, servers) = unbounded_channel();
    let forward = Forward {
        servers: Some(sender),
        dialled: Arc::default(),
        leaving: Arc::default(),
        log: Arc::default(),
    };
    begin(64 << 10, &Budget::new(1 << 20).share(), forward, servers, first)
}

fn begin(
    room: usize,
    buffered: &Arc<Share>,
    forward: Forward,
    servers: UnboundedReceiver<DuplexStream>,
    first: Option<DuplexStream>,
) -> Bench {
    let (client, near) = duplex(room);
    let (handler, drain, buffered) = (forward.clone(), CancellationToken::new(), buffered.clone());
    let asked = drain.clone();
    let first = first.map(|io| ((), Moving(io, forward.leaving.clone())));
    let served = tokio::spawn(async move {
        serve(near, BytesMut::new(), first, &handler, &buffered, &asked).await
    });
    Bench { client, servers, forward, drain, served }
}

impl Bench {
    async fn say(&mut self, text: &str) {
        say(&mut self.client, text).await;
    }

    async fn hear(&mut self, expected: &str) {
        hear(&mut self.client, expected).await;
    }

    async fn server(&mut self) -> DuplexStream {
        self.servers.recv().await.unwrap()
    }

    fn dialled(&self) -> usize {
        self.forward.dialled.load(Relaxed)
    }

    /// Everything that is left to be heard, once the connection has ended.
    async fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.client.read_to_string(&mut rest).await.unwrap();
        rest
    }

    /// What became of the requests, once the connection has ended.
    async fn log(self) -> Vec<String> {
        drop(self.client);
        self.served.await.unwrap();
        self.forward.log.lock().unwrap().clone()
    }
}

async fn say(stream: &mut DuplexStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn hear(stream: &mut DuplexStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    let heard = stream.read_exact(&mut bytes).await;
    assert_eq!(String::from_utf8_lossy(&bytes), expected, "{heard:?}");
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")
}

fn seen(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\nx-seen: 1\r\n\r\n")
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test(start_paused = true)]
async fn pipelined_requests_go_one_by_one_over_one_connection_of_the_clients_own() {
    let mut bench = bench();
    bench.say(&format!("{}{}", get("/a"), get("/b"))).await;
    let mut server = bench.server().await;
    for path in ["/a", "/b"] {
        hear(&mut server, &seen(path)).await;
        say(&mut server, OK).await;
        bench.hear(OK).await;
    }
    assert_eq!(bench.dialled(), 1);
    assert_eq!(bench.log().await, ["/a 200 Through", "/b 200 Through"]);
    // With the client, its server's connection goes.
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_says_close_is_believed() {
    let closes = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    let close = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    for (request, answer) in [(close, OK), (&*get("/"), closes), ("GET / HTTP/1.0\r\n\r\n", OK)] {
        let mut bench = bench();
        bench.say(request).await;
        let mut server = bench.server().await;
        hear(&mut server, &request[..request.len() - 2]).await;
        say(&mut server, answer).await;
        assert_eq!(bench.rest().await, answer);
        bench.log().await;
        let mut rest = String::new();
        server.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "x-seen: 1\r\n\r\n");
    }
}

#[tokio::test(start_paused = true)]
async fn what_two_readers_could_read_in_two_ways_is_answered_here_and_noted() {
    for (request, status, why) in [
        ("GET / HTTP/1.1\r\n\r\n", 400, "no Host in HTTP/1.1"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, "more than one Host"),
        ("GET /a b HTTP/1.1\r\n\r\n", 400, "the start line is not HTTP/1"),
        ("GET  / HTTP/1.1\r\nhost: a\r\n\r\n", 400, "the start line is not HTTP/1"),
        ("GET / HTTP/1.1\r\nhost: a\r\n folded: b\r\n\r\n", 400, "a field's name is not a token"),
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", 400, "a field's name is not a token"),
        (
            "GET / HTTP/1.1\r\nhost: a\0b\r\n\r\n",
            400,
            "a field's value has a byte that none may have",
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
            400,
            "a Content-Length that is no number",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n\
             0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
            400,
            "a Content-Length beside a Transfer-Encoding",
        ),
    ] {
        let mut bench = bench();
        bench.say(request).await;
        bench.hear("HTTP/1.1 400 Bad Request\r\n").await;
        assert!(bench.rest().await.contains("connection: close\r\n"));
        assert_eq!(bench.dialled(), 0, "{request:?}");
        assert_eq!(bench.log().await, [format!("{status}: {why}")]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_too_long_is_told_so() {
    let mut bench = bench();
    bench.say(&format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "a: b\r\n".repeat(1001))).await;
    bench.hear("HTTP/1.1 431 Request Header Fields Too Large\r\n").await;
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_request_cannot_be_sent_on_is_told_so_and_may_look_for_somebody_else() {
    let (sender, servers) = unbounded_channel();
    drop(sender);
    let forward = Forward {
        servers: None,
        dialled: Arc::default(),
        leaving: Arc::default(),
        log: Arc::default(),
    };
    let mut bench = begin(64 << 10, &Budget::new(1 << 20).share(), forward, servers, None);
    bench.say(&get("/")).await;
    assert_eq!(
        bench.rest().await,
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
         content-length: 7\r\nconnection: close\r\n\r\nnobody\n"
    );
    assert_eq!(bench.log().await, ["/ Unsent"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_breaks_off_mid_body_ends_the_clients_connection_too() {
    let mut bench = bench();
    bench.say(&get("/")).await;
    let mut server = bench.server().await;
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc";
    say(&mut server, cut).await;
    drop(server);
    assert_eq!(bench.rest().await, cut);
    assert_eq!(bench.log().await, ["/ 200 ServerGone"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_an_answer_is_said_to_be_none() {
    let mut bench = bench();
    bench.say(&get("/")).await;
    drop(bench.server().await);
    bench.hear("HTTP/1.1 502 Bad Gateway\r\n").await;
    assert!(bench.rest().await.ends_with("the server closed without an answer\n"));
    assert_eq!(bench.log().await, ["/ Unanswered"]);
}

#[tokio::test(start_paused = true)]
async fn a_head_request_is_answered_here_without_a_body() {
    let mut bench = bench();
    bench.say("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    drop(bench.server().await);
    assert!(bench.rest().await.ends_with("connection: close\r\n\r\n"));
}

#[tokio::test(start_paused = true)]
async fn empty_lines_before_a_request_are_none_in_however_many_pieces_they_come() {
    let mut bench = bench();
    for piece in ["\r", "\n\n\r", "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"] {
        bench.say(piece).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    hear(&mut bench.server().await, &seen("/")).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_shuts_and_is_not_answered_hears_an_end() {
    let mut bench = bench();
    bench.say(&format!("{}{}", get("/a"), get("/b"))).await;
    bench.client.shutdown().await.unwrap();
    let mut server = bench.server().await;
    hear(&mut server, &seen("/a")).await;
    say(&mut server, OK).await;
    bench.hear(OK).await;
    // The second is asked, and that nothing more comes is passed on.
    let mut heard = String::new();
    server.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, seen("/b"));
    drop(server);
    assert_eq!(bench.rest().await, "");
    assert_eq!(bench.log().await, ["/a 200 Through", "/b ClientGone"]);
}

#[tokio::test(start_paused = true)]
async fn what_follows_an_upgrade_belongs_to_no_message() {
    let mut bench = bench();
    bench.say("GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\nearly").await;
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    let mut server = bench.server().await;
    say(&mut server, &format!("{switch}first")).await;
    bench.hear(switch).await;
    let Served::Tunnel(led) = bench.served.await.unwrap() else { panic!() };
    let Tunnel { client, server, .. } = *led;
    assert_eq!((&client.1[..], &server.1[..]), (&b"early"[..], &b"first"[..]));
}

#[tokio::test(start_paused = true)]
async fn the_beginning_of_http_2_is_handed_on_as_it_came() {
    let mut bench = bench();
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    bench.say(preface).await;
    let Served::Http2(_, read) = bench.served.await.unwrap() else { panic!() };
    assert_eq!(&read[..], preface.as_bytes());
}

#[tokio::test]
async fn a_refused_request_without_a_body_leaves_its_connection_to_the_next() {
    let refusal = |more: &str| {
        format!(
            "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-length: 2\r\n{more}\r\nno"
        )
    };
    let mut bench = bench();
    for _ in 0..2 {
        bench.say("GET /refused HTTP/1.1\r\nHost: a\r\n\r\n").await;
        bench.hear(&refusal("")).await;
    }
    bench.say("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut server = bench.server().await;
    hear(&mut server, "GET /a HTTP/1.1\r\nHost: a\r\nx-seen: 1\r\n\r\n").await;
    say(&mut server, "HTTP/1.1 204 No Content\r\n\r\n").await;
    bench.hear("HTTP/1.1 204 No Content\r\n\r\n").await;
    // Nobody reads the body of one that is refused.
    bench.say("POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n").await;
    bench.hear(&refusal("connection: close\r\n")).await;
    assert_eq!(bench.rest().await, "");
}
