//! Moving opaque bytes both ways until both ends are done.

use std::{
    future::{Future, poll_fn},
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::time::timeout;

use super::{
    direction::{Direction, Failed},
    io::Io,
    last_words::{PATIENCE, delivered},
};
use crate::{
    http::Stream,
    limits::Share,
    telemetry::{Failure, TcpSpan},
};

#[cfg(test)]
pub(super) mod tests;

/// Bytes that were read while finding out what the connection speaks.
#[derive(Debug, Default)]
pub(super) struct Early {
    pub(super) from_client: Bytes,
    pub(super) from_server: Bytes,
    /// The end that broke meanwhile. It tells nobody twice.
    pub(super) broke: Option<Side>,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    fn failure(self) -> Failure {
        match self {
            Side::Client => Failure::ResetLocal,
            Side::Server => Failure::ResetRemote,
        }
    }
}

/// Moves bytes between `client` and `server`. An end in one direction is passed on and the
/// other direction goes on; a reset at one end becomes a reset at the other, behind all that was said
/// before it. Returns why it broke; `None` when both ends closed in order. `spans` hear of every byte.
///
/// When `cut` says why it must end now, or the returned future is dropped half way, both ends are reset at
/// once: an end would tell them that they have everything. The same where more waits for readers of one
/// pod than `buffered` has room for.
pub(super) async fn relay(
    client: Io,
    server: Io,
    early: Early,
    buffered: &Arc<Share>,
    spans: &mut [TcpSpan],
    cut: impl Future<Output = Failure>,
) -> Option<Failure> {
    let mut relay = Relay {
        ends: Some((client, server)),
        buffered,
        spans,
        up: Direction::starting_with(early.from_client),
        down: Direction::starting_with(early.from_server),
        down_first: false,
    };
    let failure = tokio::select! {
        failure = relay.run(early.broke) => failure,
        why = cut => Some(why),
    };
    if failure.is_none() {
        // Both directions were shut down; nothing is left to reset.
        relay.ends = None;
    }
    failure
}

struct Relay<'a> {
    ends: Option<(Io, Io)>,
    buffered: &'a Arc<Share>,
    spans: &'a mut [TcpSpan],
    up: Direction,
    down: Direction,
    down_first: bool,
}

/// Tells `spans` what was moved since they were last told.
fn tell(spans: &mut [TcpSpan], up: &mut Direction, down: &mut Direction) {
    let (sent, received) = (mem::take(&mut up.untold), mem::take(&mut down.untold));
    if sent + received > 0 {
        spans.iter_mut().for_each(|span| span.moved(sent, received));
    }
}

impl Relay<'_> {
    /// Runs until both directions have ended, or one end `broke` and the other has what it said.
    async fn run(&mut self, broke: Option<Side>) -> Option<Failure> {
        let broken = match broke {
            Some(side) => Broken::End(side),
            None => {
                let ended = poll_fn(|cx| {
                    let polled = self.poll(cx);
                    // Once for all that was to be done now: not at every read.
                    tell(self.spans, &mut self.up, &mut self.down);
                    polled
                });
                ended.await.err()?
            }
        };
        match broken {
            Broken::Overfull => Some(Failure::BufferLimit),
            Broken::End(side) => {
                self.deliver_last_words(side).await;
                Some(side.failure())
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Some((client, server)) = &mut self.ends else { return Poll::Ready(Ok(())) };
        // In turn: a task may do only so much before it has to yield, and where one direction never
        // has to wait, it would be all of that.
        self.down_first = !self.down_first;
        let mut ended = true;
        for is_down in [self.down_first, !self.down_first] {
            let polled = match is_down {
                false => self.up.poll(cx, client, server, self.buffered),
                true => self.down.poll(cx, server, client, self.buffered),
            };
            match polled {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(why)) => return Poll::Ready(Err(why.of(is_down))),
                Poll::Pending => ended = false,
            }
        }
        if ended { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Passes on what the end that broke had said before. Some of it may still be unread: a socket
    /// keeps it when it is reset, and it is often by writing that the reset is noticed.
    async fn deliver_last_words(&mut self, broke: Side) {
        let Some((client, server)) = &mut self.ends else { return };
        let (direction, other, source, sink) = match broke {
            Side::Client => (&mut self.up, &mut self.down, client, server),
            Side::Server => (&mut self.down, &mut self.up, server, client),
        };
        // It may be in line for a turn that it would not take.
        other.pause();
        while direction.is_moving() {
            let before = direction.written;
            let rest = poll_fn(|cx| {
                let polled = direction.poll_move(cx, source, sink, self.buffered);
                match broke {
                    Side::Client => tell(self.spans, direction, other),
                    Side::Server => tell(self.spans, other, direction),
                }
                polled
            });
            match timeout(PATIENCE, rest).await {
                // Of a reset that a write was told of, a read sees no more than an end.
                Ok(Ok(()) | Err(Failed::Source)) => break,
                Ok(Err(Failed::Sink | Failed::Overfull)) => return,
                Err(_) if direction.written > before => {}
                Err(_) => return,
            }
        }
        direction.pause();
        delivered(sink).await;
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        if let Some((client, server)) = self.ends.take() {
            client.abort();
            server.abort();
        }
    }
}

/// Why a connection ends before both ends wanted.
enum Broken {
    End(Side),
    /// Too much waits for readers.
    Overfull,
}

impl Failed {
    fn of(self, is_down: bool) -> Broken {
        match (self, is_down) {
            (Failed::Source, false) | (Failed::Sink, true) => Broken::End(Side::Client),
            (Failed::Source, true) | (Failed::Sink, false) => Broken::End(Side::Server),
            (Failed::Overfull, _) => Broken::Overfull,
        }
    }
}
