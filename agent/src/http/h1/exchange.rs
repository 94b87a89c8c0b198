//! One request and its response, passed between two connections.
//!
//! Both bodies move at once, in one task. While nothing is left to be passed on of a request, its
//! client is watched: that it will say no more is passed on too, and what that means is the server's to
//! say; one that resets its connection has its request ended.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    conn::Conn,
    framing::{self, Ambiguous, Framing},
    head::{self, Lines, Malformed, ResponseHead},
    passing::{Broken, Passing},
};
use crate::{
    http::{Stream, handler::Ended, message::AnyResponse},
    limits::Share,
};

/// Interim responses of one server to one request: as many as nghttp2 takes, and more than anybody says.
const MOST_INTERIM: usize = 64;
/// What a client may have sent of its next requests before more is left with the kernel.
const MOST_PIPELINED: usize = 16 << 10;

/// Is told what passes.
pub(super) trait Follow {
    /// An interim response (RFC 9110 §15.2).
    fn interim(&mut self, _head: &ResponseHead) {}
    /// The response, which may be changed before it goes on.
    fn response(&mut self, head: &mut ResponseHead);
    /// As many bytes of the request's content have gone on.
    fn sent(&mut self, bytes: usize);
    /// As many bytes of the response's content have gone on.
    fn received(&mut self, bytes: usize);
}

/// What became of an exchange.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The response is through, and the request too unless `unread` says otherwise: its server did
    /// not want the rest.
    Through { unread: bool, until_close: bool },
    /// From here on there are no messages.
    Tunnel,
    /// It cannot go on.
    Failed(Ended),
}

/// Why what a server answered is no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoResponse {
    #[error(transparent)]
    Head(#[from] Malformed),
    #[error(transparent)]
    Framing(#[from] Ambiguous),
    #[error("more than {MOST_INTERIM} interim responses")]
    Interim,
}

/// How far a request has come.
#[derive(Debug)]
enum Up {
    Body(Passing),
    Through,
    /// The server does not take the rest.
    Refused,
    /// The client will say nothing more, which the server is to be told.
    Ending,
    /// It has been told.
    Ended,
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
pub(super) struct Exchange {
    up: Up,
    down: Down,
    until_close: bool,
    /// Something of an answer has gone on to the client.
    heard: bool,
    /// How many interim responses have.
    interim: usize,
}

/// The two ends of an exchange, and those who follow it.
pub(super) struct Between<'a, C, S, W> {
    pub(super) method: &'a [u8],
    pub(super) client: &'a mut Conn<C>,
    pub(super) server: &'a mut Conn<S>,
    pub(super) watch: &'a mut W,
    /// What waits for readers is counted here.
    pub(super) buffered: &'a Arc<Share>,
}

impl Exchange {
    /// Of a request whose head waits to be written, and whose body follows in the client's input.
    pub(super) fn new(request: Framing) -> Self {
        let up = Up::Body(Passing::new(request));
        Self { up, down: Down::Head(0), until_close: false, heard: false, interim: 0 }
    }

    /// Whether nothing of an answer has gone on, so that the client can be given another.
    pub(super) fn is_unheard(&self) -> bool {
        !self.heard
    }

    /// Whether the server was told that nothing more comes.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.up, Up::Ending | Up::Ended)
    }

    /// Passes on what can be.
    pub(super) fn poll<C: Stream, S: Stream, W: Follow>(
        &mut self,
        cx: &mut Context<'_>,
        between: &mut Between<'_, C, S, W>,
    ) -> Poll<Outcome> {
        if let Poll::Ready(ended) = self.poll_up(cx, between) {
            return Poll::Ready(Outcome::Failed(ended));
        }
        if let Poll::Ready(outcome) = self.poll_down(cx, between) {
            return Poll::Ready(outcome);
        }
        match (&self.down, &self.up) {
            (Down::Through, Up::Through | Up::Ended | Up::Ending) => self.through(false),
            (Down::Through, Up::Refused) => self.through(true),
            (Down::Through, Up::Body(_)) if self.until_close => self.through(true),
            // It may take the rest, or be done with it. Bytes behind its answer are nobody's.
            (Down::Through, Up::Body(_)) => {
                let _ = ready!(between.server.poll_fill(cx));
                self.through(true)
            }
            _ => Poll::Pending,
        }
    }

    fn through(&self, unread: bool) -> Poll<Outcome> {
        Poll::Ready(Outcome::Through { unread, until_close: self.until_close })
    }

    fn poll_up<C: Stream, S: Stream, W: Follow>(
        &mut self,
        cx: &mut Context<'_>,
        between: &mut Between<'_, C, S, W>,
    ) -> Poll<Ended> {
        let Between { client, server, watch, buffered, .. } = between;
        if let Up::Body(body) = &mut self.up {
            let mut sent = |bytes| watch.sent(bytes);
            match ready!(body.poll(cx, client, server, buffered, &mut sent)) {
                Ok(()) => self.up = Up::Through,
                Err(Broken::Source(None)) => self.up = Up::Ending,
                Err(Broken::Source(error)) => return Poll::Ready(Ended::ClientGone(error)),
                Err(Broken::Framing(why)) => {
                    return Poll::Ready(Ended::ClientMalformed(why.into()));
                }
                Err(Broken::Overfull) => return Poll::Ready(Ended::Overfull),
                // It may have answered all the same. Of a request that ended with its head, what
                // follows are others.
                Err(Broken::Sink(_)) if body.is_over() => self.up = Up::Through,
                Err(Broken::Sink(_)) => self.up = Up::Refused,
            }
        }
        loop {
            match self.up {
                Up::Ended => return Poll::Pending,
                Up::Ending => {
                    // One that is gone already is noticed by whoever reads of it.
                    let _ = ready!(server.poll_shutdown(cx));
                    self.up = Up::Ended;
                    return Poll::Pending;
                }
                Up::Refused => client.input.clear(),
                Up::Body(_) | Up::Through => {}
            }
            if client.has_ended() {
                // What it has asked for meanwhile comes before its end.
                if !matches!(self.up, Up::Through) || !client.input.is_empty() {
                    return Poll::Pending;
                }
                self.up = Up::Ending;
                continue;
            }
            if client.input.len() >= MOST_PIPELINED {
                return Poll::Pending;
            }
            match ready!(client.poll_fill(cx)) {
                Ok(_) => {}
                Err(error) => return Poll::Ready(Ended::ClientGone(Some(error))),
            }
        }
    }

    /// Ready where the exchange ends here; pending where there is nothing more to do now.
    fn poll_down<C: Stream, S: Stream, W: Follow>(
        &mut self,
        cx: &mut Context<'_>,
        between: &mut Between<'_, C, S, W>,
    ) -> Poll<Outcome> {
        loop {
            match &mut self.down {
                Down::Through => return Poll::Pending,
                Down::Body(body) => {
                    let Between { client, server, watch, buffered, .. } = between;
                    let mut received = |bytes| watch.received(bytes);
                    let failed =
                        match ready!(body.poll(cx, server, client, buffered, &mut received)) {
                            Ok(()) => {
                                self.down = Down::Through;
                                continue;
                            }
                            Err(Broken::Source(error)) => Ended::ServerGone(error),
                            Err(Broken::Sink(error)) => Ended::ClientGone(Some(error)),
                            Err(Broken::Framing(why)) => Ended::ServerMalformed(why.into()),
                            Err(Broken::Overfull) => Ended::Overfull,
                        };
                    return Poll::Ready(Outcome::Failed(failed));
                }
                Down::Head(_) => match ready!(self.poll_head(cx, between)) {
                    Ok(()) => {}
                    Err(outcome) => return Poll::Ready(outcome),
                },
            }
        }
    }

    /// Ready with the next head, or with an end of it all.
    fn poll_head<C: Stream, S: Stream, W: Follow>(
        &mut self,
        cx: &mut Context<'_>,
        between: &mut Between<'_, C, S, W>,
    ) -> Poll<Result<(), Outcome>> {
        let Down::Head(searched) = &mut self.down else { return Poll::Ready(Ok(())) };
        let server = &mut *between.server;
        loop {
            if let Some(end) = head::end(&server.input, *searched) {
                let head = server.input.split_to(end);
                *searched = 0;
                return Poll::Ready(self.head(head, between));
            }
            *searched = server.input.len();
            if *searched > head::MOST_BYTES {
                return failed(Ended::ServerMalformed(Box::new(NoResponse::from(Malformed::Long))));
            }
            // An interim response does not wait for what follows, and is taken before that is read.
            let client = &mut *between.client;
            if !client.output.is_empty() {
                let wrote = ready!(client.poll_write(cx, &[])).map(drop);
                let flushed = match wrote {
                    Ok(()) => ready!(client.poll_flush(cx)),
                    broken => broken,
                };
                if let Err(error) = flushed {
                    return failed(Ended::ClientGone(Some(error)));
                }
            }
            let read = ready!(server.poll_fill(cx));
            let error = match read {
                Ok(1..) => continue,
                Ok(0) => None,
                Err(error) => Some(error),
            };
            return failed(match (self.heard || *searched > 0, &self.up) {
                (true, _) => Ended::ServerGone(error),
                // It was told that nobody is left to be answered.
                (false, Up::Ending | Up::Ended) => Ended::ClientGone(None),
                (false, _) => Ended::Unanswered(error),
            });
        }
    }

    fn head<C: Stream, S, W: Follow>(
        &mut self,
        head: bytes::BytesMut,
        between: &mut Between<'_, C, S, W>,
    ) -> Result<(), Outcome> {
        let malformed = |why: NoResponse| Outcome::Failed(Ended::ServerMalformed(Box::new(why)));
        let mut head = ResponseHead::parse(head).map_err(|why| malformed(why.into()))?;
        let framing = framing::of_response(&mut head, between.method);
        let framing = framing.map_err(|why| malformed(why.into()))?;
        self.heard = true;
        if matches!(head.status(), 100..200) && framing != Framing::Tunnel {
            self.interim += 1;
            if self.interim > MOST_INTERIM {
                return Err(malformed(NoResponse::Interim));
            }
            between.watch.interim(&head);
            head.write(&mut between.client.output);
            return Ok(());
        }
        between.watch.response(&mut head);
        head.write(&mut between.client.output);
        if framing == Framing::Tunnel {
            return Err(Outcome::Tunnel);
        }
        self.until_close = framing == Framing::UntilClose;
        self.down = Down::Body(Passing::new(framing));
        Ok(())
    }
}

fn failed<T>(ended: Ended) -> Poll<Result<T, Outcome>> {
    Poll::Ready(Err(Outcome::Failed(ended)))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::{super::head::RequestHead, *};
    use crate::{http::message::AnyRequest, limits::Budget};

    #[derive(Debug, Default)]
    struct Seen {
        status: Option<u16>,
        sent: usize,
        received: usize,
    }

    impl Follow for Seen {
        fn response(&mut self, head: &mut ResponseHead) {
            self.status = Some(head.status());
        }
        fn sent(&mut self, bytes: usize) {
            self.sent += bytes;
        }
        fn received(&mut self, bytes: usize) {
            self.received += bytes;
        }
    }

    /// A client and a server to play, and the exchange between them under way.
    fn begin() -> (DuplexStream, DuplexStream, impl Future<Output = (Outcome, Seen)>) {
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
            let (mut exchange, mut seen) = (Exchange::new(framing), Seen::default());
            let mut between = Between {
                method: head.method(),
                client: &mut client,
                server: &mut server,
                watch: &mut seen,
                buffered: &Budget::new(1 << 20).share(),
            };
            let outcome = poll_fn(|cx| exchange.poll(cx, &mut between)).await;
            (outcome, seen)
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
        let (mut client, mut server, exchange) = begin();
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
        assert!(
            matches!(ended, Outcome::Through { unread: false, until_close: false }),
            "{ended:?}"
        );
        assert_eq!((seen.sent, seen.received, seen.status), (5, 5, Some(200)));
    }

    #[tokio::test]
    async fn a_client_that_waits_for_leave_gets_it_from_the_server() {
        let (mut client, mut server, exchange) = begin();
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
        assert!(matches!(ended, Outcome::Through { unread: false, .. }), "{ended:?}");
        assert_eq!(seen.status, Some(201));
    }

    #[tokio::test]
    async fn that_a_client_will_say_no_more_is_passed_on_and_answered_or_not() {
        let request = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        let cut = "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nbody";
        let answer = "HTTP/1.1 204 No Content\r\n\r\n";
        for (said, answer) in [(request, answer), (cut, answer), (request, ""), (cut, "")] {
            let (mut client, mut server, exchange) = begin();
            let ends = async {
                client.write_all(said.as_bytes()).await.unwrap();
                client.shutdown().await.unwrap();
                let mut heard = String::new();
                server.read_to_string(&mut heard).await.unwrap();
                assert_eq!(heard, said);
                server.write_all(answer.as_bytes()).await.unwrap();
                server.shutdown().await.unwrap();
                read(&mut client, answer).await;
                (client, server)
            };
            let ((outcome, _), _ends) = tokio::join!(exchange, ends);
            match answer {
                "" => assert!(matches!(outcome, Outcome::Failed(Ended::ClientGone(None)))),
                _ => assert!(matches!(outcome, Outcome::Through { .. }), "{outcome:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_body_of_which_more_waits_than_may_is_broken_off() {
        let (near, far) = (duplex(256), duplex(256));
        let mut client = Conn::new(near.1, BytesMut::from(&[0; 600][..]));
        let mut server = Conn::new(far.0, BytesMut::new());
        let mut passing = Passing::new(Framing::Length(600));
        let buffered = Budget::new(256).share();
        let broken =
            poll_fn(|cx| passing.poll(cx, &mut client, &mut server, &buffered, &mut |_| {}));
        assert!(matches!(broken.await, Err(Broken::Overfull)));
    }

    #[tokio::test]
    async fn a_server_that_refuses_a_body_is_heard() {
        let (mut client, mut server, exchange) = begin();
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
        assert!(matches!(ended, Outcome::Through { unread: true, .. }), "{ended:?}");
        assert_eq!(seen.status, Some(413));
    }

    #[tokio::test]
    async fn interim_responses_are_taken_one_by_one_and_not_without_end() {
        let (mut client, mut server, exchange) = begin();
        let head = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        let ends = async {
            client.write_all(head.as_bytes()).await.unwrap();
            read(&mut server, head).await;
            // The client reads none of them.
            let mut said = 0;
            let quiet = std::time::Duration::from_millis(50);
            let all = hint.repeat(2 * MOST_INTERIM);
            while let Ok(Ok(wrote)) =
                tokio::time::timeout(quiet, server.write(&all.as_bytes()[said..])).await
            {
                said += wrote;
            }
            // What both ends' pipes and one read hold.
            assert!(said < LEAST_HELD, "{said}");
            let rest = async { while server.write_all(&all.as_bytes()[said..]).await.is_ok() {} };
            let mut heard = String::new();
            let hear = async {
                let mut piece = [0; 100];
                while heard.len() < MOST_INTERIM * hint.len() {
                    let read = client.read(&mut piece).await.unwrap();
                    heard.push_str(str::from_utf8(&piece[..read]).unwrap());
                }
            };
            tokio::select! {
                () = hear => {}
                () = rest => {}
            }
            (client, server)
        };
        let ((outcome, _), _ends) = tokio::join!(exchange, ends);
        let Outcome::Failed(Ended::ServerMalformed(why)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(why.to_string(), NoResponse::Interim.to_string());
    }

    const LEAST_HELD: usize = 8 << 10;

    #[tokio::test]
    async fn a_server_that_closes_after_an_early_answer_wants_no_more() {
        let (mut client, mut server, exchange) = begin();
        let head = "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n";
        let no = "HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n";
        let ends = async {
            client.write_all(head.as_bytes()).await.unwrap();
            read(&mut server, head).await;
            server.write_all(no.as_bytes()).await.unwrap();
            read(&mut client, no).await;
            server.shutdown().await.unwrap();
            (client, server)
        };
        let ((outcome, _), _ends) = tokio::join!(exchange, ends);
        assert!(matches!(outcome, Outcome::Through { unread: true, .. }), "{outcome:?}");
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
            let (mut client, mut server, exchange) = begin();
            let ends = async {
                client.write_all(head.as_bytes()).await.unwrap();
                read(&mut server, head).await;
                server.write_all(answer.as_bytes()).await.unwrap();
                drop(server);
                client
            };
            let ((ended, _), _client) = tokio::join!(exchange, ends);
            assert!(format!("{ended:?}").contains(named), "{answer:?}: {ended:?}");
        }
    }
}
