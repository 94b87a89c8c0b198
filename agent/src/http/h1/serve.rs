//! The server's side of an HTTP/1 connection: one task that answers one request after the other, each
//! by a server of its own choice.

use std::{
    fmt,
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, BufMut, BytesMut};
use futures_util::future::join_all;
use http::{HeaderValue, header};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    conn::Conn,
    exchange::{Between, Exchange, Follow, Outcome},
    framing::{self, Ambiguous, Framing},
    head::{self, Lines, Malformed, RequestHead, ResponseHead},
    known::Known,
    upgrade,
    waiting::Waiting,
};
use crate::{
    http::{
        Stream,
        handler::{Answer, Ended, Handler, Route, Watch},
        message::{AnyRequest, AnyResponse, Fields, Version},
    },
    limits::{Limit, Permit, Share},
};

/// How long the rest of a request is read that its server did not want, so that the client comes to
/// read why: without a byte, and in all.
const LINGER: Duration = Duration::from_secs(5);
const LONGEST_LINGER: Duration = Duration::from_secs(30);
/// Connections to servers that one client's connection keeps. Its requests may go to any number.
const MOST_KEPT: usize = 16;
/// A head of which more has come, without its end, is counted among what waits.
const SMALL_HEAD: usize = 4 << 10;
/// What every HTTP/2 connection begins with (RFC 9113 §3.4), to the end of what looks like a head.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// Why there is no next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum NoRequest {
    #[error(transparent)]
    Head(#[from] Malformed),
    #[error(transparent)]
    Framing(#[from] Ambiguous),
    #[error("{}", Limit::Buffered)]
    Overfull,
}

impl NoRequest {
    /// What its sender is answered.
    fn status(self) -> u16 {
        match self {
            // RFC 6585 §5.
            Self::Head(Malformed::Long | Malformed::Many) => 431,
            Self::Head(_) | Self::Framing(_) => 400,
            Self::Overfull => 503,
        }
    }
}

/// How a connection ended.
pub enum Served<S, R: Route> {
    /// There are no more requests on it.
    Done,
    /// What has been read of it is the beginning of HTTP/2.
    Http2(S, BytesMut),
    /// What follows is no HTTP.
    Tunnel(Box<Tunnel<S, R>>),
}

/// Bytes in both directions, of which some have come already.
pub struct Tunnel<S, R: Route> {
    /// The client's end.
    pub client: (S, BytesMut),
    /// The server's end.
    pub server: (R::Stream, BytesMut),
    /// What led there.
    pub route: R,
}

struct Connection<'a, S, H: Handler> {
    client: Conn<S>,
    handler: &'a H,
    buffered: &'a Arc<Share>,
    ending: &'a CancellationToken,
    waiting: Waiting,
    kept: Vec<Kept<H>>,
}

/// A connection that was made for requests of a key before they were known to be some.
type First<H> = (<<H as Handler>::Route as Route>::Key, <<H as Handler>::Route as Route>::Stream);

/// A server's connection on which nothing is asked for the moment.
struct Kept<H: Handler> {
    key: <H::Route as Route>::Key,
    server: Server<H>,
    /// It has carried a request before.
    used: bool,
}

type Server<H> = Conn<<<H as Handler>::Route as Route>::Stream>;

impl<H: Handler<Route: Route<Stream: Stream>>> Kept<H> {
    fn unused((key, io): First<H>) -> Self {
        Self { key, server: Conn::new(io, BytesMut::new()), used: false }
    }
}

/// What follows an exchange.
enum Next<R: Route> {
    Request,
    Tunnel(Box<(Conn<R::Stream>, R)>),
    /// Nothing may follow, and the client is not to take what it has for everything.
    Reset,
    /// The end, after the client has been given the time to read what it was told last.
    Linger,
}

/// Serves `io`, of which `read` has been read, until the client is done or `ending` is cancelled and
/// what it has asked by then is answered. What waits for readers is counted in `buffered`.
pub fn serve<'a, S, H>(
    io: S,
    read: BytesMut,
    first: Option<First<H>>,
    handler: &'a H,
    buffered: &'a Arc<Share>,
    ending: &'a CancellationToken,
) -> impl Future<Output = Served<S, H::Route>>
where
    S: Stream,
    H: Handler,
    <H::Route as Route>::Stream: Stream,
{
    let mut connection = Connection {
        client: Conn::new(io, read),
        handler,
        buffered,
        ending,
        waiting: Waiting::new(ending),
        kept: first.map(Kept::unused).into_iter().collect(),
    };
    // An async fn would keep its arguments beside what is made of them, for as long as it lasts.
    async move {
        let mut is_first = true;
        loop {
            let head = match connection.head(is_first).await {
                Ok(Head::Request(asked)) => asked,
                Ok(Head::None) => {
                    // A client that ended what it sends may yet hear: a tunnel's stream that is not ended
                    // takes back what is on its way.
                    let client = &mut connection.client;
                    let _ = poll_fn(|cx| client.poll_shutdown(cx)).await;
                    Box::pin(connection.let_go()).await;
                    return Served::Done;
                }
                Ok(Head::Http2) => {
                    let (io, read) = connection.client.into_parts();
                    return Served::Http2(io, read);
                }
                Err(why) => {
                    handler.malformed(why.status(), &why);
                    let answer = Answer::new(why.status(), format!("sluice: {why}\n"));
                    connection.answer(&answer, b"", true);
                    Box::pin(connection.linger()).await;
                    return Served::Done;
                }
            };
            is_first = false;
            // Boxed for as long as it lasts: an idle connection keeps no room for one.
            match Box::pin(connection.exchange(head)).await {
                Next::Request => connection.client.rest(),
                Next::Linger => {
                    Box::pin(connection.linger()).await;
                    return Served::Done;
                }
                Next::Tunnel(led) => {
                    let (server, route) = *led;
                    let (client, server) = (connection.client.into_parts(), server.into_parts());
                    return Served::Tunnel(Box::new(Tunnel { client, server, route }));
                }
                Next::Reset => {
                    Box::pin(connection.reset()).await;
                    return Served::Done;
                }
            }
        }
    }
}

/// What came next on a connection.
enum Head {
    Request(Asked),
    Http2,
    None,
}

/// A request whose body is still to come.
struct Asked {
    head: RequestHead,
    framing: Framing,
    /// For a head that is not small, until it is not needed any more.
    _held: Option<Permit>,
}

impl<S, H> Connection<'_, S, H>
where
    S: Stream,
    H: Handler,
    <H::Route as Route>::Stream: Stream,
{
    async fn head(&mut self, is_first: bool) -> Result<Head, NoRequest> {
        let (mut searched, mut held) = (0, None);
        self.waiting.begin();
        loop {
            let input = &mut self.client.input;
            // An empty line before a request is not one (RFC 9112 §2.2).
            while let [b'\n', ..] | [b'\r', b'\n', ..] = input[..] {
                input.advance(if input[0] == b'\n' { 1 } else { 2 });
                searched = 0;
            }
            let end = head::end(input, searched);
            if end.unwrap_or(input.len()) > SMALL_HEAD && held.is_none() {
                let most = self.buffered.take(head::MOST_BYTES as u64);
                held = Some(most.ok_or(NoRequest::Overfull)?);
            }
            if let Some(end) = end {
                if is_first && input[..end] == *H2_PREFACE {
                    return Ok(Head::Http2);
                }
                let head = RequestHead::parse(input.split_to(end).freeze())?;
                let framing = framing::of_request(&head)?;
                return Ok(Head::Request(Asked { head, framing, _held: held }));
            }
            if searched == 0 && !input.is_empty() {
                self.waiting.begin();
            }
            searched = input.len();
            if searched > head::MOST_BYTES {
                return Err(Malformed::Long.into());
            }
            if !poll_fn(|cx| self.poll_more(cx, searched > 0)).await {
                return Ok(Head::None);
            }
        }
    }

    /// Ready with whether more has come of the client. Servers that leave meanwhile are let go.
    fn poll_more(&mut self, cx: &mut Context<'_>, begun: bool) -> Poll<bool> {
        if let Poll::Ready(read) = self.client.poll_fill(cx) {
            return Poll::Ready(read.is_ok_and(|read| read > 0));
        }
        // Nothing is to be heard of them: an end is one, and bytes are nobody's.
        self.kept.retain_mut(|kept| {
            let stays = kept.server.poll_fill(cx).is_pending();
            if !stays {
                part(&mut kept.server);
            }
            stays
        });
        self.waiting.poll_over(cx, begun).map(|()| false)
    }

    async fn exchange(&mut self, asked: Asked) -> Next<H::Route> {
        let Asked { mut head, framing, _held } = asked;
        upgrade::drop_h2c(&mut head);
        let client_closes = closes(&head, head.version());
        let mut route = match self.handler.route(&mut head).await {
            Ok(route) => route,
            Err(answer) => {
                // Without a body that nobody reads, the next request can follow.
                let stays = answer.is_verdict()
                    && framing == Framing::Length(0)
                    && head.version() == Version::Http11
                    && !client_closes
                    && !self.ending.is_cancelled();
                self.answer(&answer, head.method(), !stays);
                let written = stays && matches!(timeout(LINGER, self.write()).await, Ok(Ok(())));
                return if written { Next::Request } else { Next::Linger };
            }
        };
        let mut reused = self.take(&route.key());
        loop {
            let (mut server, was_used) = match reused.take() {
                Some(Kept { server, used, .. }) => (server, used),
                None => match route.connect().await {
                    Ok(io) => (Conn::new(io, BytesMut::new()), false),
                    Err(answer) => {
                        self.answer(&answer, head.method(), true);
                        route.finish(&Ended::Unsent);
                        // Whoever is told that nobody can be reached may look for somebody else.
                        return Next::Linger;
                    }
                },
            };
            head.write(&mut server.output);
            let mut exchange = Exchange::new(framing);
            let ending = self.ending;
            let mut watched = Watched { route: &mut route, ending, server_closes: false };
            let mut between = Between {
                method: head.method(),
                client: &mut self.client,
                server: &mut server,
                watch: &mut watched,
                buffered: self.buffered,
            };
            let outcome = poll_fn(|cx| exchange.poll(cx, &mut between)).await;
            let server_closes = watched.server_closes;
            let ended = match outcome {
                Outcome::Tunnel => {
                    // It may be in line for a turn that it would not take.
                    drop(exchange);
                    // The answer is still to be written.
                    if let Err(error) = self.write().await {
                        route.finish(&Ended::ClientGone(Some(error)));
                        return Next::Reset;
                    }
                    return Next::Tunnel(Box::new((server, route)));
                }
                Outcome::Through { unread, until_close } => {
                    let key = route.key();
                    route.finish(&Ended::Through);
                    if unread || until_close {
                        return Next::Linger;
                    }
                    // A client that has ended asks for nothing more.
                    let is_last = server_closes || client_closes || exchange.has_ended();
                    if server.input.is_empty() || is_last {
                        self.keep(key, server);
                    } else {
                        part(&mut server);
                    }
                    return if is_last { Next::Linger } else { Next::Request };
                }
                Outcome::Failed(ended) => ended,
            };
            let is_unheard = exchange.is_unheard();
            match &ended {
                Ended::Unanswered(_) if was_used => {
                    if framing == Framing::Length(0) && is_idempotent(head.method()) {
                        continue;
                    }
                    // To the client this is what it would be without anything between: a connection
                    // that was closed while it asked, about which it may know what to do.
                    route.finish(&ended);
                    return Next::Linger;
                }
                // A server that has heard all that its client has to say need not answer.
                Ended::ClientGone(None) => {
                    route.finish(&ended);
                    return Next::Linger;
                }
                Ended::ClientGone(Some(_)) => {
                    server.into_parts().0.abort();
                    route.finish(&ended);
                    return Next::Reset;
                }
                _ if is_unheard => {
                    let answer = route.unanswered(&ended);
                    if !matches!(ended, Ended::Unanswered(_)) {
                        server.into_parts().0.abort();
                    }
                    self.answer(&answer, head.method(), true);
                    route.finish(&ended);
                    return Next::Linger;
                }
                // As it looked to the agent.
                Ended::ServerGone(None) => {
                    route.finish(&ended);
                    return Next::Linger;
                }
                _ => {
                    server.into_parts().0.abort();
                    route.finish(&ended);
                    return Next::Reset;
                }
            }
        }
    }

    fn keep(&mut self, key: <H::Route as Route>::Key, mut server: Server<H>) {
        server.rest();
        if self.kept.len() == MOST_KEPT {
            // The one that was asked longest ago.
            part(&mut self.kept.remove(0).server);
        }
        // Most connections go to one server only.
        self.kept.reserve_exact(1);
        self.kept.push(Kept { key, server, used: true });
    }

    /// A connection that was kept for requests of `key`, unless its server is done with it.
    fn take(&mut self, key: &<H::Route as Route>::Key) -> Option<Kept<H>> {
        let at = self.kept.iter().position(|kept| kept.key == *key)?;
        let mut kept = self.kept.remove(at);
        let mut now = Context::from_waker(Waker::noop());
        let stays = !kept.server.is_leaving() && kept.server.poll_fill(&mut now).is_pending();
        if !stays {
            part(&mut kept.server);
        }
        stays.then_some(kept)
    }

    /// Says something that no server said, to a request of `method`; as the last on this connection where
    /// it `closes`.
    fn answer(&mut self, answer: &Answer, method: &[u8], closes: bool) {
        let Answer { status, text, .. } = answer;
        let reason = http::StatusCode::from_u16(*status).ok();
        let reason = reason.and_then(|status| status.canonical_reason()).unwrap_or_default();
        let out = &mut self.client.output;
        out.put_slice(format!("HTTP/1.1 {status} {reason}\r\n").as_bytes());
        let (kind, length) = (answer.kind(), HeaderValue::from(text.len()));
        let kind = kind.iter().map(|kind| (&header::CONTENT_TYPE, kind));
        for (name, value) in kind.chain([(&header::CONTENT_LENGTH, &length)]).chain(answer.fields())
        {
            for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                out.put_slice(piece);
            }
        }
        out.put_slice(if closes { b"connection: close\r\n\r\n" } else { b"\r\n" });
        // RFC 9110 §9.3.2.
        if method != b"HEAD" {
            self.client.output.put_slice(text.as_bytes());
        }
    }

    async fn write(&mut self) -> io::Result<()> {
        let client = &mut self.client;
        poll_fn(|cx| client.poll_write(cx, &[])).await?;
        poll_fn(|cx| client.poll_flush(cx)).await
    }

    /// Ends the connection as broken. As much of an answer as there was comes before that, as it did from
    /// its server.
    async fn reset(mut self) {
        let _ = timeout(LINGER, self.write()).await;
        let (mut io, _) = self.client.into_parts();
        io.delivered().await;
        io.abort();
    }

    /// Ends the connections of servers that were kept for requests that will not come. A server may have
    /// answered before it has read what it was asked: that is still on its way.
    async fn let_go(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        join_all(kept.into_iter().map(|kept| kept.server.into_parts().0.end())).await;
    }

    /// Ends the connection in such a way that what was said last is heard.
    async fn linger(&mut self) {
        let lingering = async {
            self.write().await?;
            let client = &mut self.client;
            poll_fn(|cx| client.poll_shutdown(cx)).await?;
            self.let_go().await;
            let client = &mut self.client;
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

/// Ends what is said to a server of which nothing more is wanted, in order: a tunnel's stream that is not
/// ended takes back what is on its way.
fn part<S: Stream>(server: &mut Conn<S>) {
    // Never waits: sockets and tunnels' streams take an end at any time.
    let _ = server.poll_shutdown(&mut Context::from_waker(Waker::noop()));
}

/// Notes what decides about the connections.
struct Watched<'a, R> {
    route: &'a mut R,
    ending: &'a CancellationToken,
    server_closes: bool,
}

impl<R: Watch> Follow for Watched<'_, R> {
    fn interim(&mut self, head: &ResponseHead) {
        self.route.interim(head);
    }

    fn response(&mut self, head: &mut ResponseHead) {
        self.route.response(head);
        self.server_closes = closes(head, head.version());
        if self.ending.is_cancelled() && !self.server_closes && !matches!(head.status(), 101) {
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
}

/// Whether a message is the last one of whoever sent it (RFC 9112 §9.3).
fn closes(head: &impl Lines, version: Version) -> bool {
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

impl<S, R: Route> fmt::Debug for Served<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "Done",
            Self::Http2(..) => "Http2",
            Self::Tunnel(_) => "Tunnel",
        })
    }
}
