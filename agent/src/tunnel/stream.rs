//! One tunnelled byte stream.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream, client::SendRequest};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{limits::SEND_BUFFER, unsent::Unsent, usage::InUse, window::Reader};

/// One tunnelled byte stream; each direction ends by itself.
///
/// Dropping a stream that was not ended with `shutdown` resets it.
#[derive(Debug)]
pub struct HboneStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Received, but more than the last reader's buffer held.
    unread: Bytes,
    ended: bool,
    /// What h2 has of it.
    unsent: Unsent,
    reader: Reader,
    /// The connection under it, at the end that opened the stream.
    opened_on: Option<SendRequest<Bytes>>,
    _in_use: Arc<InUse>,
}

impl HboneStream {
    pub(super) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        reader: Reader,
        opened_on: Option<SendRequest<Bytes>>,
        in_use: Arc<InUse>,
    ) -> Self {
        Self {
            send,
            recv,
            reader,
            unread: Bytes::new(),
            ended: false,
            unsent: Unsent::default(),
            opened_on,
            _in_use: in_use,
        }
    }

    /// To be asked by a reader that stands still: how much may arrive meanwhile, and be held by this
    /// process.
    pub fn window(&self) -> usize {
        self.reader.stands() as usize
    }

    /// Whether the peer's agent has asked to move what it carries elsewhere. At the end that was asked
    /// for the stream, never.
    pub fn is_leaving(&self) -> bool {
        self.opened_on.as_ref().is_some_and(|connection| {
            // No stream could be opened any more, be it since GOAWAY or since the end.
            let ready = connection.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
            matches!(ready, Poll::Ready(Err(_)))
        })
    }

    /// The next bytes as they came, without a copy; empty at the end of the stream.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionReset`] when the peer reset the stream or the connection
    /// under it is gone.
    pub fn poll_read_bytes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        self.reader.reads();
        if !self.unread.is_empty() {
            return Poll::Ready(Ok(std::mem::take(&mut self.unread)));
        }
        loop {
            let bytes = match ready!(self.recv.poll_data(cx)) {
                Some(bytes) => bytes.map_err(reset)?,
                None => return Poll::Ready(Ok(Bytes::new())),
            };
            // The window opens again as the bytes are taken, not as they arrive: a reader
            // that stands still holds the peer back.
            self.recv.flow_control().release_capacity(bytes.len()).map_err(reset)?;
            if !bytes.is_empty() {
                return Poll::Ready(Ok(bytes));
            }
        }
    }

    /// Sends as much from the front of `data` as flow control allows, without a copy, and
    /// returns how much that was.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionReset`] when the peer reset the stream or the connection
    /// under it is gone; [`io::ErrorKind::BrokenPipe`] after `shutdown`.
    pub fn poll_write_bytes(
        &mut self,
        cx: &mut Context<'_>,
        data: &mut Bytes,
    ) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.poll_room(cx, data.len()))?;
        let part = data.split_to(room.min(data.len()));
        let sent = part.len();
        self.send(part, false)?;
        Poll::Ready(Ok(sent))
    }

    /// Waits until all that was written is on its way. A reset overtakes what is not; h2 discards
    /// that.
    pub async fn sent(&mut self) {
        self.unsent.none().await;
    }

    fn send(&mut self, part: Bytes, end: bool) -> io::Result<()> {
        self.send.send_data(self.unsent.part(part), end).map_err(reset)
    }

    /// Resets the stream, so that the peer sees a broken connection and not an end. What was
    /// written and is not [sent](Self::sent) is discarded.
    pub fn abort(mut self) {
        // RFC 9113 §8.5: how a proxy tells of a TCP connection that was reset.
        self.send.send_reset(Reason::CONNECT_ERROR);
        self.ended = true;
    }

    /// How much may be sent now, at least one byte, of `wanted`.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // What is reserved is taken from the other streams of the connection; never more
        // than can be sent at once.
        self.send.reserve_capacity(wanted.min(SEND_BUFFER));
        let room = match self.send.capacity() {
            0 => ready!(self.send.poll_capacity(cx)),
            room => Some(Ok(room)),
        };
        Poll::Ready(match room {
            Some(room) => room.map_err(reset),
            None => Err(self.why_closed(cx)),
        })
    }

    fn why_closed(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => reset(reason.into()),
            Poll::Ready(Err(error)) => reset(error),
            Poll::Pending => io::ErrorKind::ConnectionReset.into(),
        }
    }
}

impl Drop for HboneStream {
    fn drop(&mut self) {
        if !self.ended {
            // Now, and not when what waits for the window has been sent: nobody is left to
            // tell whether it was all.
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

/// Copies what `buf` has room for, and returns the rest. Where that is nothing it holds nothing: `bytes`
/// are part of what h2 read at once, up to 72 KiB, which stay as long as any part of them is held, and
/// a stream may be idle for long.
fn take_front(mut bytes: Bytes, buf: &mut ReadBuf<'_>) -> Bytes {
    let take = bytes.len().min(buf.remaining());
    buf.put_slice(&bytes[..take]);
    bytes.advance(take);
    if bytes.is_empty() { Bytes::new() } else { bytes }
}

/// To whoever uses a stream, every way to lose it is a reset.
fn reset(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl AsyncRead for HboneStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let bytes = ready!(self.poll_read_bytes(cx))?;
        self.unread = take_front(bytes, buf);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.poll_room(cx, buf.len()))?;
        let part = Bytes::copy_from_slice(&buf[..room.min(buf.len())]);
        let sent = part.len();
        self.send(part, false)?;
        Poll::Ready(Ok(sent))
    }

    /// In one frame, so that a head and the body behind it are one.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.poll_room(cx, wanted))?;
        let mut part = BytesMut::with_capacity(room.min(wanted));
        for buf in bufs {
            let left = room.min(wanted) - part.len();
            part.put_slice(&buf[..left.min(buf.len())]);
        }
        let sent = part.len();
        self.send(part.freeze(), false)?;
        Poll::Ready(Ok(sent))
    }

    /// So whoever writes keeps its buffers as they are until they are taken, and copies nothing.
    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The connection's own task sends what was written, without being asked.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends this direction; the other goes on.
    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            self.send(Bytes::new(), true)?;
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands for all that h2 read at once.
    struct Read {
        _held: Arc<()>,
    }

    impl AsRef<[u8]> for Read {
        fn as_ref(&self) -> &[u8] {
            b"request"
        }
    }

    #[test]
    fn what_was_read_to_its_last_byte_is_held_no_longer() {
        let held = Arc::new(());
        let bytes = Bytes::from_owner(Read { _held: held.clone() });
        let mut room = [0; 4];
        let rest = take_front(bytes, &mut ReadBuf::new(&mut room));
        assert_eq!((&room[..], &rest[..]), (&b"requ"[..], &b"est"[..]));
        assert_eq!(Arc::strong_count(&held), 2, "the rest is held");
        let rest = take_front(rest, &mut ReadBuf::new(&mut room));
        assert_eq!(&room[..3], b"est");
        assert!(rest.is_empty());
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
