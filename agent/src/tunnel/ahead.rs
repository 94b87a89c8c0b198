//! Reading ahead of TLS, which takes little at once.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

/// What is taken from the socket at once where much comes: four records of TLS.
const MUCH: usize = 64 << 10;

/// A TCP connection under TLS. rustls asks for 4 KiB at a time, which are five calls of the kernel
/// for each full record. Where it is given as much as it asked for, the next read takes all that is
/// there; where little comes, nothing is held and nothing is copied.
#[derive(Debug)]
pub(super) struct ReadAhead {
    tcp: TcpStream,
    ahead: BytesMut,
    much: bool,
}

impl ReadAhead {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, ahead: BytesMut::new(), much: false }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { tcp, ahead, much } = &mut *self;
        if ahead.is_empty() && !*much {
            ready!(Pin::new(tcp).poll_read(cx, out))?;
            *much = out.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        if ahead.is_empty() {
            ahead.reserve(MUCH);
            let read = poll_read_buf(Pin::new(tcp), cx, ahead);
            if ahead.is_empty() {
                (*ahead, *much) = (BytesMut::new(), false);
            }
            ready!(read)?;
        }
        let take = ahead.len().min(out.remaining());
        out.put_slice(&ahead[..take]);
        ahead.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn what_comes_arrives_whole_in_pieces_of_any_size() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut server = ReadAhead::new(listener.accept().await.unwrap().0);
        let expected = sent.clone();
        let send = async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let hear = async {
            let mut heard = Vec::new();
            for length in [1, 4096, 17, 100_000, 4096].into_iter().cycle() {
                let mut piece = vec![0; length];
                match server.read(&mut piece).await.unwrap() {
                    0 => return heard,
                    read => heard.extend_from_slice(&piece[..read]),
                }
            }
            unreachable!()
        };
        let ((), heard) = tokio::join!(send, hear);
        assert!(heard == expected);
        assert_eq!(server.ahead.capacity(), 0, "nothing is held where nothing comes");
    }
}
