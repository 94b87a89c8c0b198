//! A client that has begun to ask must come to the point.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::Tap;

/// How long the head of a request may take, from its first byte on.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// The preface of an HTTP/2 client and the header of the SETTINGS frame that has to follow it
/// (RFC 9113 §3.4).
const BEGINNING: usize = 24 + 9;
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// What was asked on one connection. Clones are of one connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked(Arc<Heads>);

#[derive(Debug, Default)]
struct Heads {
    /// How many came to their end.
    whole: AtomicUsize,
    /// What still comes or goes for the sake of one.
    in_work: AtomicUsize,
}

impl Asked {
    /// A head is whole. Until what is returned is dropped, and all that was made of it, what comes
    /// is no head.
    pub(super) fn begin(&self) -> InWork {
        self.0.whole.fetch_add(1, Relaxed);
        InWork::of(&self.0)
    }

    fn is_in_work(&self) -> bool {
        self.0.in_work.load(Relaxed) > 0
    }
}

/// A request whose body still comes, whose response still goes, or that made something else of
/// its connection.
#[derive(Debug)]
pub(super) struct InWork(Arc<Heads>);

impl InWork {
    fn of(heads: &Arc<Heads>) -> Self {
        heads.in_work.fetch_add(1, Relaxed);
        Self(heads.clone())
    }
}

impl Clone for InWork {
    fn clone(&self) -> Self {
        Self::of(&self.0)
    }
}

impl Drop for InWork {
    fn drop(&mut self) {
        self.0.in_work.fetch_sub(1, Relaxed);
    }
}

/// Lasts as long as the body it watches.
impl Tap for InWork {
    fn data(&mut self, _bytes: usize) {}
}

/// A connection that breaks when a head, begun, takes too long. One that says nothing between two
/// requests, or before the first, may do so for as long as it is kept.
///
/// No timer is made for a head that comes in one piece.
#[derive(Debug)]
pub(super) struct Prompt<S> {
    inner: S,
    asked: Asked,
    /// How many heads were whole when it was last looked at.
    whole: usize,
    head: HeadOf,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// What is waited for.
#[derive(Clone, Copy, Debug)]
enum HeadOf {
    /// As many bytes are those that every HTTP/2 connection begins with.
    Unknown(usize),
    /// A request; whether a part of it has come.
    Http1(bool),
    /// Nothing: in HTTP/2 what has to come in time is the beginning of the connection. Afterwards
    /// streams come and go, and the connection's own pings tell whether anybody is there.
    Http2,
}

impl HeadOf {
    fn after(self, bytes: &[u8]) -> Self {
        let HeadOf::Unknown(heard) = self else { return self };
        let expected = &H2_PREFACE[heard.min(H2_PREFACE.len())..];
        let length = expected.len().min(bytes.len());
        if expected[..length] != bytes[..length] {
            return HeadOf::Http1(true);
        }
        match heard + bytes.len() {
            all if all >= BEGINNING => HeadOf::Http2,
            all => HeadOf::Unknown(all),
        }
    }

    fn has_begun(self) -> bool {
        matches!(self, HeadOf::Unknown(1..) | HeadOf::Http1(true))
    }
}

impl<S> Prompt<S> {
    pub(super) fn new(inner: S, asked: Asked) -> Self {
        Self { inner, asked, whole: 0, head: HeadOf::Unknown(0), deadline: None }
    }

    fn heard(&mut self, bytes: &[u8]) {
        self.look_at_what_was_asked();
        self.head = self.head.after(bytes);
        if let HeadOf::Http1(begun) = &mut self.head {
            *begun = !self.asked.is_in_work();
        }
    }

    /// A head that had begun may be whole by now, and even be answered: hyper does not read while
    /// it waits for a response, so this is the first to see that. What hyper has of the next head
    /// by then is not known here; who says no more than that is taken for one who is silent.
    fn look_at_what_was_asked(&mut self) {
        let whole = self.asked.0.whole.load(Relaxed);
        if let HeadOf::Http1(begun) = &mut self.head
            && (whole != self.whole || self.asked.is_in_work())
        {
            *begun = false;
            self.deadline = None;
        }
        self.whole = whole;
    }

    /// Nothing comes. Whether that has been so for too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> bool {
        self.look_at_what_was_asked();
        if !self.head.has_begun() {
            self.deadline = None;
            return false;
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(HEAD_TIMEOUT)));
        deadline.as_mut().poll(cx).is_ready()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prompt<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        match &read {
            Poll::Ready(_) => self.heard(&buf.filled()[before..]),
            Poll::Pending if self.poll_late(cx) => {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            Poll::Pending => {}
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prompt<S> {
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
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::{Instant, timeout},
    };

    use super::*;

    fn pair() -> (DuplexStream, Prompt<DuplexStream>, Asked) {
        let (client, server) = duplex(1 << 10);
        let asked = Asked::default();
        (client, Prompt::new(server, asked.clone()), asked)
    }

    async fn hear(from: &mut Prompt<DuplexStream>) -> io::Result<usize> {
        from.read(&mut [0; 64]).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_of_which_a_byte_comes_now_and_then_is_not_waited_for() {
        for start in ["G", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let (mut client, mut server, _) = pair();
            let began = Instant::now();
            let dribble = async {
                client.write_all(start.as_bytes()).await.unwrap();
                for byte in std::iter::repeat_n(b"\0", 8) {
                    sleep(HEAD_TIMEOUT / 4).await;
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
            assert!(began.elapsed() <= 2 * HEAD_TIMEOUT);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_before_and_between_requests_and_within_bodies_is_no_head() {
        let (mut client, mut server, asked) = pair();
        assert!(timeout(2 * HEAD_TIMEOUT, hear(&mut server)).await.is_err(), "before the first");
        client.write_all(b"POST / HTTP/1.1\r\n\r\n").await.unwrap();
        hear(&mut server).await.unwrap();
        let in_work = asked.begin();
        client.write_all(b"a body").await.unwrap();
        hear(&mut server).await.unwrap();
        assert!(timeout(2 * HEAD_TIMEOUT, hear(&mut server)).await.is_err(), "within a body");
        drop(in_work);
        assert!(timeout(2 * HEAD_TIMEOUT, hear(&mut server)).await.is_err(), "between two");
        client.write_all(b"GET").await.unwrap();
        hear(&mut server).await.unwrap();
        assert_eq!(hear(&mut server).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn an_http_2_client_may_be_silent_once_it_has_begun() {
        let (mut client, mut server, _) = pair();
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        hear(&mut server).await.unwrap();
        assert!(timeout(4 * HEAD_TIMEOUT, hear(&mut server)).await.is_err());
    }
}
