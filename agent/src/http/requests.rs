//! Which requests a connection has open, to know when it can be closed without losing one.

use std::time::Duration;

use http::Version;
use tokio::{sync::watch, time::sleep};

use super::{
    Tap,
    prompt::{Asked, InWork},
};

/// How long a connection is kept for one more request when it is to end. A client that reuses a
/// connection cannot know that it will close: what it has sent by then must be answered.
const LAST_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// The requests of one connection. Clones count together.
#[derive(Clone, Debug)]
pub(super) struct Requests(watch::Sender<State>, Asked);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    open: usize,
    /// HTTP/2 says by itself which requests it will not answer.
    http2: bool,
}

/// One request, from its header to the end of its response.
#[derive(Debug)]
pub(super) struct Open(watch::Sender<State>, InWork);

impl Requests {
    /// None yet. `asked` hears of each.
    pub(super) fn none(asked: Asked) -> Self {
        Self(watch::Sender::default(), asked)
    }

    /// One more.
    pub(super) fn open(&self, version: Version) -> Open {
        self.0.send_modify(|state| {
            state.open += 1;
            state.http2 = version == Version::HTTP_2;
        });
        Open(self.0.clone(), self.1.begin())
    }

    /// Waits until the client can be told to go without losing what it has asked: in HTTP/2 at
    /// once, in HTTP/1 when nothing was asked for a while.
    pub(super) async fn last(&self) {
        let mut state = self.0.subscribe();
        loop {
            let State { open, http2 } = *state.borrow_and_update();
            if http2 {
                return;
            }
            tokio::select! {
                () = sleep(LAST_REQUEST_TIMEOUT), if open == 0 => return,
                // Fails only without a sender, and `self` is one.
                _ = state.changed() => {}
            }
        }
    }
}

impl Open {
    /// For what may last longer than the response.
    pub(super) fn in_work(&self) -> InWork {
        self.1.clone()
    }
}

impl Tap for Open {
    fn data(&mut self, _bytes: usize) {}
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|state| state.open -= 1);
    }
}
