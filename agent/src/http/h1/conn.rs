//! One end of a conversation in HTTP/1: a stream, what was read of it and not yet used, and what is
//! to be written to it before anything else.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::ReadBuf;
use tokio_util::io::poll_read_buf;

use crate::http::Stream;

/// How much is read at once at first, and at most: whoever fills what is offered is offered more.
const LEAST_READ: usize = 4 << 10;
const MOST_READ: usize = 64 << 10;
/// As little is copied to go with what precedes it, where two pieces cannot be written as one.
const SMALL_BODY: usize = 4 << 10;

/// One end of a conversation.
#[derive(Debug)]
pub(super) struct Conn<S> {
    io: S,
    /// Read and not yet used.
    pub(super) input: BytesMut,
    /// Heads that are to be written.
    pub(super) output: BytesMut,
    /// How much is read at once.
    room: usize,
    /// Nothing more will be read.
    ended: bool,
}

impl<S: Stream> Conn<S> {
    /// Of which `input` has been read already.
    pub(super) fn new(io: S, input: BytesMut) -> Self {
        Self { io, input, output: BytesMut::new(), room: LEAST_READ, ended: false }
    }

    /// The stream, and what was read of it and not used.
    pub(super) fn into_parts(self) -> (S, BytesMut) {
        (self.io, self.input)
    }

    /// Whether the other end will send nothing more.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether the other end wants to be rid of the connection.
    pub(super) fn is_leaving(&self) -> bool {
        self.io.is_leaving()
    }

    /// How much more the other end may send into memory of this process while nobody reads.
    pub(super) fn window(&self) -> usize {
        self.io.window()
    }

    /// Gives back the memory that a conversation took, where nothing is left of it.
    pub(super) fn rest(&mut self) {
        if self.input.is_empty() && self.output.is_empty() {
            (self.input, self.output, self.room) = (BytesMut::new(), BytesMut::new(), LEAST_READ);
        }
    }

    /// Reads more; 0 at the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        let read = match self.input.is_empty() && self.room == LEAST_READ {
            true => ready!(self.poll_first(cx))?,
            false => {
                if self.input.capacity() - self.input.len() < self.room / 2 {
                    self.input.reserve(self.room);
                }
                ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input))?
            }
        };
        self.ended = read == 0;
        if read >= self.room {
            self.room = (4 * self.room).min(MOST_READ);
        }
        Poll::Ready(Ok(read))
    }

    /// Reads by way of the stack, so that no buffer is held where nothing may come for long.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [const { MaybeUninit::uninit() }; LEAST_READ];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
        self.input.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Writes what is to be written first, and from the front of `body`; how much of that.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        body: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let head = self.output.len();
            let vectored = self.io.is_write_vectored();
            let mut io = Pin::new(&mut self.io);
            let written = match (head, body.len()) {
                (0, 0) => return Poll::Ready(Ok(0)),
                (0, _) => ready!(io.as_mut().poll_write(cx, body))?,
                (_, 0) => ready!(io.as_mut().poll_write(cx, &self.output))?,
                // What follows a head at once goes with it, rather than in a frame of its own.
                (_, 1..=SMALL_BODY) if !vectored => {
                    self.output.extend_from_slice(body);
                    return Poll::Ready(Ok(body.len()));
                }
                _ => {
                    let both = [IoSlice::new(&self.output), IoSlice::new(body)];
                    ready!(io.as_mut().poll_write_vectored(cx, &both))?
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written.min(head));
            if written > head || head == 0 {
                return Poll::Ready(Ok(written - head));
            }
        }
    }

    /// Hands everything that was written to the other end.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Says that nothing more will be written.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
