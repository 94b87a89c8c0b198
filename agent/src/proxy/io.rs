//! The byte streams a connection can run on.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::last_words;
use crate::{
    http::Stream,
    tunnel::{HboneStream, SEND_BUFFER},
};

/// The most taken from a TCP socket at once: what a tunnel takes at once, and nothing over that would
/// make a frame of its own.
const LARGEST_READ: usize = SEND_BUFFER;
/// The first read; each one that fills its buffer makes the next four times as large, so that
/// an interactive connection stays small.
const FIRST_READ: usize = 4 << 10;

/// One end of a connection.
#[derive(Debug)]
pub enum Io {
    /// Straight over TCP.
    Tcp(TcpStream),
    /// One HBONE stream.
    Hbone(HboneStream),
}

/// How much a reader takes from TCP at once.
#[derive(Debug)]
pub(super) struct ReadSize(usize);

impl Default for ReadSize {
    fn default() -> Self {
        Self(FIRST_READ)
    }
}

impl Io {
    /// The next bytes; empty at the end of the stream. Holds no buffer while it waits.
    pub(super) fn poll_read_bytes(
        &mut self,
        cx: &mut Context<'_>,
        size: &mut ReadSize,
    ) -> Poll<io::Result<Bytes>> {
        let stream = match self {
            Io::Hbone(stream) => return stream.poll_read_bytes(cx),
            Io::Tcp(stream) => stream,
        };
        loop {
            ready!(stream.poll_read_ready(cx))?;
            let mut buffer = BytesMut::with_capacity(size.0);
            match stream.try_read_buf(&mut buffer) {
                Ok(read) => {
                    if read == size.0 {
                        size.0 = (4 * size.0).min(LARGEST_READ);
                    }
                    return Poll::Ready(Ok(buffer.freeze()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Writes from the front of `data` as much as there is room for.
    pub(super) fn poll_write_bytes(
        &mut self,
        cx: &mut Context<'_>,
        data: &mut Bytes,
    ) -> Poll<io::Result<()>> {
        match self {
            Io::Hbone(stream) => stream.poll_write_bytes(cx, data).map_ok(drop),
            Io::Tcp(stream) => {
                let written = ready!(Pin::new(stream).poll_write(cx, data))?;
                data.advance(written);
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// Makes closing `stream` send RST. The application's `connect()` succeeded before its server
/// was reached, so this is how it learns that there is none (ECONNRESET, at once).
pub(super) fn reset(stream: &TcpStream) {
    // Fails only on a socket that has no peer any more, which nobody has to be told.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

impl Stream for Io {
    fn is_leaving(&self) -> bool {
        match self {
            Io::Tcp(_) => false,
            Io::Hbone(stream) => stream.is_leaving(),
        }
    }

    /// The kernel's buffers are not looked at.
    fn window(&self) -> usize {
        match self {
            Io::Tcp(_) => 0,
            Io::Hbone(stream) => stream.window(),
        }
    }

    async fn delivered(&mut self) {
        last_words::delivered(self).await;
    }

    async fn end(self) {
        if let Io::Hbone(stream) = self {
            last_words::end(stream).await;
        }
    }

    fn abort(self) {
        match self {
            Io::Tcp(stream) => stream.abort(),
            Io::Hbone(stream) => stream.abort(),
        }
    }
}

/// Runs the same method on whichever stream `self` is.
macro_rules! either {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self.get_mut() {
            Io::Tcp($inner) => $call,
            Io::Hbone($inner) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, inner => Pin::new(inner).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, inner => Pin::new(inner).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Io::Tcp(inner) => inner.is_write_vectored(),
            Io::Hbone(inner) => inner.is_write_vectored(),
        }
    }
}
