//! A client that has begun to speak HTTP/2 must come to the point.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::limits::BEGINNING;

/// The preface of a client and the header of the SETTINGS frame that has to follow it
/// (RFC 9113 §3.4).
const LENGTH: usize = 24 + 9;

/// A connection that breaks when its beginning, begun, takes too long. Afterwards, and before the
/// first byte, a client may be silent for as long as its connection is kept.
#[derive(Debug)]
pub(super) struct Beginning<S> {
    inner: S,
    heard: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Beginning<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, heard: 0, deadline: None }
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> bool {
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(BEGINNING)));
        deadline.as_mut().poll(cx).is_ready()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Beginning<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if self.heard >= LENGTH {
            return read;
        }
        match &read {
            Poll::Ready(_) => {
                self.heard += buf.filled().len() - before;
                if self.heard >= LENGTH {
                    self.deadline = None;
                }
            }
            Poll::Pending if self.heard > 0 && self.poll_late(cx) => {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            Poll::Pending => {}
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Beginning<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
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
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::timeout,
    };

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

    async fn hear(from: &mut Beginning<tokio::io::DuplexStream>) -> io::Result<usize> {
        from.read(&mut [0; 64]).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_beginning_of_which_a_byte_comes_now_and_then_is_not_waited_for() {
        let (mut client, server) = duplex(1 << 10);
        let mut server = Beginning::new(server);
        let dribble = async {
            client.write_all(PREFACE).await.unwrap();
            for byte in std::iter::repeat_n(b"\0", 8) {
                sleep(BEGINNING / 4).await;
                let _ = client.write_all(byte).await;
            }
        };
        let listen = async {
            loop {
                if let Err(error) = hear(&mut server).await {
                    break error;
                }
            }
        };
        let (error, ()) = tokio::join!(listen, dribble);
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_be_silent_before_it_begins_and_once_it_has() {
        let (mut client, server) = duplex(1 << 10);
        let mut server = Beginning::new(server);
        assert!(timeout(4 * BEGINNING, hear(&mut server)).await.is_err());
        client.write_all(PREFACE).await.unwrap();
        client.write_all(&SETTINGS).await.unwrap();
        hear(&mut server).await.unwrap();
        assert!(timeout(4 * BEGINNING, hear(&mut server)).await.is_err());
    }
}
