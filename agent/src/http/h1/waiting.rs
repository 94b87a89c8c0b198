//! How long a connection waits for the next request.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long a connection may be silent between two requests: as long as Envoy lets it, for a client
/// whose pool keeps connections longer would meet closed ones.
const IDLE: Duration = Duration::from_secs(3600);
/// How long a head may take from its first byte on.
const HEAD: Duration = Duration::from_secs(20);
/// How long a client is waited for that may not know yet that its connection ends.
pub(super) const LAST_REQUEST: Duration = Duration::from_secs(1);

/// What one connection's waiting ends with. One timer serves it for its whole life: it is set anew
/// only when it has run out too early, or runs out too late.
#[derive(Debug)]
pub(super) struct Waiting {
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
    has_to_end: bool,
    timer: Pin<Box<Sleep>>,
    since: Instant,
}

impl Waiting {
    /// On a connection that is to end once `ending` is cancelled, a token of its own: waiting on one of
    /// all connections would take its lock at every poll.
    pub(super) fn new(ending: &CancellationToken) -> Self {
        let since = Instant::now();
        Self {
            ending: Box::pin(ending.clone().cancelled_owned()),
            has_to_end: ending.is_cancelled(),
            timer: Box::pin(sleep_until(since + IDLE)),
            since,
        }
    }

    /// Something begins to be waited for.
    pub(super) fn begin(&mut self) {
        self.since = Instant::now();
    }

    /// Ready when nothing has come for too long; `begun` says that a part of a head has.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>, begun: bool) -> Poll<()> {
        if !self.has_to_end && self.ending.as_mut().poll(cx).is_ready() {
            self.has_to_end = true;
            self.begin();
        }
        let most = match (begun, self.has_to_end) {
            (true, _) => HEAD,
            (false, true) => LAST_REQUEST,
            (false, false) => IDLE,
        };
        let until = self.since + most;
        loop {
            if self.timer.deadline() > until {
                self.timer.as_mut().reset(until);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.timer.deadline() >= until {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(until);
        }
    }
}
