//! A request on its way to a server, and the response on its way back.

use std::{
    future::{Future, poll_fn},
    mem,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use h2::{Reason, SendStream, client::ResponseFuture, server::SendResponse};
use http::{HeaderMap, Response};
use tokio::time::timeout;

use super::{
    connection::Connection,
    exchange::Client,
    limits::{LAST_WORDS, MOST_INTERIM},
    passing::{Broken, Passed, Passing},
    piece::Piece,
};
use crate::http::{Handler, Watch};

/// What became of a request that was sent.
pub(super) enum Outcome {
    Through,
    ClientReset(Reason),
    ClientBroke(h2::Error),
    Server(h2::Error),
    Interim,
    Overfull,
}

/// How far a response has come.
pub(super) enum Down {
    Head(ResponseFuture),
    Body(Heard),
    Through(SendStream<Piece>),
    /// Never seen.
    Between,
}

/// A response whose head has gone on.
pub(super) struct Heard {
    body: Passing,
    pub(super) to_client: SendStream<Piece>,
}

impl Heard {
    /// Resets the client's stream once it has what its server said before.
    pub(super) async fn finish(mut self, reason: Reason) {
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
pub(super) struct Passage<'a, H: Handler> {
    pub(super) client: &'a Client<'a, H>,
    pub(super) connection: &'a Arc<Connection>,
    pub(super) route: &'a mut H::Route,
    /// For another server, as long as this one has not answered.
    pub(super) again: &'a mut HeaderMap,
    pub(super) up: &'a mut Passing,
    pub(super) up_ended: bool,
    pub(super) to_server: SendStream<Piece>,
    pub(super) respond: &'a mut SendResponse<Piece>,
    pub(super) down: Down,
    pub(super) interim: usize,
}

impl<H: Handler> Passage<'_, H> {
    /// What has gone on of the response, if anything has.
    pub(super) fn heard(self) -> Option<Heard> {
        match self.down {
            Down::Body(heard) => Some(heard),
            _ => None,
        }
    }

    /// Whether the client has all of its answer.
    pub(super) fn is_answered(&self) -> bool {
        matches!(self.down, Down::Through(_))
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
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
        let response = match ready!(Pin::new(response).poll(cx)) {
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

/// With what the other end reset its stream.
pub(super) fn reset_by(error: &h2::Error) -> Option<Reason> {
    error.reason().filter(|_| error.is_reset() && error.is_remote())
}
