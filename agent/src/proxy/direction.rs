//! One direction of a connection that is not looked into.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use super::io::{Io, ReadSize};
use crate::{
    http::Stream,
    limits::{Permit, Share, Turn},
};

/// Why a direction ends before its source does.
pub(super) enum Failed {
    Source,
    Sink,
    /// Neither broke, but too much waits for sinks.
    Overfull,
}

/// One direction of a connection.
pub(super) struct Direction {
    pending: Bytes,
    read_size: ReadSize,
    /// Bytes that were read, and of which no span was told.
    pub(super) untold: u64,
    /// Bytes that the sink has taken.
    pub(super) written: u64,
    phase: Phase,
    /// While the sink takes nothing: for what waits here, and what the source may still send.
    waiting: Option<Permit>,
    turn: Turn,
}

enum Phase {
    Moving,
    Ending,
    Ended,
}

impl Direction {
    pub(super) fn starting_with(pending: Bytes) -> Self {
        let untold = pending.len() as u64;
        Self {
            pending,
            read_size: ReadSize::default(),
            untold,
            written: 0,
            phase: Phase::Moving,
            waiting: None,
            turn: Turn::default(),
        }
    }

    /// Whether the source may have more to say.
    pub(super) fn is_moving(&self) -> bool {
        matches!(self.phase, Phase::Moving)
    }

    /// Ready once the source ended and the sink was told so.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
        buffered: &Arc<Share>,
    ) -> Poll<Result<(), Failed>> {
        loop {
            match self.phase {
                Phase::Moving => {
                    ready!(self.poll_move(cx, source, sink, buffered))?;
                    self.phase = Phase::Ending;
                }
                Phase::Ending => {
                    let ended = ready!(Pin::new(&mut *sink).poll_shutdown(cx));
                    // A sink that is gone already is the other direction's to notice.
                    if ended.is_err_and(|error| error.kind() != io::ErrorKind::NotConnected) {
                        return Poll::Ready(Err(Failed::Sink));
                    }
                    self.phase = Phase::Ended;
                }
                Phase::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Ready at the end of the source, with everything written. Holds no place in line then.
    pub(super) fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
        buffered: &Arc<Share>,
    ) -> Poll<Result<(), Failed>> {
        let moved = self.poll_pieces(cx, source, sink, buffered);
        if moved.is_ready() {
            self.turn = Turn::default();
        }
        moved
    }

    /// Is not polled for a while, or never again.
    pub(super) fn pause(&mut self) {
        self.turn = Turn::default();
    }

    fn poll_pieces(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
        buffered: &Arc<Share>,
    ) -> Poll<Result<(), Failed>> {
        loop {
            while !self.pending.is_empty() {
                let before = self.pending.len();
                let Poll::Ready(written) = sink.poll_write_bytes(cx, &mut self.pending) else {
                    self.turn.rest();
                    return self.wait(source, buffered);
                };
                written.map_err(|_| Failed::Sink)?;
                self.written += (before - self.pending.len()) as u64;
            }
            // An empty rest would hold the buffer it was read into, for as long as nothing comes.
            self.pending = Bytes::new();
            self.waiting = None;
            ready!(self.turn.poll_mine(cx));
            let Poll::Ready(read) = source.poll_read_bytes(cx, &mut self.read_size) else {
                self.turn.rest();
                return Poll::Pending;
            };
            self.pending = read.map_err(|_| Failed::Source)?;
            if self.pending.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.untold += self.pending.len() as u64;
            self.turn.moved(self.pending.len());
        }
    }
}

impl Direction {
    /// Waits for the sink, which takes nothing now. Only then does a connection cost memory for
    /// as long as somebody else likes: what was read, and the window that the source has to fill.
    fn wait(&mut self, source: &Io, buffered: &Arc<Share>) -> Poll<Result<(), Failed>> {
        if self.waiting.is_none() {
            let most = self.pending.len() + source.window();
            self.waiting = buffered.take(most as u64);
            if self.waiting.is_none() {
                return Poll::Ready(Err(Failed::Overfull));
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Poll};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::{super::relay::tests::pair, *};
    use crate::limits::Budget;

    #[tokio::test]
    async fn no_buffer_is_held_where_nothing_comes() {
        let (mut client, near) = pair().await;
        let (far, mut server) = pair().await;
        let (mut near, mut far) = (Io::Tcp(near), Io::Tcp(far));
        let buffered = Budget::new(1 << 20).share();
        let mut direction = Direction::starting_with(Bytes::new());
        client.write_all(b"request").await.unwrap();
        let mut heard = [0; 7];
        let relaying = poll_fn(|cx| {
            let ended = direction.poll(cx, &mut near, &mut far, &buffered);
            assert!(ended.is_pending());
            Poll::<()>::Pending
        });
        tokio::select! {
            () = relaying => {}
            read = server.read_exact(&mut heard) => assert_eq!(read.unwrap(), 7),
        }
        assert_eq!(&heard, b"request");
        assert!(direction.pending.is_empty());
        assert!(!direction.pending.is_unique(), "a buffer of its own is behind it");
    }
}
