//! What of a stream has not been sent yet.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;

/// Counts the parts of one stream that h2 has: it says of none when it has gone, but drops it then.
///
/// A frame without data behind all others would tell as well. But only so many are taken on one
/// connection, for as long as it lasts (CVE-2019-9518).
#[derive(Debug, Default)]
pub(super) struct Unsent(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    count: AtomicUsize,
    waiting: AtomicWaker,
}

/// One that has not gone.
struct Part {
    data: Bytes,
    of: Arc<Parts>,
}

impl Unsent {
    /// `data`, to be handed to h2.
    pub(super) fn part(&self, data: Bytes) -> Bytes {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(Part { data, of: self.0.clone() })
    }

    /// Waits until h2 has none.
    pub(super) async fn none(&self) {
        poll_fn(|cx| {
            self.0.waiting.register(cx.waker());
            match self.0.count.load(Ordering::Acquire) {
                0 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
    }
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.of.count.fetch_sub(1, Ordering::Release) == 1 {
            self.of.waiting.wake();
        }
    }
}
