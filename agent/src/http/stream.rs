//! What HTTP can run on.

use std::future::ready;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// A connection's bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Whether it is known, before the connection closes, that the other end wants to be rid of it.
    /// HTTP/1 itself has no word for that while nothing is asked, and what is asked at the moment of
    /// closing is lost.
    fn is_leaving(&self) -> bool {
        false
    }

    /// To be asked by a reader that stands still: how much more the other end may send into memory of this
    /// process until something is read.
    fn window(&self) -> usize {
        0
    }

    /// Waits until a reset overtakes nothing that was written, or for as long as the other end takes
    /// some of it.
    fn delivered(&mut self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// Ends the connection in order: the other end hears all that was said to it, and then the end.
    fn end(self) -> impl Future<Output = ()> + Send
    where
        Self: Sized,
    {
        // Of a socket, the kernel sees to that.
        drop(self);
        ready(())
    }

    /// Ends the connection as broken: the other end sees a reset, not an end.
    fn abort(self)
    where
        Self: Sized;
}

impl Stream for TcpStream {
    fn abort(self) {
        // Closing sends RST then. Fails only on a socket that has no peer any more, which nobody has
        // to be told.
        let _ = socket2::SockRef::from(&self).set_linger(Some(std::time::Duration::ZERO));
    }
}

/// Both ends are in this process.
impl Stream for tokio::io::DuplexStream {
    fn abort(self) {}
}
