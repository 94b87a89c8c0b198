//! One end of a conversation in HTTP/1: a stream, what was read of it and not yet used, and what is
//! to be written to it before anything else.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// How much is read at once at first, and at most: whoever fills what is offered is offered more.
const LEAST_READ: usize = 4 << 10;
const MOST_READ: usize = 64 << 10;

/// One end of a conversation.
#[derive(Debug)]
pub struct Conn<S> {
    io: S,
    /// Read and not yet used.
    pub input: BytesMut,
    /// Heads that are to be written.
    pub output: BytesMut,
    /// How much is read at once.
    room: usize,
    /// Nothing more will be read.
    ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<S> {
    /// Of which `input` has been read already.
    pub fn new(io: S, input: BytesMut) -> Self {
        Self { io, input, output: BytesMut::new(), room: LEAST_READ, ended: false }
    }

    /// The stream, and what was read of it and not used.
    pub fn into_parts(self) -> (S, BytesMut) {
        (self.io, self.input)
    }

    /// Whether the other end will send nothing more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Gives back the memory that a conversation took, where nothing is left of it.
    pub fn rest(&mut self) {
        if self.input.is_empty() && self.output.is_empty() {
            (self.input, self.output, self.room) = (BytesMut::new(), BytesMut::new(), LEAST_READ);
        }
    }

    /// Reads more; 0 at the end.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.input.capacity() - self.input.len() < self.room / 2 {
            self.input.reserve(self.room);
        }
        let read = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input))?;
        self.ended = read == 0;
        if read >= self.room {
            self.room = (4 * self.room).min(MOST_READ);
        }
        Poll::Ready(Ok(read))
    }

    /// Writes what is to be written first, and from the front of `body`; how much of that.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, body: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let head = self.output.len();
            let mut io = Pin::new(&mut self.io);
            let written = match (head, body.len()) {
                (0, 0) => return Poll::Ready(Ok(0)),
                (0, _) => ready!(io.as_mut().poll_write(cx, body))?,
                (_, 0) => ready!(io.as_mut().poll_write(cx, &self.output))?,
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
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Says that nothing more will be written.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
