//! A connection to a server that requests share.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use crate::{
    http::Stream,
    proxy::{Io, LocalPod, Proxy, authorization::revoked, inbound::Arrival},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Breaks when the pod leaves the mesh that it leads to, or policy lets nothing pass any more that it
/// carries. Only a pod of this node is watched: what leads elsewhere ends with the tunnel.
pub(in crate::proxy) struct Upstream {
    io: Io,
    gone: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl From<Io> for Upstream {
    fn from(io: Io) -> Self {
        Self { io, gone: None }
    }
}

impl Upstream {
    /// To `pod`, of this node, for a client whose connection is watched itself.
    pub(in crate::proxy) fn to_pod(io: Io, pod: &LocalPod) -> Self {
        Self { io, gone: Some(Box::pin(pod.released())) }
    }

    /// To `pod`, of this node, for another one.
    pub(in crate::proxy) fn handed_over(
        io: Io,
        proxy: &Proxy,
        pod: &LocalPod,
        arrival: &Arrival,
    ) -> Self {
        let (released, revoked) = (pod.released(), revoked(proxy, pod, arrival));
        let gone = async move {
            tokio::select! {
                () = released => {}
                () = revoked => {}
            }
        };
        Self { io, gone: Some(Box::pin(gone)) }
    }

    pub(super) fn into_inner(self) -> Io {
        self.io
    }
}

impl Stream for Upstream {
    fn is_leaving(&self) -> bool {
        self.io.is_leaving()
    }

    fn window(&self) -> usize {
        self.io.window()
    }

    fn delivered(&mut self) -> impl Future<Output = ()> + Send {
        self.io.delivered()
    }

    fn end(self) -> impl Future<Output = ()> + Send {
        self.io.end()
    }

    fn abort(self) {
        self.io.abort();
    }
}

impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // First: a server that always has more to say is never waited for.
        if let Some(gone) = &mut self.gone
            && gone.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
