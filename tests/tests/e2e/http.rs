//! HTTP/1.1 through the mesh, byte for byte at both ends, to a server on the client's own node
//! and to one on another.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::ensure;
use futures_util::FutureExt;
use sluice_tests::{
    Line, Pod, Shop, accept,
    ports::{GRPC, HTTP, TCP, UNDECLARED},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// The end of a head.
const HEAD: &str = "\r\n\r\n";
/// How much a large body has.
const LARGE: usize = 64 << 20;

/// A client's end and the server's of one HTTP connection, after its first request's head.
struct Call {
    client: Line,
    app: Line,
    listener: TcpListener,
    /// The head of the first request as the application saw it.
    asked: String,
}

/// Sends `request` from the client, and lets the application at `server` hear its head.
async fn call(shop: &Shop, server: &Pod, request: &str) -> anyhow::Result<Call> {
    let listener = server.listen(HTTP.target)?;
    let mut client = shop.dial(shop.service(server.name(), HTTP)).await?;
    client.say(request).await?;
    let mut app = accept(&listener).await?;
    let asked = app.hear(HEAD).await?;
    Ok(Call { client, app, listener, asked })
}

/// Whether `head` has this line, whatever the case of its name.
fn has(head: &str, line: &str) -> bool {
    head.lines().any(|other| other.eq_ignore_ascii_case(line))
}

fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let field = head.lines().filter_map(|line| line.split_once(": "));
    field.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

#[tokio::test]
async fn without_agents_a_server_sees_what_was_sent_whatever_it_is() -> anyhow::Result<()> {
    let shop = Shop::without_agents()?;
    let listener = shop.far.listen(HTTP.target)?;
    let mut client = shop.dial(SocketAddr::new(shop.far.ip(), HTTP.target)).await?;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    client.say(request).await?;
    assert_eq!(accept(&listener).await?.hear(HEAD).await?, request);
    Ok(())
}

#[tokio::test]
async fn several_requests_share_one_connection_at_both_ends() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let Call { mut client, mut app, listener, mut asked } =
            call(&shop, server, "GET /1 HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
        for n in 1..=5 {
            assert!(asked.starts_with(&format!("GET /{n} HTTP/1.1\r\n")), "{asked}");
            assert!(value(&asked, "traceparent").is_some(), "not through the mesh: {asked}");
            app.say(format!("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nanswer {n}")).await?;
            let answer = client.hear(&format!("answer {n}")).await?;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            if n < 5 {
                client.say(format!("GET /{} HTTP/1.1\r\nHost: shop\r\n\r\n", n + 1)).await?;
                asked = app.hear(HEAD).await?;
            }
        }
        assert!(listener.accept().now_or_never().is_none(), "the server got a second connection");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_has_a_connection_for_each_of_its_clients_and_as_long_as_they_have()
-> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let listener = server.listen(HTTP.target)?;
        for _ in 0..3 {
            let mut client = shop.dial(shop.service(server.name(), HTTP)).await?;
            client.say("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
            let mut app = accept(&listener).await?;
            app.hear(HEAD).await?;
            app.say("HTTP/1.1 204 No Content\r\n\r\n").await?;
            client.hear(HEAD).await?;
            drop(client);
            assert_eq!(app.rest().await?.0, "");
        }
    }
    Ok(())
}

#[tokio::test]
async fn replicas_take_turns_request_by_request() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    let mut apps = [Counting::start(&shop.near)?, Counting::start(&shop.far)?];
    let mut client = shop.dial(shop.service("both", HTTP)).await?;
    let mut answers = Vec::new();
    for _ in 0..10 {
        client.say("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
        client.hear(HEAD).await?;
        answers.push(client.hear("r").await?);
    }
    assert_eq!(apps.each_mut().map(|app| app.stop()[1]), [5, 5], "{answers:?}");
    assert!(answers.windows(2).all(|two| two[0] != two[1]), "{answers:?}");
    Ok(())
}

/// Answers every request with its pod's name, and counts.
struct Counting {
    tasks: JoinSet<()>,
    /// Connections and requests.
    counts: Arc<[AtomicUsize; 2]>,
}

impl Counting {
    fn start(pod: &Pod) -> anyhow::Result<Self> {
        let listener = pod.listen(HTTP.target)?;
        let name = pod.name().to_owned();
        let counts = Arc::<[AtomicUsize; 2]>::default();
        let mut tasks = JoinSet::new();
        let counting = counts.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counting[0].fetch_add(1, Relaxed);
                let (counting, name) = (counting.clone(), name.clone());
                let mut line = Line::new(stream);
                connections.spawn(async move {
                    while line.hear(HEAD).await.is_ok() {
                        counting[1].fetch_add(1, Relaxed);
                        let length = name.len();
                        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                        if line.say(head + &name).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Ok(Self { tasks, counts })
    }

    /// How many connections and requests there were.
    fn stop(&mut self) -> [usize; 2] {
        self.tasks.abort_all();
        [0, 1].map(|n| self.counts[n].load(Relaxed))
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let three: String =
            (1..=3).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: shop\r\n\r\n")).collect();
        let Call { mut client, mut app, mut asked, .. } = call(&shop, server, &three).await?;
        for n in 1..=3 {
            assert!(asked.starts_with(&format!("GET /{n} ")), "{asked}");
            app.say(format!("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nanswer {n}")).await?;
            if n < 3 {
                asked = app.hear(HEAD).await?;
            }
        }
        let answers = client.hear("answer 3").await?;
        let bodies: Vec<_> =
            answers.match_indices("answer ").map(|(at, _)| &answers[at..at + 8]).collect();
        assert_eq!(bodies, ["answer 1", "answer 2", "answer 3"]);
    }
    Ok(())
}

#[tokio::test]
async fn chunked_bodies_and_trailers_pass_both_ways_while_they_are_written() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let request = "POST / HTTP/1.1\r\nHost: shop\r\nTE: trailers\r\nConnection: TE\r\n\
                       Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\none\r\n";
        let Call { mut client, mut app, asked, .. } = call(&shop, server, request).await?;
        assert!(has(&asked, "transfer-encoding: chunked"), "{asked}");
        assert!(has(&asked, "te: trailers") && has(&asked, "trailer: x-sum"), "{asked}");
        app.hear("3\r\none\r\n").await?;
        // Each part is sent once the part before it has arrived: nothing is held back.
        app.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Took\r\n\r\n").await?;
        app.say("4\r\nfour\r\n").await?;
        let answer = client.hear("4\r\nfour\r\n").await?;
        assert!(has(&answer, "transfer-encoding: chunked"), "{answer}");
        client.say("3\r\ntwo\r\n0\r\nX-Sum: 42\r\n\r\n").await?;
        let rest = app.hear(HEAD).await?.to_ascii_lowercase();
        assert_eq!(rest, "3\r\ntwo\r\n0\r\nx-sum: 42\r\n\r\n");
        app.say("0\r\nX-Took: 7 ms\r\n\r\n").await?;
        assert_eq!(client.hear(HEAD).await?.to_ascii_lowercase(), "0\r\nx-took: 7 ms\r\n\r\n");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it_from_the_server() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let request =
            "PUT / HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
        let Call { mut client, mut app, asked, .. } = call(&shop, server, request).await?;
        assert!(asked.starts_with("PUT / "), "{asked}");
        app.say("HTTP/1.1 100 Continue\r\n\r\n").await?;
        assert_eq!(client.hear(HEAD).await?, "HTTP/1.1 100 Continue\r\n\r\n");
        client.say("body").await?;
        app.hear("body").await?;
        app.say("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await?;
        let answer = client.hear(HEAD).await?;
        assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways_to_its_end() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let request = "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n\r\n";
        let Call { mut client, mut app, asked, .. } = call(&shop, server, request).await?;
        assert!(has(&asked, "connection: upgrade") && has(&asked, "upgrade: websocket"), "{asked}");
        // The server speaks at once, in the same packet.
        app.say(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: x\r\n\r\n\u{1}hello",
        )
        .await?;
        let answer = client.hear(HEAD).await?;
        assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
        assert!(has(&answer, "upgrade: websocket"), "{answer}");
        client.hear("\u{1}hello").await?;
        client.say("\u{2}not HTTP at all").await?;
        app.hear("\u{2}not HTTP at all").await?;
        app.say("\u{3}back").await?;
        client.hear("\u{3}back").await?;
        client.finish().await?;
        assert_eq!(app.rest().await?.0, "");
        app.say("last words").await?;
        drop(app);
        assert_eq!(client.rest().await?.0, "last words");
    }
    Ok(())
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_usable() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let Call { mut client, mut app, .. } =
            call(&shop, server, "HEAD /file HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
        app.say("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nETag: \"e\"\r\n\r\n").await?;
        let answer = client.hear(HEAD).await?;
        assert!(has(&answer, "content-length: 12345"), "{answer}");
        for (request, status) in [("DELETE", "204 No Content"), ("GET", "304 Not Modified")] {
            client.say(format!("{request} /file HTTP/1.1\r\nHost: shop\r\n\r\n")).await?;
            let asked = app.hear(HEAD).await?;
            assert!(asked.starts_with(request), "{asked}");
            app.say(format!("HTTP/1.1 {status}\r\nETag: \"e\"\r\n\r\n")).await?;
            let answer = client.hear(HEAD).await?;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
            assert!(has(&answer, "etag: \"e\""), "{answer}");
            assert_eq!(value(&answer, "transfer-encoding"), None, "{answer}");
        }
        client.say("GET /last HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
        app.hear(HEAD).await?;
        app.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast").await?;
        assert!(client.hear("last").await?.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    Ok(())
}

/// Endless bytes, compared as they arrive: no part of them can be missing or out of place
/// unless that is by a multiple of a prime.
struct Bytes(Vec<u8>);

impl Bytes {
    const PERIOD: usize = 1_000_003;

    fn new(seed: u32) -> Self {
        let mut state = seed;
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        Self(words.take(Self::PERIOD).collect())
    }

    /// Some of them from `offset` on.
    fn from(&self, offset: usize, most: usize) -> &[u8] {
        let rest = &self.0[offset % Self::PERIOD..];
        &rest[..rest.len().min(most)]
    }

    async fn send(&self, to: &mut OwnedWriteHalf) -> anyhow::Result<()> {
        let mut sent = 0;
        while sent < LARGE {
            sent += to.write(self.from(sent, LARGE - sent)).await?;
        }
        Ok(())
    }

    async fn receive(&self, from: &mut OwnedReadHalf) -> anyhow::Result<()> {
        let (mut received, mut buffer) = (0, vec![0; 256 << 10]);
        while received < LARGE {
            let expected = self.from(received, (LARGE - received).min(buffer.len()));
            let read = from.read(&mut buffer[..expected.len()]).await?;
            ensure!(read > 0, "ended after {received} bytes");
            ensure!(buffer[..read] == expected[..read], "other bytes than sent at {received}");
            received += read;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_stream_both_ways_at_once_and_arrive_whole() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let head = format!("POST /x HTTP/1.1\r\nHost: shop\r\nContent-Length: {LARGE}\r\n\r\n");
        let Call { mut client, mut app, .. } = call(&shop, server, &head).await?;
        app.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n")).await?;
        client.hear(HEAD).await?;
        // The answer is under way before the first byte of the question is.
        let sides = [(client, 1, 2), (app, 2, 1)].map(|(line, sends, receives)| {
            tokio::spawn(async move {
                let (mut read, mut write) = line.into_stream().into_split();
                let (sends, receives) = (Bytes::new(sends), Bytes::new(receives));
                tokio::try_join!(sends.send(&mut write), receives.receive(&mut read))
            })
        });
        for side in sides {
            timeout(PATIENCE, side).await???;
        }
    }
    Ok(())
}

/// A body that does not fit into what is between the two.
const LONG: usize = 8 << 20;

#[tokio::test]
async fn a_request_arrives_whole_at_a_server_that_has_answered_and_whose_client_has_gone()
-> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        for fields in ["", "Connection: close\r\n"] {
            let head =
                format!("POST /x HTTP/1.1\r\nHost: shop\r\n{fields}Content-Length: {LONG}\r\n\r\n");
            let Call { mut client, mut app, .. } = call(&shop, server, &head).await?;
            app.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
            client.hear("ok").await?;
            let asking = async {
                client.say("a".repeat(LONG)).await?;
                drop(client);
                anyhow::Ok(())
            };
            // Slower than the client, so that what it says last waits on its way.
            let hearing = async {
                let (mut read, _write) = app.into_stream().into_split();
                let (mut heard, mut piece) = (0, [0; 2048]);
                while heard < LONG {
                    let read = read.read(&mut piece).await?;
                    ensure!(read > 0, "{} ended after {heard} of {LONG} bytes", server.name());
                    heard += read;
                    tokio::task::yield_now().await;
                }
                anyhow::Ok(())
            };
            timeout(PATIENCE, async { tokio::try_join!(asking, hearing) }).await??;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_server_sees_that_its_client_broke_off_within_a_body() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
            let request = format!("POST / HTTP/1.1\r\nHost: shop\r\n{framing}\r\n\r\n");
            let Call { mut client, mut app, .. } = call(&shop, server, &request).await?;
            client.say(if framing.ends_with("10") { "abc" } else { "3\r\nabc\r\n" }).await?;
            app.hear("abc").await?;
            drop(client);
            let (rest, _) = app.rest().await?;
            assert!(matches!(rest.as_str(), "" | "\r\n"), "{framing}: {rest:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_client_sees_that_its_server_broke_off_within_a_body() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
            let Call { mut client, mut app, .. } =
                call(&shop, server, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
            let body = if framing.ends_with("10") { "abc" } else { "3\r\nabc\r\n" };
            app.say(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{body}")).await?;
            client.hear("abc").await?;
            drop(app);
            let (rest, _) = client.rest().await?;
            assert!(matches!(rest.as_str(), "" | "\r\n"), "{framing}: {rest:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_two_parsers_could_read_in_two_ways_is_refused_and_never_reaches_the_server()
-> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let listener = server.listen(HTTP.target)?;
        for request in [
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
            "GET / HTTP/1.1\r\nHost: a\r\nX-Folded: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        ] {
            let mut client = shop.dial(shop.service(server.name(), HTTP)).await?;
            client.say(request).await?;
            let answer = client.hear(HEAD).await?;
            assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{request:?}: {answer}");
            assert!(listener.accept().now_or_never().is_none(), "{request:?} reached the server");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_chunk_is_refused_and_is_not_the_end_of_the_body_for_the_server() -> anyhow::Result<()>
{
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let request = "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n";
        let Call { mut client, mut app, .. } = call(&shop, server, request).await?;
        client.say("3\r\nabc\r\n").await?;
        app.hear("3\r\nabc\r\n").await?;
        client.say("nonsense\r\n").await?;
        let answer = client.hear(HEAD).await?;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert_eq!(app.rest().await?.0, "");
    }
    Ok(())
}

#[tokio::test]
async fn header_names_keep_their_case_both_ways() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let request = "GET / HTTP/1.1\r\nhOsT: shop\r\nX-ODD-case: 1\r\nX-ODD-case: 2\r\n\r\n";
        let Call { mut client, mut app, asked, .. } = call(&shop, server, request).await?;
        for line in ["hOsT: shop\r\n", "X-ODD-case: 1\r\nX-ODD-case: 2\r\n"] {
            assert!(asked.contains(line), "{asked}");
        }
        app.say("HTTP/1.1 200 OK\r\nCONTENT-length: 0\r\nServeR: own\r\n\r\n").await?;
        let answer = client.hear(HEAD).await?;
        for line in ["CONTENT-length: 0\r\n", "ServeR: own\r\n"] {
            assert!(answer.contains(line), "{answer}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn http_is_recognised_wherever_nothing_is_declared() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        const NO_SERVICE: u16 = 5050;
        for (to, target) in [
            (shop.service(server.name(), UNDECLARED), UNDECLARED.target),
            (SocketAddr::new(server.ip(), UNDECLARED.target), UNDECLARED.target),
            (SocketAddr::new(server.ipv6(), UNDECLARED.target), UNDECLARED.target),
            (SocketAddr::new(server.ip(), NO_SERVICE), NO_SERVICE),
            (SocketAddr::new(server.ipv6(), NO_SERVICE), NO_SERVICE),
            // Declared: as HTTP, by the pod's own address too.
            (SocketAddr::new(server.ip(), HTTP.target), HTTP.target),
        ] {
            let asked = ask(&shop, server, to, target).await?;
            assert!(value(&asked, "traceparent").is_some(), "{to} is opaque: {asked}");
        }
        // The same request on a port that is declared opaque is not looked into.
        let asked = ask(&shop, server, shop.service(server.name(), TCP), TCP.target).await?;
        assert_eq!(value(&asked, "traceparent"), None, "{asked}");
        // HTTP/1.1 where HTTP/2 is declared is served all the same.
        let asked = ask(&shop, server, shop.service(server.name(), GRPC), GRPC.target).await?;
        assert!(value(&asked, "traceparent").is_some(), "{asked}");
    }
    Ok(())
}

/// Two requests on one connection, in pieces; returns the second's head as the server saw it.
async fn ask(shop: &Shop, server: &Pod, to: SocketAddr, target: u16) -> anyhow::Result<String> {
    let listener = server.listen(target)?;
    let mut client = shop.dial(to).await?;
    client.say("GET /fir").await?;
    client.say("st HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
    let mut app = accept(&listener).await?;
    app.hear(HEAD).await?;
    app.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst").await?;
    client.hear("first").await?;
    client.say("GET /second HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
    let asked = app.hear(HEAD).await?;
    app.say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond").await?;
    client.hear("second").await?;
    assert!(asked.starts_with("GET /second HTTP/1.1\r\n"), "{asked}");
    Ok(asked)
}
