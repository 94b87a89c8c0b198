//! One request and its response: a stream of a client's, and one of a server's.

use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
};

use h2::{Reason, RecvStream, server::SendResponse};
use http::{Request, request};

use super::{
    answer::Kind,
    connection::{Connection, Reserved},
    head,
    limits::{MOST_INTERIM, MOST_RESENT},
    passage::{Down, Outcome, Passage, reset_by},
    passing::{Overfull, Passing},
    piece::Piece,
    pool::{Pool, PoolKey, Shared},
};
use crate::{
    http::{Answer, Ended, Handler, Route},
    limits::Inflow,
};

/// What the requests of one client's connection have in common.
pub(super) struct Client<'a, H> {
    pub(super) handler: &'a H,
    /// What comes on the connection counts here.
    pub(super) inflow: Arc<Inflow>,
    /// A server of this client takes CONNECT for other protocols.
    pub(super) extends: AtomicBool,
    /// A server could not be reached. Whoever is told to go elsewhere may look for another, as one does
    /// whose connection breaks.
    pub(super) is_to_leave: AtomicBool,
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
        let answer = Answer::new(400, format!("sluice: {why}\n"));
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
                // The client has its answer, and it is the rest of its request that ends here.
                Outcome::ClientReset(reason) if passage.is_answered() => {
                    passage.to_server.send_reset(reason);
                    return Ended::Through;
                }
                Outcome::Overfull if passage.is_answered() => {
                    passage.to_server.send_reset(Reason::CANCEL);
                    return Ended::Through;
                }
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
            if !self.may_ask_again(&error, &reserved, is_all, resent) {
                return self.give_up(error, &reserved.connection);
            }
            tracing::debug!(%error, "asking again on another connection");
            avoid = Some(match error.is_reset() {
                true => reserved.connection.clone(),
                false => self.leave(&reserved),
            });
            resent += 1;
        }
    }

    /// Whether a request of which no answer came can do no harm when it is sent once more.
    fn may_ask_again(
        &self,
        error: &h2::Error,
        reserved: &Reserved,
        is_all: bool,
        resent: usize,
    ) -> bool {
        if is_untouched(error) {
            // A server that is too busy need not be asked more often.
            let most = if error.is_reset() { 1 } else { MOST_RESENT };
            return resent < most && self.up.is_whole();
        }
        // It may have closed before it saw the request (RFC 9110 §9.2.2).
        let may_be_unseen = error.is_io() && !reserved.is_fresh && resent == 0;
        may_be_unseen && is_all && self.head.method.is_idempotent()
    }

    /// Tells the client that no answer came, as its server did or as can be told.
    fn give_up(&mut self, error: h2::Error, connection: &Connection) -> Ended {
        // Whoever knows what it has sent may ask again (RFC 9113 §8.7).
        let untouched = is_untouched(&error).then_some(Reason::REFUSED_STREAM);
        if let Some(reason) = untouched.or(reset_by(&error)) {
            self.respond.send_reset(reason);
            return Ended::Unanswered(Some(io::Error::other(error)));
        }
        let ended = match error.is_library() {
            true if !connection.speaks() => {
                Ended::ServerMalformed(Box::new(NoAnswer::NotHttp2(error)))
            }
            true => Ended::ServerMalformed(Box::new(NoAnswer::Malformed(error))),
            false => Ended::Unanswered(Some(io::Error::other(error))),
        };
        self.unanswered(ended)
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
                        self.client.is_to_leave.store(true, Relaxed);
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
                    self.kind.send(&Answer::new(501, text), &mut self.respond);
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

/// Whether a server says that it has not looked at the request (RFC 9113 §8.7).
fn is_untouched(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}
