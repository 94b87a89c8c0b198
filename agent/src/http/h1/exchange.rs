//! One request and its response, passed between two connections.
//!
//! Both bodies move at once, in one task and out of one buffer each: what was read of one end is
//! written to the other from where it lies. While nothing is left to be passed on of a request, its
//! client is watched: one that leaves has its request ended.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    chunked::{self, Chunked},
    conn::Conn,
    framing::{self, Ambiguous, Framing},
    head::{self, Fields, Malformed, ResponseHead},
};

/// What a client may have sent of its next requests before more is left with the kernel.
const MOST_PIPELINED: usize = 16 << 10;

/// Is told what passes.
pub trait Watch {
    /// An interim response (RFC 9110 §15.2).
    fn interim(&mut self, _head: &ResponseHead) {}
    /// The response, which may be changed before it goes on.
    fn response(&mut self, head: &mut ResponseHead);
    /// Content of the request has gone on.
    fn sent(&mut self, bytes: usize);
    /// Content of the response has gone on.
    fn received(&mut self, bytes: usize);
    /// The response's trailers have gone on.
    fn trailers(&mut self, _lines: &[u8]) {}
}

/// How an exchange ended.
#[derive(Debug)]
pub enum Ended {
    /// The response is through, and the request too unless `unread` says otherwise: its server did
    /// not want the rest.
    Through { unread: bool, until_close: bool },
    /// From here on there are no messages.
    Tunnel,
    /// The client left.
    ClientGone(Option<io::Error>),
    /// The client's body is not framed as HTTP says.
    ClientMalformed(chunked::Broken),
    /// The server closed before it answered a byte.
    Unanswered(Option<io::Error>),
    /// The server closed within its answer.
    ServerGone(Option<io::Error>),
    /// What the server answered is no response.
    ServerMalformed(NoResponse),
}

/// Why what a server answered is no response.
#[derive(Debug, thiserror::Error)]
pub enum NoResponse {
    #[error(transparent)]
    Head(#[from] Malformed),
    #[error(transparent)]
    Framing(#[from] Ambiguous),
    #[error(transparent)]
    Body(#[from] chunked::Broken),
}

/// One body on its way.
#[derive(Debug)]
struct Passing {
    left: Left,
    /// At the front of the source's input: as many bytes go on, and as many behind are left out.
    on: usize,
    out: usize,
    /// Of those that go on: content, and trailers, which are last.
    data: usize,
    trailers: usize,
}

#[derive(Debug)]
enum Left {
    Length(u64),
    Chunks(Chunked),
    Everything,
    Nothing,
}

/// Which end of a passage broke.
enum Broken {
    Source(Option<io::Error>),
    Sink(io::Error),
    Framing(chunked::Broken),
}

impl Passing {
    fn new(framing: Framing) -> Self {
        let left = match framing {
            Framing::Length(0) | Framing::Tunnel => Left::Nothing,
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Chunks(Chunked::default()),
            Framing::UntilClose => Left::Everything,
        };
        Self { left, on: 0, out: 0, data: 0, trailers: 0 }
    }

    /// Ready once all of it has gone on.
    fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Conn<A>,
        sink: &mut Conn<B>,
        passed: &mut impl FnMut(usize, &[u8]),
    ) -> Poll<Result<(), Broken>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            while self.on > 0 || !sink.output.is_empty() {
                let wrote = ready!(sink.poll_write(cx, &source.input[..self.on]));
                let wrote = wrote.map_err(Broken::Sink)?;
                self.passed(wrote, &source.input, passed);
                source.input.advance(wrote);
            }
            source.input.advance(std::mem::take(&mut self.out));
            if self.look(&source.input).map_err(Broken::Framing)? {
                continue;
            }
            if matches!(self.left, Left::Nothing) {
                return sink.poll_flush(cx).map_err(Broken::Sink);
            }
            let Poll::Ready(read) = source.poll_fill(cx) else {
                // What was written so far may be all for a long time.
                ready!(sink.poll_flush(cx)).map_err(Broken::Sink)?;
                return Poll::Pending;
            };
            if read.map_err(|error| Broken::Source(Some(error)))? == 0 {
                match self.left {
                    Left::Everything => self.left = Left::Nothing,
                    _ => return Poll::Ready(Err(Broken::Source(None))),
                }
            }
        }
    }

    /// Finds out what of `input` goes on; whether anything does.
    fn look(&mut self, input: &[u8]) -> Result<bool, chunked::Broken> {
        match &mut self.left {
            Left::Nothing => {}
            Left::Everything => (self.on, self.data) = (input.len(), input.len()),
            Left::Length(left) => {
                let there = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= there as u64;
                (self.on, self.data) = (there, there);
                if *left == 0 {
                    self.left = Left::Nothing;
                }
            }
            Left::Chunks(chunks) => {
                let chunked::Passed { on, out, data, trailers } = chunks.follow(input)?;
                (self.on, self.out, self.data, self.trailers) = (on, out, data, trailers);
                if chunks.is_through() {
                    self.left = Left::Nothing;
                }
            }
        }
        Ok(self.on > 0 || self.out > 0)
    }

    /// Notes that the first `wrote` bytes of `input` have gone on.
    fn passed(&mut self, wrote: usize, input: &[u8], passed: &mut impl FnMut(usize, &[u8])) {
        self.on -= wrote;
        if self.on == 0 && wrote > 0 {
            // Told once they are all through: content is not told from its framing before.
            let trailers = std::mem::take(&mut self.trailers);
            passed(std::mem::take(&mut self.data), &input[wrote - trailers.min(wrote)..wrote]);
        }
    }
}

/// How far a request has come.
#[derive(Debug)]
enum Up {
    Body(Passing),
    Through,
    /// The server does not take the rest.
    Refused,
}

/// How far its response has.
#[derive(Debug)]
enum Down {
    /// As many bytes of it have been looked at.
    Head(usize),
    Body(Passing),
    Through,
}

/// One request and its response.
#[derive(Debug)]
pub struct Exchange {
    up: Up,
    down: Down,
    /// A client that ends has not left: it said that it would ask nothing more.
    may_end: bool,
    until_close: bool,
    /// Something of an answer has gone on to the client.
    heard: bool,
}

impl Exchange {
    /// Of a request whose head waits to be written, and whose body follows in the client's input.
    pub fn new(request: Framing, may_end: bool) -> Self {
        let up = Up::Body(Passing::new(request));
        Self { up, down: Down::Head(0), may_end, until_close: false, heard: false }
    }

    /// Whether nothing of an answer has gone on, so that the client can be given another.
    pub fn is_unheard(&self) -> bool {
        !self.heard
    }

    /// Passes on what can be.
    pub fn poll<C, S>(
        &mut self,
        cx: &mut Context<'_>,
        method: &[u8],
        client: &mut Conn<C>,
        server: &mut Conn<S>,
        watch: &mut impl Watch,
    ) -> Poll<Ended>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if let Poll::Ready(ended) = self.poll_up(cx, client, server, watch) {
            return Poll::Ready(ended);
        }
        if let Some(ended) = ready_or_none(self.poll_down(cx, method, client, server, watch)) {
            return Poll::Ready(ended);
        }
        match (&self.down, &self.up) {
            (Down::Through, Up::Through) => self.through(false),
            (Down::Through, Up::Refused) => self.through(true),
            // A server that has ended wants no more either.
            (Down::Through, Up::Body(_)) if self.until_close || server.has_ended() => {
                self.through(true)
            }
            _ => Poll::Pending,
        }
    }

    fn through(&self, unread: bool) -> Poll<Ended> {
        Poll::Ready(Ended::Through { unread, until_close: self.until_close })
    }

    fn poll_up<C, S>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Conn<C>,
        server: &mut Conn<S>,
        watch: &mut impl Watch,
    ) -> Poll<Ended>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if let Up::Body(body) = &mut self.up {
            let mut sent = |bytes, _: &[u8]| watch.sent(bytes);
            match ready!(body.poll(cx, client, server, &mut sent)) {
                Ok(()) => self.up = Up::Through,
                Err(Broken::Source(error)) => return Poll::Ready(Ended::ClientGone(error)),
                Err(Broken::Framing(why)) => return Poll::Ready(Ended::ClientMalformed(why)),
                // It may have answered all the same.
                Err(Broken::Sink(_)) => self.up = Up::Refused,
            }
        }
        loop {
            if matches!(self.up, Up::Refused) {
                client.input.clear();
            }
            if client.input.len() >= MOST_PIPELINED || (client.has_ended() && self.may_end) {
                return Poll::Pending;
            }
            match ready!(client.poll_fill(cx)) {
                Ok(0) if self.may_end => {}
                Ok(0) => return Poll::Ready(Ended::ClientGone(None)),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Ended::ClientGone(Some(error))),
            }
        }
    }

    /// Ready where the exchange cannot go on; pending where there is nothing more to do now.
    fn poll_down<C, S>(
        &mut self,
        cx: &mut Context<'_>,
        method: &[u8],
        client: &mut Conn<C>,
        server: &mut Conn<S>,
        watch: &mut impl Watch,
    ) -> Poll<Ended>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            match &mut self.down {
                Down::Through => return Poll::Pending,
                Down::Body(body) => {
                    let mut received = |bytes, trailers: &[u8]| {
                        watch.received(bytes);
                        if !trailers.is_empty() {
                            watch.trailers(trailers);
                        }
                    };
                    match ready!(body.poll(cx, server, client, &mut received)) {
                        Ok(()) => self.down = Down::Through,
                        Err(Broken::Source(error)) => return Poll::Ready(Ended::ServerGone(error)),
                        Err(Broken::Sink(error)) => {
                            return Poll::Ready(Ended::ClientGone(Some(error)));
                        }
                        Err(Broken::Framing(why)) => {
                            return Poll::Ready(Ended::ServerMalformed(why.into()));
                        }
                    }
                }
                Down::Head(searched) => {
                    if let Some(end) = head::end(&server.input, *searched) {
                        *searched = 0;
                        let head = server.input.split_to(end);
                        match self.head(head, method, client, watch) {
                            Ok(None) => continue,
                            Ok(Some(ended)) => return Poll::Ready(ended),
                            Err(why) => return Poll::Ready(Ended::ServerMalformed(why)),
                        }
                    }
                    *searched = server.input.len();
                    if *searched > head::MOST_BYTES {
                        return Poll::Ready(Ended::ServerMalformed(Malformed::Long.into()));
                    }
                    let Poll::Ready(read) = server.poll_fill(cx) else {
                        // An interim response does not wait for what follows.
                        if !client.output.is_empty()
                            && let Err(error) = ready!(client.poll_write(cx, &[]))
                        {
                            return Poll::Ready(Ended::ClientGone(Some(error)));
                        }
                        return match ready!(client.poll_flush(cx)) {
                            Ok(()) => Poll::Pending,
                            Err(error) => Poll::Ready(Ended::ClientGone(Some(error))),
                        };
                    };
                    let error = match read {
                        Ok(0) => None,
                        Ok(_) => continue,
                        Err(error) => Some(error),
                    };
                    return Poll::Ready(match *searched {
                        0 if !self.heard => Ended::Unanswered(error),
                        _ => Ended::ServerGone(error),
                    });
                }
            }
        }
    }

    fn head<C: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        head: bytes::BytesMut,
        method: &[u8],
        client: &mut Conn<C>,
        watch: &mut impl Watch,
    ) -> Result<Option<Ended>, NoResponse> {
        let mut head = ResponseHead::parse(head)?;
        let framing = framing::of_response(&mut head, method)?;
        self.heard = true;
        if matches!(head.status(), 100..200) && framing != Framing::Tunnel {
            watch.interim(&head);
            head.write(&mut client.output);
            return Ok(None);
        }
        watch.response(&mut head);
        head.write(&mut client.output);
        if framing == Framing::Tunnel {
            return Ok(Some(Ended::Tunnel));
        }
        self.until_close = framing == Framing::UntilClose;
        self.down = Down::Body(Passing::new(framing));
        Ok(None)
    }
}

fn ready_or_none(poll: Poll<Ended>) -> Option<Ended> {
    match poll {
        Poll::Ready(ended) => Some(ended),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use super::head::RequestHead;

    #[derive(Debug, Default)]
    struct Seen {
        interim: Vec<u16>,
        status: Option<u16>,
        sent: usize,
        received: usize,
        trailers: String,
    }

    impl Watch for Seen {
        fn interim(&mut self, head: &ResponseHead) {
            self.interim.push(head.status());
        }
        fn response(&mut self, head: &mut ResponseHead) {
            self.status = Some(head.status());
        }
        fn sent(&mut self, bytes: usize) {
            self.sent += bytes;
        }
        fn received(&mut self, bytes: usize) {
            self.received += bytes;
        }
        fn trailers(&mut self, lines: &[u8]) {
            self.trailers.push_str(str::from_utf8(lines).unwrap());
        }
    }

    /// A client and a server to play, and the exchange between them under way.
    fn begin(may_end: bool) -> (DuplexStream, DuplexStream, impl Future<Output = (Ended, Seen)>) {
        let (client_end, client) = duplex(256);
        let (server, server_end) = duplex(256);
        let exchange = async move {
            let (mut client, mut server) =
                (Conn::new(client, BytesMut::new()), Conn::new(server, BytesMut::new()));
            let end = loop {
                if let Some(end) = head::end(&client.input, 0) {
                    break end;
                }
                assert!(poll_fn(|cx| client.poll_fill(cx)).await.unwrap() > 0);
            };
            let head = RequestHead::parse(client.input.split_to(end).freeze()).unwrap();
            let framing = framing::of_request(&head).unwrap();
            head.write(&mut server.output);
            let (mut exchange, mut seen) = (Exchange::new(framing, may_end), Seen::default());
            let ended = poll_fn(|cx| {
                exchange.poll(cx, head.method(), &mut client, &mut server, &mut seen)
            });
            (ended.await, seen)
        };
        (client_end, server_end, exchange)
    }

    async fn read(stream: &mut DuplexStream, expected: &str) {
        let mut bytes = vec![0; expected.len()];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }

    #[tokio::test]
    async fn both_bodies_pass_as_they_are() {
        let (mut client, mut server, exchange) = begin(false);
        let request = "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                       5\r\nhello\r\n0\r\n\r\n";
        let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n\
                        3\r\nabc\r\n2\r\nde\r\n0\r\nx: y\r\n\r\n";
        let ends = async {
            client.write_all(request.as_bytes()).await.unwrap();
            read(&mut server, request).await;
            for piece in response.as_bytes().chunks(7) {
                server.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            read(&mut client, response).await;
        };
        let ((ended, seen), ()) = tokio::join!(exchange, ends);
        assert!(matches!(ended, Ended::Through { unread: false, until_close: false }), "{ended:?}");
        assert_eq!((seen.sent, seen.received, seen.status), (5, 5, Some(200)));
        assert_eq!(seen.trailers, "x: y\r\n\r\n");
    }

    #[tokio::test]
    async fn a_client_that_waits_for_leave_gets_it_from_the_server() {
        let (mut client, mut server, exchange) = begin(false);
        let head = "PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
        let ends = async {
            client.write_all(head.as_bytes()).await.unwrap();
            read(&mut server, head).await;
            let leave = "HTTP/1.1 100 Continue\r\n\r\n";
            server.write_all(leave.as_bytes()).await.unwrap();
            read(&mut client, leave).await;
            client.write_all(b"body").await.unwrap();
            read(&mut server, "body").await;
            let done = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";
            server.write_all(done.as_bytes()).await.unwrap();
            read(&mut client, done).await;
        };
        let ((ended, seen), ()) = tokio::join!(exchange, ends);
        assert!(matches!(ended, Ended::Through { unread: false, .. }), "{ended:?}");
        assert_eq!((seen.interim, seen.status), (vec![100], Some(201)));
    }

    #[tokio::test]
    async fn a_client_that_leaves_while_the_server_works_ends_the_exchange() {
        for may_end in [false, true] {
            let (mut client, mut server, exchange) = begin(may_end);
            let head = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
            let ends = async {
                client.write_all(head.as_bytes()).await.unwrap();
                read(&mut server, head).await;
                client.shutdown().await.unwrap();
                let done = "HTTP/1.1 204 No Content\r\n\r\n";
                // Nobody takes it where the exchange has ended.
                let _ = server.write_all(done.as_bytes()).await;
                (client, server)
            };
            let ((ended, _), _ends) = tokio::join!(exchange, ends);
            match may_end {
                true => assert!(matches!(ended, Ended::Through { .. }), "{ended:?}"),
                false => assert!(matches!(ended, Ended::ClientGone(None)), "{ended:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_server_that_refuses_a_body_is_heard() {
        let (mut client, mut server, exchange) = begin(false);
        let head = "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n";
        let no = "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno";
        let (mut reader, mut writer) = tokio::io::split(&mut client);
        let upload = async {
            writer.write_all(head.as_bytes()).await.unwrap();
            while writer.write_all(&[0; 100]).await.is_ok() {}
            std::future::pending::<()>().await
        };
        let ends = async {
            read(&mut server, head).await;
            server.write_all(no.as_bytes()).await.unwrap();
            drop(server);
            let mut bytes = vec![0; no.len()];
            reader.read_exact(&mut bytes).await.unwrap();
            assert_eq!(bytes, no.as_bytes());
        };
        let both = async {
            tokio::select! {
                done = async { tokio::join!(exchange, ends) } => done,
                () = upload => unreachable!(),
            }
        };
        let ((ended, seen), ()) = both.await;
        assert!(matches!(ended, Ended::Through { unread: true, .. }), "{ended:?}");
        assert_eq!(seen.status, Some(413));
    }

    #[tokio::test]
    async fn whoever_breaks_off_is_named() {
        let head = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        for (answer, named) in [
            ("", "Unanswered"),
            ("HTTP/1.1 2", "ServerGone"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", "ServerGone"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", "ServerGone"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "ServerMalformed"),
            ("SSH-2.0-x\r\n\r\n", "ServerMalformed"),
            ("HTTP/1.1 200 OK\r\n\r\nall of it", "Through"),
        ] {
            let (mut client, mut server, exchange) = begin(false);
            let ends = async {
                client.write_all(head.as_bytes()).await.unwrap();
                read(&mut server, head).await;
                server.write_all(answer.as_bytes()).await.unwrap();
                drop(server);
                client
            };
            let ((ended, _), _client) = tokio::join!(exchange, ends);
            assert!(format!("{ended:?}").starts_with(named), "{answer:?}: {ended:?}");
        }
    }
}
