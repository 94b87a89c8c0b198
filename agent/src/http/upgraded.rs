//! What a connection carries after it was upgraded.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use http::Response;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Body;

/// Follows what a connection carries after it was upgraded. Dropped without a word where that is cut.
pub trait Carried: Send {
    /// So many bytes more from client to server and from server to client.
    fn moved(&mut self, _sent: u64, _received: u64) {}
    /// It ended in order, or one end `broke`.
    fn ended(self: Box<Self>, _broke: Option<End>) {}
}

/// One end of an upgraded connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Who asked for the upgrade.
    Client,
    /// Who was asked.
    Server,
}

/// Who follows: a response that upgrades carries them in its extensions, one of each side that wants
/// to know.
#[derive(Clone, Default)]
pub struct Upgraded(Arc<Mutex<Vec<Box<dyn Carried>>>>);

impl Upgraded {
    /// Has `follower` follow what `response` upgrades to.
    pub fn follow(response: &mut Response<Body>, follower: impl Carried + 'static) {
        let upgraded: &Self = response.extensions_mut().get_or_insert_default();
        upgraded.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(follower));
    }

    pub(super) fn into_followers(self) -> Vec<Box<dyn Carried>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The client's end, of whose every byte those who follow are told.
pub(super) struct Followed<'a, S> {
    client: S,
    following: &'a mut [Box<dyn Carried>],
    broke: bool,
}

impl<'a, S> Followed<'a, S> {
    pub(super) fn new(client: S, following: &'a mut [Box<dyn Carried>]) -> Self {
        Self { client, following, broke: false }
    }

    /// Whether it was this end that broke.
    pub(super) fn broke(&self) -> bool {
        self.broke
    }

    fn noted<T>(&mut self, done: io::Result<T>) -> io::Result<T> {
        self.broke |= done.is_err();
        done
    }

    fn moved(&mut self, sent: usize, received: usize) {
        self.following.iter_mut().for_each(|follower| follower.moved(sent as u64, received as u64));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Followed<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.client).poll_read(cx, buf));
        self.moved(buf.filled().len() - before, 0);
        Poll::Ready(self.noted(read))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Followed<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.client).poll_write(cx, buf));
        self.moved(0, *written.as_ref().unwrap_or(&0));
        Poll::Ready(self.noted(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.client).poll_flush(cx));
        Poll::Ready(self.noted(flushed))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = ready!(Pin::new(&mut self.client).poll_shutdown(cx));
        Poll::Ready(self.noted(ended))
    }
}
