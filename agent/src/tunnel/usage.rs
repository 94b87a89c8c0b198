//! How many streams a connection carries, and whether anybody is at its other end.

use std::{future::pending, time::Duration};

use h2::{Ping, PingPong};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::limits::{PING_INTERVAL, PING_TIMEOUT};

/// Counts the streams of one connection.
#[derive(Clone, Debug)]
pub(super) struct Usage(watch::Sender<usize>);

/// One stream; counted until it is dropped.
#[derive(Debug)]
pub(super) struct InUse(watch::Sender<usize>);

impl Usage {
    pub(super) fn none() -> Self {
        Self(watch::Sender::new(0))
    }

    /// One more stream, unless there are `limit` already.
    pub(super) fn take(&self, limit: usize) -> Option<InUse> {
        let taken = self.0.send_if_modified(|streams| {
            let room = *streams < limit;
            *streams += usize::from(room);
            room
        });
        taken.then(|| InUse(self.0.clone()))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Tells of every change.
    pub(super) fn changes(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }

    pub(super) fn is_zero(&self) -> bool {
        *self.0.borrow() == 0
    }

    /// Waits until there has been no stream for `time`.
    pub(super) async fn idle_for(&self, time: Duration) {
        let mut streams = self.0.subscribe();
        loop {
            // Fails only without a sender, and `self` is one.
            let _ = streams.wait_for(|streams| *streams == 0).await;
            tokio::select! {
                () = sleep(time) => return,
                _ = streams.changed() => {}
            }
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.send_modify(|streams| *streams -= 1);
    }
}

/// Returns when the peer has not answered a ping in time.
pub(super) async fn peer_is_gone(mut pings: PingPong) {
    loop {
        sleep(PING_INTERVAL).await;
        match timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection has ended and its own future says how.
            Ok(Err(_)) => return pending().await,
            Err(_) => return,
        }
    }
}

/// What is said of a connection that ended so.
pub(super) const GONE: &str = "the peer did not answer a ping";
