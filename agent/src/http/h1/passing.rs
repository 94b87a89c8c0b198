//! One body on its way from one connection to another, out of one buffer: what was read of the one is
//! written to the other from where it lies.

use std::{
    io, mem,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Buf;

use super::{
    chunked::{self, Chunked},
    conn::Conn,
    framing::Framing,
};
use crate::{
    http::Stream,
    limits::{Permit, Share, Turn},
};

/// A body of which as much has gone on takes turns with others.
const LONG: usize = 64 << 10;

/// One body on its way.
#[derive(Debug)]
pub(super) struct Passing {
    left: Left,
    /// At the front of the source's input: as many bytes go on, and as many behind are left out.
    on: usize,
    out: usize,
    /// Of those that go on: content.
    data: usize,
    /// All that was read so far.
    moved: usize,
    turn: Option<Box<Turn>>,
    /// While the sink takes nothing: for what waits here, and what the source may still send.
    waiting: Option<Permit>,
}

#[derive(Debug)]
enum Left {
    Length(u64),
    Chunks(Chunked),
    Everything,
    Nothing,
}

/// Which end of a passage broke.
pub(super) enum Broken {
    Source(Option<io::Error>),
    Sink(io::Error),
    Framing(chunked::Broken),
    /// Neither, but too much waits for sinks.
    Overfull,
}

impl Passing {
    pub(super) fn new(framing: Framing) -> Self {
        let left = match framing {
            Framing::Length(0) | Framing::Tunnel => Left::Nothing,
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Chunks(Chunked::default()),
            Framing::UntilClose => Left::Everything,
        };
        Self { left, on: 0, out: 0, data: 0, moved: 0, turn: None, waiting: None }
    }

    /// Whether nothing is left of it, on either side.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.left, Left::Nothing) && self.on == 0
    }

    /// Ready once all of it has gone on. `passed` is told how much content has.
    pub(super) fn poll<A: Stream, B: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Conn<A>,
        sink: &mut Conn<B>,
        buffered: &Arc<Share>,
        passed: &mut impl FnMut(usize),
    ) -> Poll<Result<(), Broken>> {
        loop {
            // Before the head is written that waits to be: they go together.
            if self.on == 0 {
                source.input.advance(mem::take(&mut self.out));
                self.look(&source.input).map_err(Broken::Framing)?;
            }
            while self.on > 0 || !sink.output.is_empty() {
                let Poll::Ready(wrote) = sink.poll_write(cx, &source.input[..self.on]) else {
                    return self.wait(source, sink.output.len(), buffered);
                };
                let wrote = wrote.map_err(Broken::Sink)?;
                source.input.advance(wrote);
                self.on -= wrote;
                if self.on == 0 {
                    // Content is not told from its framing before all of this is through.
                    passed(mem::take(&mut self.data));
                }
            }
            self.waiting = None;
            if self.out > 0 {
                continue;
            }
            if matches!(self.left, Left::Nothing) {
                return sink.poll_flush(cx).map_err(Broken::Sink);
            }
            if let Some(turn) = &mut self.turn {
                ready!(turn.poll_mine(cx));
            }
            let Poll::Ready(read) = source.poll_fill(cx) else {
                self.rest();
                // What was written so far may be all for a long time.
                ready!(sink.poll_flush(cx)).map_err(Broken::Sink)?;
                return Poll::Pending;
            };
            match (read.map_err(|error| Broken::Source(Some(error)))?, &self.left) {
                (0, Left::Everything) => self.left = Left::Nothing,
                (0, _) => return Poll::Ready(Err(Broken::Source(None))),
                (read, _) => self.read(read),
            }
        }
    }

    fn read(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(bytes);
        if self.moved >= LONG {
            self.turn.get_or_insert_default().moved(bytes);
        }
    }

    fn rest(&mut self) {
        if let Some(turn) = &mut self.turn {
            turn.rest();
        }
    }

    /// Waits for the sink, which takes nothing now. Only then does a body cost memory for as long as
    /// somebody else likes.
    fn wait<A: Stream>(
        &mut self,
        source: &Conn<A>,
        output: usize,
        buffered: &Arc<Share>,
    ) -> Poll<Result<(), Broken>> {
        self.rest();
        if self.waiting.is_none() {
            let most = source.input.capacity() + output + source.window();
            self.waiting = buffered.take(most as u64);
            if self.waiting.is_none() {
                return Poll::Ready(Err(Broken::Overfull));
            }
        }
        Poll::Pending
    }

    /// Finds out what of `input` goes on.
    fn look(&mut self, input: &[u8]) -> Result<(), chunked::Broken> {
        match &mut self.left {
            Left::Nothing => {}
            Left::Everything => (self.on, self.data) = (input.len(), input.len()),
            Left::Length(left) => {
                let there =
                    usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= there as u64;
                (self.on, self.data) = (there, there);
                if *left == 0 {
                    self.left = Left::Nothing;
                }
            }
            Left::Chunks(chunks) => {
                let chunked::Passed { on, out, data } = chunks.follow(input)?;
                (self.on, self.out, self.data) = (on, out, data);
                if chunks.is_through() {
                    self.left = Left::Nothing;
                }
            }
        }
        Ok(())
    }
}
