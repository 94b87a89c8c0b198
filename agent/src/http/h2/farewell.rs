//! How a connection that is to end lets its client know.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How long an HTTP/2 client may take to send the requests it had begun when it learnt that the
/// connection ends.
const LAST_HEADERS: Duration = Duration::from_millis(200);

/// The PING that h2 sends after the first of its two GOAWAYs (RFC 9113 §6.8): the answer makes it
/// send the second, which says what was the last request to be answered.
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

/// Whether one connection is to end. Clones are of one connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending(Arc<AtomicBool>);

impl Ending {
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection whose HTTP/2 client gets time between being told to go and being cut short.
///
/// Many clients, h2's own among them, answer a PING before they send requests that wait in a
/// queue. The second GOAWAY would come before those, and refuse them. So that PING is held back,
/// with whatever follows it, once a connection.
#[derive(Debug)]
pub(super) struct Patient<S> {
    inner: S,
    ending: Ending,
    hold: Hold,
}

#[derive(Debug)]
enum Hold {
    NotYet,
    Until(Pin<Box<Sleep>>),
    Over,
}

impl<S> Patient<S> {
    pub(super) fn new(inner: S, ending: Ending) -> Self {
        Self { inner, ending, hold: Hold::NotYet }
    }

    /// How many of `bytes` may be written now.
    fn poll_allowed(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<usize> {
        if matches!(self.hold, Hold::NotYet) {
            match bytes.windows(PING.len()).position(|window| window == PING) {
                Some(0) => self.hold = Hold::Until(Box::pin(sleep(LAST_HEADERS))),
                Some(before) => return Poll::Ready(before),
                None => return Poll::Ready(bytes.len()),
            }
        }
        if let Hold::Until(sleep) = &mut self.hold {
            ready!(sleep.as_mut().poll(cx));
            self.hold = Hold::Over;
        }
        Poll::Ready(bytes.len())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut allowed = buf.len();
        if self.ending.has_begun() {
            allowed = ready!(self.poll_allowed(cx, buf));
        }
        Pin::new(&mut self.inner).poll_write(cx, &buf[..allowed])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.ending.has_begun() && !matches!(self.hold, Hold::Over) {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_write(cx, first.map_or(&[], |buf| buf));
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
