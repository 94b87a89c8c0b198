//! The server's side of an HTTP/1 connection: one task that answers one request after the other, each
//! by a server of its own choice.

use std::{
    future::{Future, poll_fn},
    io,
    task::{Context, Waker},
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    conn::Conn,
    exchange::{Ended, Exchange, Watch},
    framing::{self, Ambiguous, Framing},
    head::{self, Fields, Malformed, RequestHead, ResponseHead, Version},
    known::Known,
};

/// How long a connection may be silent between two requests: as long as Envoy lets it, for a client
/// whose pool keeps connections longer would meet closed ones.
const IDLE: Duration = Duration::from_secs(3600);
/// How long a head may take from its first byte on.
const HEAD: Duration = Duration::from_secs(20);
/// How long a client is waited for that may not know yet that its connection ends.
const LAST_REQUEST: Duration = Duration::from_secs(1);
/// How long the rest of a request is read that its server did not want, so that the client comes to
/// read why: without a byte, and in all.
const LINGER: Duration = Duration::from_secs(5);
const LONGEST_LINGER: Duration = Duration::from_secs(30);

/// What becomes of the requests of one connection.
pub trait Handler {
    type Route: Route;
    /// Judges a request, whose head it may change.
    fn route(&self, head: &mut RequestHead) -> impl Future<Output = Self::Route> + Send;
    /// Notes that bytes came that are no request.
    fn malformed(&self, why: &NoRequest);
}

/// Where one request goes, and who watches it.
pub trait Route: Watch + Sized {
    type Stream: AsyncRead + AsyncWrite + Unpin;
    /// Requests of the same key may share a connection.
    type Key: Copy + PartialEq;

    fn key(&self) -> Self::Key;
    /// Makes a connection. An error is what the client is answered.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Stream, Answer>> + Send;
    /// What the client is answered where the server was not heard of.
    fn unanswered(&mut self, ended: &Ended) -> Answer;
    /// The exchange has ended; `None` where it never began.
    fn finish(self, ended: Option<&Ended>);
}

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRequest {
    #[error(transparent)]
    Head(#[from] Malformed),
    #[error(transparent)]
    Framing(#[from] Ambiguous),
}

/// A response of our own.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub text: String,
}

/// How a connection ended.
pub enum Served<S, R: Route> {
    /// There are no more requests on it.
    Done,
    /// What follows is no HTTP: bytes in both directions, of which some have come already.
    Tunnel { client: (S, BytesMut), server: (R::Stream, BytesMut), route: R },
    /// Cut: nothing more may be said on it.
    Broken,
}

struct Connection<'a, S, H: Handler> {
    client: Conn<S>,
    handler: &'a H,
    ending: &'a CancellationToken,
    kept: Vec<(<H::Route as Route>::Key, Server<H>)>,
}

type Server<H> = Conn<<<H as Handler>::Route as Route>::Stream>;

/// What follows an exchange.
enum Next<R: Route> {
    Request,
    Tunnel(Conn<R::Stream>, R),
    Broken,
    /// The end, after the client has been given the time to read what it was told last.
    Linger,
}

/// Serves `io`, of which `read` has been read, until the client is done or `ending` is cancelled and
/// what it has asked by then is answered.
pub async fn serve<S, H>(
    io: S,
    read: BytesMut,
    handler: &H,
    ending: &CancellationToken,
) -> Served<S, H::Route>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let mut connection =
        Connection { client: Conn::new(io, read), handler, ending, kept: Vec::new() };
    loop {
        let head = match connection.head().await {
            Ok(Some(head)) => head,
            Ok(None) => return Served::Done,
            Err(why) => {
                handler.malformed(&why);
                let answer = Answer { status: 400, text: format!("{why}\n") };
                connection.answer(&answer, true);
                connection.linger().await;
                return Served::Done;
            }
        };
        match connection.exchange(head).await {
            Next::Request => connection.client.rest(),
            Next::Linger => {
                connection.linger().await;
                return Served::Done;
            }
            Next::Tunnel(server, route) => {
                let (client, server) = (connection.client.into_parts(), server.into_parts());
                return Served::Tunnel { client, server, route };
            }
            Next::Broken => return Served::Broken,
        }
    }
}

impl<S, H> Connection<'_, S, H>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    /// The next request's head; `None` when there is none to come.
    async fn head(&mut self) -> Result<Option<(RequestHead, Framing)>, NoRequest> {
        let mut searched = 0;
        let mut deadline = None;
        loop {
            // An empty line before a request is not one (RFC 9112 §2.2).
            while searched == 0 && self.client.input.starts_with(b"\r\n") {
                let _ = self.client.input.split_to(2);
            }
            if let Some(end) = head::end(&self.client.input, searched) {
                let head = RequestHead::parse(self.client.input.split_to(end).freeze())?;
                let framing = framing::of_request(&head)?;
                return Ok(Some((head, framing)));
            }
            searched = self.client.input.len();
            if searched > head::MOST_BYTES {
                return Err(Malformed::Long.into());
            }
            if searched > 0 {
                deadline.get_or_insert_with(|| Instant::now() + HEAD);
            }
            let client = &mut self.client;
            let fill = poll_fn(|cx| client.poll_fill(cx));
            let read = match deadline {
                Some(deadline) => timeout_at(deadline, fill).await.ok(),
                None => tokio::select! {
                    read = timeout(IDLE, fill) => read.ok(),
                    () = last_request(self.ending) => None,
                },
            };
            match read {
                Some(Ok(read)) if read > 0 => {}
                _ => return Ok(None),
            }
        }
    }

    async fn exchange(&mut self, (mut head, framing): (RequestHead, Framing)) -> Next<H::Route> {
        let mut route = self.handler.route(&mut head).await;
        let client_closes = closes(&head, head.version());
        let mut reused = self.take(route.key());
        loop {
            let (mut server, was_used) = match reused.take() {
                Some(server) => (server, true),
                None => match route.connect().await {
                    Ok(io) => (Conn::new(io, BytesMut::new()), false),
                    Err(answer) => {
                        // What was to follow is not read: it has nowhere to go.
                        let ends = framing != Framing::Length(0) || client_closes;
                        self.answer(&answer, ends);
                        route.finish(None);
                        return if ends { Next::Linger } else { self.flush().await };
                    }
                },
            };
            head.write(&mut server.output);
            let mut exchange = Exchange::new(framing, client_closes);
            let mut watched = Watched { route: &mut route, ending: self.ending, server_closes: false };
            let (client, method) = (&mut self.client, head.method());
            let ended =
                poll_fn(|cx| exchange.poll(cx, method, client, &mut server, &mut watched)).await;
            let server_closes = watched.server_closes;
            let may_send_again = was_used && framing == Framing::Length(0) && is_idempotent(method);
            match ended {
                Ended::Unanswered(_) if may_send_again => continue,
                Ended::Unanswered(_) | Ended::ServerMalformed(_) if exchange.is_unheard() => {
                    let answer = route.unanswered(&ended);
                    self.answer(&answer, true);
                    route.finish(Some(&ended));
                    return Next::Linger;
                }
                Ended::Tunnel => {
                    // The client's first bytes may have come with its request, and the server's with
                    // its answer, which is still to be written.
                    if self.write().await.is_err() {
                        route.finish(Some(&Ended::ClientGone(None)));
                        return Next::Broken;
                    }
                    return Next::Tunnel(server, route);
                }
                Ended::Through { unread, until_close } => {
                    let key = route.key();
                    route.finish(Some(&ended));
                    let last = server_closes || client_closes;
                    if !last && !unread && !until_close && server.input.is_empty() {
                        server.rest();
                        self.kept.push((key, server));
                    }
                    return if unread || until_close || last { Next::Linger } else { Next::Request };
                }
                ended => {
                    route.finish(Some(&ended));
                    return Next::Broken;
                }
            }
        }
    }

    /// A connection that was kept for requests of `key`, unless its server is done with it.
    fn take(&mut self, key: <H::Route as Route>::Key) -> Option<Server<H>> {
        let at = self.kept.iter().position(|(kept, _)| *kept == key)?;
        let (_, mut server) = self.kept.swap_remove(at);
        let mut now = Context::from_waker(Waker::noop());
        // Nothing is to be heard before it is asked: an end is one, and bytes are nobody's.
        server.poll_fill(&mut now).is_pending().then_some(server)
    }

    /// Says something that no server said.
    fn answer(&mut self, answer: &Answer, ends: bool) {
        let Answer { status, text } = answer;
        let close = if ends { "connection: close\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {status} {}\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-length: {}\r\n{close}\r\n",
            reason(*status),
            text.len()
        );
        self.client.output.put_slice(head.as_bytes());
        self.client.output.put_slice(text.as_bytes());
    }

    async fn write(&mut self) -> io::Result<()> {
        let client = &mut self.client;
        poll_fn(|cx| client.poll_write(cx, &[])).await?;
        poll_fn(|cx| client.poll_flush(cx)).await
    }

    async fn flush(&mut self) -> Next<H::Route> {
        match self.write().await {
            Ok(()) => Next::Request,
            Err(_) => Next::Broken,
        }
    }

    /// Ends the connection in such a way that what was said last is heard.
    async fn linger(&mut self) {
        let lingering = async {
            self.write().await?;
            let client = &mut self.client;
            poll_fn(|cx| client.poll_shutdown(cx)).await?;
            // Closed with bytes that nobody read, the kernel would send a reset, which can overtake.
            while timeout(LINGER, poll_fn(|cx| client.poll_fill(cx))).await?? > 0 {
                client.input.clear();
            }
            io::Result::Ok(())
        };
        // Whoever does not read by then has had its time.
        let _ = timeout(LONGEST_LINGER, lingering).await;
    }
}

/// Ready when nothing was asked for a while after `ending` was cancelled.
async fn last_request(ending: &CancellationToken) {
    ending.cancelled().await;
    tokio::time::sleep(LAST_REQUEST).await;
}

/// Notes what decides about the connections.
struct Watched<'a, R> {
    route: &'a mut R,
    ending: &'a CancellationToken,
    server_closes: bool,
}

impl<R: Watch> Watch for Watched<'_, R> {
    fn interim(&mut self, head: &ResponseHead) {
        self.route.interim(head);
    }

    fn response(&mut self, head: &mut ResponseHead) {
        self.route.response(head);
        self.server_closes = closes(head, head.version());
        if self.ending.is_cancelled() && !self.server_closes {
            head.remove_known(Known::Connection);
            head.add("connection", b"close");
            self.server_closes = true;
        }
    }

    fn sent(&mut self, bytes: usize) {
        self.route.sent(bytes);
    }

    fn received(&mut self, bytes: usize) {
        self.route.received(bytes);
    }

    fn trailers(&mut self, lines: &[u8]) {
        self.route.trailers(lines);
    }
}

/// Whether a message is the last one of whoever sent it (RFC 9112 §9.3).
fn closes(head: &impl Fields, version: Version) -> bool {
    let says = |what: &str| {
        let options = head.known(Known::Connection).flat_map(|value| value.split(|b| *b == b','));
        options.map(<[u8]>::trim_ascii).any(|option| option.eq_ignore_ascii_case(what.as_bytes()))
    };
    says("close") || (version == Version::Http10 && !says("keep-alive"))
}

/// Those that may be sent twice (RFC 9110 §9.2.2).
fn is_idempotent(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}

impl<S, R: Route> std::fmt::Debug for Served<S, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done => "Done",
            Self::Tunnel { .. } => "Tunnel",
            Self::Broken => "Broken",
        })
    }
}


#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::{Arc, Mutex},
    };

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Sends every request to the next of its servers, and writes down what became of it.
    #[derive(Clone, Default)]
    struct Bench {
        servers: Arc<Mutex<VecDeque<DuplexStream>>>,
        log: Arc<Mutex<Vec<String>>>,
    }

    struct To(Bench, String);

    impl Handler for Bench {
        type Route = To;
        async fn route(&self, head: &mut RequestHead) -> To {
            head.add("x-seen", b"1");
            To(self.clone(), String::from_utf8_lossy(head.target()).into_owned())
        }
        fn malformed(&self, why: &NoRequest) {
            self.log.lock().unwrap().push(format!("malformed: {why}"));
        }
    }

    impl Watch for To {
        fn response(&mut self, head: &mut ResponseHead) {
            self.1 += &format!(" {}", head.status());
        }
        fn sent(&mut self, _: usize) {}
        fn received(&mut self, _: usize) {}
    }

    impl Route for To {
        type Stream = DuplexStream;
        type Key = ();
        fn key(&self) {}
        async fn connect(&mut self) -> Result<DuplexStream, Answer> {
            let next = self.0.servers.lock().unwrap().pop_front();
            next.ok_or_else(|| Answer { status: 503, text: "nobody\n".into() })
        }
        fn unanswered(&mut self, ended: &Ended) -> Answer {
            Answer { status: 502, text: format!("{ended:?}\n") }
        }
        fn finish(self, ended: Option<&Ended>) {
            let ended = ended.map(|ended| format!("{ended:?}"));
            let word = ended.as_deref().unwrap_or("never").split([' ', '(', '{']).next().unwrap();
            self.0.log.lock().unwrap().push(format!("{} {word}", self.1));
        }
    }

    struct Play {
        client: DuplexStream,
        servers: Vec<DuplexStream>,
        bench: Bench,
        ending: CancellationToken,
        served: tokio::task::JoinHandle<Served<DuplexStream, To>>,
    }

    fn play(servers: usize) -> Play {
        let bench = Bench::default();
        let servers = (0..servers).map(|_| {
            let (far, near) = duplex(64 << 10);
            bench.servers.lock().unwrap().push_back(near);
            far
        });
        let servers = servers.collect();
        let (client, near) = duplex(64 << 10);
        let (handler, ending) = (bench.clone(), CancellationToken::new());
        let token = ending.clone();
        let served =
            tokio::spawn(async move { serve(near, BytesMut::new(), &handler, &token).await });
        Play { client, servers, bench, ending, served }
    }

    async fn hear(stream: &mut DuplexStream, expected: &str) {
        let mut bytes = vec![0; expected.len()];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }

    async fn say(stream: &mut DuplexStream, text: &str) {
        stream.write_all(text.as_bytes()).await.unwrap();
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")
    }

    fn seen(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: h\r\nx-seen: 1\r\n\r\n")
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    #[tokio::test(start_paused = true)]
    async fn requests_of_a_connection_go_one_by_one_over_one_of_its_own() {
        let mut play = play(1);
        say(&mut play.client, &format!("{}{}", get("/a"), get("/b"))).await;
        for path in ["/a", "/b"] {
            hear(&mut play.servers[0], &seen(path)).await;
            say(&mut play.servers[0], OK).await;
            hear(&mut play.client, OK).await;
        }
        drop(play.client);
        assert!(matches!(play.served.await.unwrap(), Served::Done));
        assert_eq!(*play.bench.log.lock().unwrap(), ["/a 200 Through", "/b 200 Through"]);
        // With the client, its server's connection goes.
        assert_eq!(play.servers[0].read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_closes_between_requests_or_at_the_next_is_asked_anew() {
        for at_the_next in [false, true] {
            let mut play = play(2);
            let mut second = play.servers.pop().unwrap();
            let mut first = play.servers.pop().unwrap();
            say(&mut play.client, &get("/a")).await;
            hear(&mut first, &seen("/a")).await;
            say(&mut first, OK).await;
            hear(&mut play.client, OK).await;
            if at_the_next {
                say(&mut play.client, &get("/b")).await;
                hear(&mut first, "G").await;
                drop(first);
            } else {
                drop(first);
                say(&mut play.client, &get("/b")).await;
            }
            hear(&mut second, &seen("/b")).await;
            say(&mut second, OK).await;
            hear(&mut play.client, OK).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_may_not_be_sent_twice_is_not() {
        let mut play = play(2);
        say(&mut play.client, &get("/a")).await;
        hear(&mut play.servers[0], &seen("/a")).await;
        say(&mut play.servers[0], OK).await;
        hear(&mut play.client, OK).await;
        say(&mut play.client, "POST /b HTTP/1.1\r\nHost: h\r\n\r\n").await;
        hear(&mut play.servers[0], "POST").await;
        drop(play.servers);
        hear(&mut play.client, "HTTP/1.1 502 Bad Gateway\r\n").await;
        drop(play.client);
        play.served.await.unwrap();
        assert_eq!(*play.bench.log.lock().unwrap(), ["/a 200 Through", "/b Unanswered"]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_says_close_is_believed() {
        let closes = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
        let close = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
        for (request, answer) in [(close, OK), (&*get("/"), closes), ("GET / HTTP/1.0\r\n\r\n", OK)] {
            let mut play = play(1);
            say(&mut play.client, request).await;
            hear(&mut play.servers[0], &request[..request.len() - 2]).await;
            say(&mut play.servers[0], answer).await;
            let mut heard = String::new();
            play.client.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, answer);
            drop(play.client);
            play.served.await.unwrap();
            let mut rest = String::new();
            play.servers[0].read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "x-seen: 1\r\n\r\n");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_request_is_answered_and_noted() {
        for (bytes, why) in [
            ("GET / HTTP/1.1\r\n\r\n", "no Host in HTTP/1.1"),
            ("GET /a b HTTP/1.1\r\n\r\n", "the start line is not HTTP/1"),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", "a Content-Length that is no number"),
        ] {
            let mut play = play(0);
            say(&mut play.client, bytes).await;
            hear(&mut play.client, "HTTP/1.1 400 Bad Request\r\n").await;
            drop(play.client);
            play.served.await.unwrap();
            assert_eq!(*play.bench.log.lock().unwrap(), [format!("malformed: {why}")]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_cannot_be_sent_on_may_ask_again() {
        let mut play = play(0);
        for _ in 0..2 {
            say(&mut play.client, &get("/")).await;
            hear(&mut play.client, "HTTP/1.1 503 Service Unavailable\r\n").await;
            let rest = "content-type: text/plain; charset=utf-8\r\ncontent-length: 7\r\n\r\nnobody\n";
            hear(&mut play.client, rest).await;
        }
        assert_eq!(*play.bench.log.lock().unwrap(), ["/ never", "/ never"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ends_answers_what_was_asked_and_says_so() {
        let mut play = play(1);
        say(&mut play.client, &get("/a")).await;
        hear(&mut play.servers[0], &seen("/a")).await;
        play.ending.cancel();
        say(&mut play.servers[0], OK).await;
        let mut heard = String::new();
        play.client.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nconnection: close\r\n\r\nok");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_that_is_to_end_waits_for_one_more_request_and_no_longer() {
        let mut play = play(1);
        play.ending.cancel();
        let began = Instant::now();
        assert_eq!(play.client.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(began.elapsed(), LAST_REQUEST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_end_is_hung_up_on() {
        let mut play = play(0);
        say(&mut play.client, "GET / HTTP/1.1\r\n").await;
        assert_eq!(play.client.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_follows_an_upgrade_belongs_to_no_message() {
        let mut play = play(1);
        say(&mut play.client, "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\nearly").await;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
        say(&mut play.servers[0], &format!("{switch}first")).await;
        hear(&mut play.client, switch).await;
        let Served::Tunnel { client, server, .. } = play.served.await.unwrap() else { panic!() };
        assert_eq!((&client.1[..], &server.1[..]), (&b"early"[..], &b"first"[..]));
    }
}
