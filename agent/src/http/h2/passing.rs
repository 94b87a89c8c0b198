//! One body on its way from one stream to another.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use super::{
    limits::SEND_BUFFER,
    piece::{Piece, Unwritten},
};
use crate::limits::{Behind, Inflow, Pause};

/// One body on its way. The window of its source opens again as bytes go on, not as they arrive.
#[derive(Debug)]
pub(super) struct Passing {
    source: RecvStream,
    inflow: Arc<Inflow>,
    /// Has come, and is not on its way yet.
    next: Bytes,
    /// Something has been taken of it.
    begun: bool,
    /// While the sink takes nothing: the source may fill its window.
    behind: Option<Behind>,
    /// Not a turn in line: a peer that takes its window back keeps this from being polled again.
    pause: Pause,
    unwritten: Unwritten,
}

/// Which end of a passage broke.
#[derive(Debug)]
pub(super) enum Broken {
    Source(h2::Error),
    /// Its stream says why.
    Sink,
    /// Neither, but too much waits for sinks.
    Overfull,
}

/// More waits for readers of one pod than may.
#[derive(Debug)]
pub(super) struct Overfull;

impl Passing {
    /// Of what comes from `source`, whose connection counts in `inflow`.
    pub(super) fn new(source: RecvStream, inflow: &Arc<Inflow>) -> Self {
        Self {
            source,
            inflow: inflow.clone(),
            next: Bytes::new(),
            begun: false,
            behind: None,
            pause: Pause::default(),
            unwritten: Unwritten::default(),
        }
    }

    /// Whether nothing of it has been taken, so that it can still go elsewhere.
    pub(super) fn is_whole(&self) -> bool {
        !self.begun
    }

    /// Whether there is nothing of it, as its head said already.
    pub(super) fn is_empty(&self) -> bool {
        !self.begun && self.source.is_end_stream()
    }

    /// There is no sink yet: what may come meanwhile counts.
    pub(super) fn wait(&mut self) -> Result<(), Overfull> {
        if self.behind.is_none() && !self.source.is_end_stream() {
            self.behind = Some(self.inflow.behind().ok_or(Overfull)?);
        }
        Ok(())
    }

    /// Ready once nothing of it waits to be written.
    pub(super) fn poll_written(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.unwritten.poll_none(cx)
    }

    /// Ready once all of it has gone on, with its end. `passed` is told how much of it does, and what
    /// follows it.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut SendStream<Piece>,
        passed: &mut impl Passed,
    ) -> Poll<Result<(), Broken>> {
        loop {
            while !self.next.is_empty() {
                let Poll::Ready(room) = poll_room(cx, sink, self.next.len()) else {
                    return match self.wait() {
                        Ok(()) => Poll::Pending,
                        Err(Overfull) => Poll::Ready(Err(Broken::Overfull)),
                    };
                };
                let part = self.next.split_to(room.ok_or(Broken::Sink)?);
                if self.send(part, sink, passed)? {
                    return Poll::Ready(Ok(()));
                }
            }
            self.behind = None;
            ready!(self.pause.poll_over(cx));
            match ready!(self.source.poll_data(cx)).transpose().map_err(Broken::Source)? {
                Some(bytes) if bytes.is_empty() && !self.source.is_end_stream() => {}
                Some(bytes) if bytes.is_empty() => return Poll::Ready(self.end(sink)),
                Some(bytes) => self.next = bytes,
                None => {
                    let trailers = ready!(self.source.poll_trailers(cx)).map_err(Broken::Source)?;
                    let Some(trailers) = trailers else { return Poll::Ready(self.end(sink)) };
                    self.begun = true;
                    passed.trailers(&trailers);
                    let sent = sink.send_trailers(trailers);
                    return Poll::Ready(sent.map_err(|_| Broken::Sink));
                }
            }
        }
    }

    /// Sends a part on; whether it was the last.
    fn send(
        &mut self,
        part: Bytes,
        sink: &mut SendStream<Piece>,
        passed: &mut impl Passed,
    ) -> Result<bool, Broken> {
        let length = part.len();
        let is_last = self.next.is_empty() && self.source.is_end_stream();
        let held = self.inflow.piece(length).ok_or(Broken::Overfull)?;
        let piece = Piece::new(part, held, &self.unwritten);
        sink.send_data(piece, is_last).map_err(|_| Broken::Sink)?;
        self.begun = true;
        // Fails only for more than has come.
        let _ = self.source.flow_control().release_capacity(length);
        self.pause.moved(length);
        passed.data(length);
        Ok(is_last)
    }

    fn end(&mut self, sink: &mut SendStream<Piece>) -> Result<(), Broken> {
        self.begun = true;
        sink.send_data(Piece::default(), true).map_err(|_| Broken::Sink)
    }
}

/// Follows a body.
pub(super) trait Passed {
    /// `bytes` of it go on.
    fn data(&mut self, bytes: usize);
    /// What comes behind it does.
    fn trailers(&mut self, _trailers: &HeaderMap) {}
}

/// How much may be sent now, at least one byte, of `wanted`. `None` when nothing is taken any more.
fn poll_room(
    cx: &mut Context<'_>,
    sink: &mut SendStream<Piece>,
    wanted: usize,
) -> Poll<Option<usize>> {
    // What is reserved is taken from the other streams of the connection; never more than can be sent
    // at once.
    sink.reserve_capacity(wanted.min(SEND_BUFFER));
    let room = match sink.capacity() {
        0 => ready!(sink.poll_capacity(cx)).and_then(Result::ok),
        room => Some(room),
    };
    Poll::Ready(room.map(|room| room.min(wanted)))
}
