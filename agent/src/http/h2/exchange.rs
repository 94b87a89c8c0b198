//! One request and its response: a stream of a client's, and one of a server's.

use std::{
    future::{Future, poll_fn},
    io, mem,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use h2::{Reason, RecvStream, SendStream, client::ResponseFuture, server::SendResponse};
use http::{HeaderMap, Request, Response, request};
use tokio::time::timeout;

use super::{
    answer::Kind,
    connection::{Connection, Reserved},
    head,
    limits::{LAST_WORDS, MOST_INTERIM, MOST_RESENT},
    passing::{Broken, Overfull, Passed, Passing},
    piece::Piece,
    pool::{Pool, PoolKey, Shared},
};
use crate::{
    http::{Answer, Ended, Handler, Route, Watch},
    limits::Inflow,
};

/// What the requests of one client's connection have in common.
pub(super) struct Client<'a, H> {
    pub(super) handler: &'a H,
    /// What comes on the connection counts here.
    pub(super) inflow: Arc<Inflow>,
    /// A server of this client takes CONNECT for other protocols.
    pub(super) extends: AtomicBool,
}

/// Why a server's answer is none.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error(
        "the server does not speak HTTP/2 (hint: do the port's name and appProtocol say what it \
         speaks?): {0}"
    )]
    NotHttp2(h2::Error),
    #[error(transparent)]
    Malformed(h2::Error),
    #[error("more than {MOST_INTERIM} interim responses to one request")]
    Interim,
}

/// Answers `request` by where the handler sends it.
pub(super) async fn exchange<H>(
    client: &Client<'_, H>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Piece>,
) where
    H: Handler<Route: Shared>,
{
    let (mut head, body) = request.into_parts();
    let kind = Kind::of(&head);
    if let Err(why) = head::settle(&mut head) {
        client.handler.malformed(400, &why);
        let answer = Answer { status: 400, text: format!("sluice: {why}\n") };
        return kind.send(&answer, &mut respond);
    }
    let route = unless_reset(&mut respond, client.handler.route(&mut head)).await;
    let mut route = match route {
        Ok(Ok(route)) => route,
        Ok(Err(answer)) => return kind.send(&answer, &mut respond),
        Err(_) => return,
    };
    let (pool, key) = route.connections();
    let exchange = Exchange {
        pool,
        key,
        up: Passing::new(body, &client.inflow),
        client,
        kind,
        head,
        respond,
        route: &mut route,
    };
    let ended = exchange.run().await;
    route.finish(&ended);
}

/// Does `work` unless the client gives up on it first, with a reason or with its connection.
async fn unless_reset<F: Future>(
    respond: &mut SendResponse<Piece>,
    work: F,
) -> Result<F::Output, Option<Reason>> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        respond.poll_reset(cx).map(|reason| Err(reason.ok()))
    })
    .await
}

struct Exchange<'a, H: Handler> {
    client: &'a Client<'a, H>,
    kind: Kind,
    head: request::Parts,
    up: Passing,
    respond: SendResponse<Piece>,
    route: &'a mut H::Route,
    pool: Pool,
    key: PoolKey,
}

impl<H: Handler<Route: Shared>> Exchange<'_, H> {
    async fn run(mut self) -> Ended {
        let (mut avoid, mut resent) = (None, 0);
        loop {
            let reserved = match self.reserve(avoid.as_ref()).await {
                Ok(reserved) => reserved,
                Err(ended) => return ended,
            };
            let (head, is_all) = (self.head.clone(), self.up.is_empty());
            let (response, to_server) = match reserved.send(head, is_all) {
                Ok(sent) => sent,
                Err(error) => {
                    // It has not left this process: the connection takes no more.
                    tracing::debug!(%error, "asking on another connection");
                    avoid = Some(self.leave(&reserved));
                    resent += usize::from(reserved.is_fresh);
                    if resent > MOST_RESENT {
                        return self.unanswered(Ended::Unanswered(Some(io::Error::other(error))));
                    }
                    continue;
                }
            };
            let mut passage = Passage {
                client: self.client,
                connection: &reserved.connection,
                route: &mut *self.route,
                again: &mut self.head.headers,
                up: &mut self.up,
                up_ended: is_all,
                to_server,
                respond: &mut self.respond,
                down: Down::Head(response),
                interim: 0,
            };
            let outcome = poll_fn(|cx| passage.poll(cx)).await;
            let error = match outcome {
                Outcome::Through => return Ended::Through,
                Outcome::ClientReset(reason) => {
                    passage.to_server.send_reset(reason);
                    return Ended::ClientGone(Some(io::Error::other(h2::Error::from(reason))));
                }
                Outcome::ClientBroke(error) if error.is_library() => {
                    return Ended::ClientMalformed(error.into());
                }
                Outcome::ClientBroke(error) => {
                    return Ended::ClientGone(Some(io::Error::other(error)));
                }
                Outcome::Overfull => {
                    return match passage.heard() {
                        None => self.unanswered(Ended::Overfull),
                        Some(mut heard) => {
                            heard.to_client.send_reset(Reason::ENHANCE_YOUR_CALM);
                            Ended::Overfull
                        }
                    };
                }
                Outcome::Interim => {
                    return self.unanswered(Ended::ServerMalformed(Box::new(NoAnswer::Interim)));
                }
                Outcome::Server(error) => error,
            };
            if let Some(heard) = passage.heard() {
                Box::pin(heard.finish(reset_by(&error).unwrap_or(Reason::INTERNAL_ERROR))).await;
                return match error.is_library() {
                    true => Ended::ServerMalformed(Box::new(NoAnswer::Malformed(error))),
                    false => Ended::ServerGone(Some(io::Error::other(error))),
                };
            }
            let is_untouched = is_untouched(&error);
            let again = match is_untouched {
                // A server that is too busy need not be asked more often.
                true if error.is_reset() => resent == 0 && self.up.is_whole(),
                true => resent < MOST_RESENT && self.up.is_whole(),
                // It may have closed before it saw the request (RFC 9110 §9.2.2).
                false => {
                    error.is_io()
                        && resent == 0
                        && !reserved.is_fresh
                        && is_all
                        && self.head.method.is_idempotent()
                }
            };
            if again {
                tracing::debug!(%error, "asking again on another connection");
                avoid = Some(match error.is_reset() {
                    true => reserved.connection.clone(),
                    false => self.leave(&reserved),
                });
                resent += 1;
                continue;
            }
            if let Some(reason) = reset_by(&error) {
                self.respond.send_reset(reason);
                return Ended::Unanswered(Some(io::Error::other(error)));
            }
            if is_untouched {
                // The client may ask again: it knows what it has sent (RFC 9113 §8.7).
                self.respond.send_reset(Reason::REFUSED_STREAM);
                return Ended::Unanswered(Some(io::Error::other(error)));
            }
            let speaks = reserved.connection.speaks();
            let ended = match error.is_library() {
                true if !speaks => Ended::ServerMalformed(Box::new(NoAnswer::NotHttp2(error))),
                true => Ended::ServerMalformed(Box::new(NoAnswer::Malformed(error))),
                false => Ended::Unanswered(Some(io::Error::other(error))),
            };
            return self.unanswered(ended);
        }
    }

    /// Room on a connection. An error is how the exchange has ended without.
    async fn reserve(&mut self, avoid: Option<&Arc<Connection>>) -> Result<Reserved, Ended> {
        let extended = self.head.extensions.get::<h2::ext::Protocol>().is_some();
        let reserved = match self.pool.reserve(&self.key, avoid) {
            Some(reserved) => reserved,
            None => {
                if let Err(Overfull) = self.up.wait() {
                    return Err(self.unanswered(Ended::Overfull));
                }
                // As large as all that making one takes, and not needed once there is one.
                let connection = Box::pin(self.pool.connection(&self.key, self.route, avoid));
                match unless_reset(&mut self.respond, connection).await {
                    Ok(Ok(reserved)) => reserved,
                    Ok(Err(answer)) => {
                        self.kind.send(&answer, &mut self.respond);
                        return Err(Ended::Unsent);
                    }
                    Err(reason) => return Err(client_gone(reason)),
                }
            }
        };
        if extended {
            let mut heard = reserved.connection.heard();
            let heard = heard.wait_for(|heard| heard.limit || heard.end);
            match unless_reset(&mut self.respond, heard).await {
                Ok(_) if reserved.connection.extends() => {}
                Ok(_) => {
                    let text = "sluice: the server takes no CONNECT for other protocols\n".into();
                    self.kind.send(&Answer { status: 501, text }, &mut self.respond);
                    return Err(Ended::Unsent);
                }
                Err(reason) => return Err(client_gone(reason)),
            }
        }
        Ok(reserved)
    }

    /// Takes a connection out of use, and returns it.
    fn leave(&self, reserved: &Reserved) -> Arc<Connection> {
        self.pool.forget(&self.key, &reserved.connection);
        reserved.connection.clone()
    }

    /// Answers in place of a server.
    fn unanswered(&mut self, ended: Ended) -> Ended {
        let answer = self.route.unanswered(&ended);
        self.kind.send(&answer, &mut self.respond);
        ended
    }
}

fn client_gone(reason: Option<Reason>) -> Ended {
    Ended::ClientGone(reason.map(|reason| io::Error::other(h2::Error::from(reason))))
}

/// With what the other end reset its stream.
fn reset_by(error: &h2::Error) -> Option<Reason> {
    error.reason().filter(|_| error.is_reset() && error.is_remote())
}

/// Whether a server says that it has not looked at the request (RFC 9113 §8.7).
fn is_untouched(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}

/// What became of a request that was sent.
enum Outcome {
    Through,
    ClientReset(Reason),
    ClientBroke(h2::Error),
    Server(h2::Error),
    Interim,
    Overfull,
}

/// How far a response has come.
enum Down {
    Head(ResponseFuture),
    Body(Heard),
    Through(SendStream<Piece>),
    /// Never seen.
    Between,
}

/// A response whose head has gone on.
struct Heard {
    body: Passing,
    to_client: SendStream<Piece>,
}

impl Heard {
    /// Resets the client's stream once it has what its server said before.
    async fn finish(mut self, reason: Reason) {
        let written = poll_fn(|cx| {
            if self.to_client.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            self.body.poll_written(cx)
        });
        let _ = timeout(LAST_WORDS, written).await;
        self.to_client.send_reset(reason);
    }
}

/// A request on its way to a server, and the response on its way back.
struct Passage<'a, H: Handler> {
    client: &'a Client<'a, H>,
    connection: &'a Arc<Connection>,
    route: &'a mut H::Route,
    /// For another server, as long as this one has not answered.
    again: &'a mut HeaderMap,
    up: &'a mut Passing,
    up_ended: bool,
    to_server: SendStream<Piece>,
    respond: &'a mut SendResponse<Piece>,
    down: Down,
    interim: usize,
}

impl<H: Handler> Passage<'_, H> {
    /// What has gone on of the response, if anything has.
    fn heard(self) -> Option<Heard> {
        match self.down {
            Down::Body(heard) => Some(heard),
            _ => None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        if let Poll::Ready(outcome) = self.poll_up(cx) {
            return Poll::Ready(outcome);
        }
        let reset = match &mut self.down {
            Down::Body(Heard { to_client, .. }) | Down::Through(to_client) => {
                to_client.poll_reset(cx)
            }
            _ => self.respond.poll_reset(cx),
        };
        match reset {
            Poll::Ready(Ok(reason)) => return Poll::Ready(Outcome::ClientReset(reason)),
            Poll::Ready(Err(error)) => return Poll::Ready(Outcome::ClientBroke(error)),
            Poll::Pending => {}
        }
        loop {
            match &mut self.down {
                Down::Head(_) => {
                    if let Err(outcome) = ready!(self.poll_head(cx)) {
                        return Poll::Ready(outcome);
                    }
                }
                Down::Body(Heard { body, to_client }) => {
                    match ready!(body.poll(cx, to_client, &mut Received(self.route))) {
                        Ok(()) => {}
                        Err(Broken::Source(error)) => return Poll::Ready(Outcome::Server(error)),
                        Err(Broken::Overfull) => return Poll::Ready(Outcome::Overfull),
                        Err(Broken::Sink) => {
                            return to_client.poll_reset(cx).map(|reason| {
                                reason.map_or_else(Outcome::ClientBroke, Outcome::ClientReset)
                            });
                        }
                    }
                    if let Down::Body(heard) = mem::replace(&mut self.down, Down::Between) {
                        self.down = Down::Through(heard.to_client);
                    }
                }
                Down::Through(_) if self.up_ended => return Poll::Ready(Outcome::Through),
                // A server that resets its stream now does not want the rest (RFC 9113 §8.1). The
                // client learns that the same way, from h2.
                Down::Through(_) => {
                    return self.to_server.poll_reset(cx).map(|_| Outcome::Through);
                }
                Down::Between => return Poll::Pending,
            }
        }
    }

    /// Ready where the exchange ends with the request.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        if self.up_ended {
            return Poll::Pending;
        }
        match ready!(self.up.poll(cx, &mut self.to_server, &mut Sent(self.route))) {
            // A server that takes no more may have answered: its stream tells.
            Ok(()) | Err(Broken::Sink) => self.up_ended = true,
            Err(Broken::Overfull) => return Poll::Ready(Outcome::Overfull),
            Err(Broken::Source(error)) => {
                return Poll::Ready(match reset_by(&error) {
                    Some(reason) => Outcome::ClientReset(reason),
                    None => Outcome::ClientBroke(error),
                });
            }
        }
        Poll::Pending
    }

    /// Ready once the response's head has gone on.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Outcome>> {
        let Down::Head(response) = &mut self.down else { return Poll::Ready(Ok(())) };
        while let Some(interim) = ready!(response.poll_informational(cx)) {
            let (head, ()) = match interim {
                Ok(interim) => interim.into_parts(),
                Err(error) => return Poll::Ready(Err(Outcome::Server(error))),
            };
            self.interim += 1;
            if self.interim > MOST_INTERIM {
                return Poll::Ready(Err(Outcome::Interim));
            }
            self.route.interim(&head);
            // Fails only when the client is gone, which its stream tells.
            let _ = self.respond.send_informational(Response::from_parts(head, ()));
        }
        let response = match ready!(std::pin::Pin::new(response).poll(cx)) {
            Ok(response) => response,
            Err(error) => return Poll::Ready(Err(Outcome::Server(error))),
        };
        if !self.client.extends.load(Relaxed) && self.connection.extends() {
            self.client.extends.store(true, Relaxed);
        }
        let (mut head, body) = response.into_parts();
        self.route.response(&mut head);
        mem::take(self.again);
        let is_all = body.is_end_stream();
        let to_client = match self.respond.send_response(Response::from_parts(head, ()), is_all) {
            Ok(to_client) => to_client,
            Err(error) => {
                return Poll::Ready(Err(match self.respond.poll_reset(cx) {
                    Poll::Ready(Ok(reason)) => Outcome::ClientReset(reason),
                    _ => Outcome::ClientBroke(error),
                }));
            }
        };
        self.down = match is_all {
            true => Down::Through(to_client),
            false => {
                Down::Body(Heard { body: Passing::new(body, &self.connection.inflow), to_client })
            }
        };
        Poll::Ready(Ok(()))
    }
}

/// Tells a route of its request's content.
struct Sent<'a, R>(&'a mut R);

impl<R: Watch> Passed for Sent<'_, R> {
    fn data(&mut self, bytes: usize) {
        self.0.sent(bytes);
    }
}

/// Tells a route of its response's.
struct Received<'a, R>(&'a mut R);

impl<R: Watch> Passed for Received<'_, R> {
    fn data(&mut self, bytes: usize) {
        self.0.received(bytes);
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        self.0.trailers(trailers);
    }
}
