//! Letting connections end before the agent does.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};
use tokio_util::{
    sync::CancellationToken,
    task::{
        TaskTracker,
        task_tracker::{TaskTrackerToken, TrackedFuture},
    },
};

/// How long a listener that gets no new handshakes any more is kept after the last connection.
/// Those under way end in its own queue. One of which a packet was lost goes on after a second
/// (RFC 6298 §2), after another loss after three.
const LAST_HANDSHAKE: Duration = Duration::from_secs(3);

/// How long what connections have carried may take to be through with its spans once the last has been
/// closed. Tasks of their own are told to end with their connection, and end a little later.
const LAST_SPANS: Duration = Duration::from_secs(1);

/// Follows every connection from accept to close.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    started: CancellationToken,
    abort: CancellationToken,
    connections: TaskTracker,
    /// The most that were open at once, since it was last asked.
    most: Arc<AtomicUsize>,
    carried: TaskTracker,
    succeeded: CancellationToken,
    listeners: TaskTracker,
}

impl Drain {
    /// Runs a connection on `thread` to its end, or until the drain deadline.
    pub fn connection(
        &self,
        thread: &Handle,
        connection: impl Future<Output = ()> + Send + 'static,
    ) {
        thread.spawn(self.held(connection));
    }

    /// The same of what is run by somebody else: the drain waits for it.
    pub(super) fn held<F: Future<Output = ()>>(
        &self,
        connection: F,
    ) -> TrackedFuture<impl Future<Output = ()> + use<F>> {
        // A child: waiting on the one token of all connections takes its lock at every poll.
        let abort = self.abort.child_token();
        let held = self.connections.track_future(async move {
            tokio::select! {
                biased;
                () = connection => {}
                () = abort.cancelled() => {}
            }
        });
        self.most.fetch_max(self.open(), Relaxed);
        held
    }

    /// Has the drain wait until what a connection carries has told all it has to.
    pub(super) fn carries(&self) -> TaskTrackerToken {
        self.carried.token()
    }

    /// Says that new connections go to another agent's listeners. Those of this agent close once
    /// they have run dry.
    pub fn succeeded(&self) {
        self.succeeded.cancel();
    }

    /// Runs the loop that accepts at one listener.
    pub(super) fn listener<F: Future>(&self, accepting: F) -> TrackedFuture<F> {
        self.listeners.track_future(accepting)
    }

    /// Waits until a listener has run dry; to be asked anew after each connection.
    pub(super) async fn dry(&self) {
        self.succeeded.cancelled().await;
        sleep(LAST_HANDSHAKE).await;
    }

    /// Cancelled when connections should finish what they are doing and close.
    pub fn started(&self) -> &CancellationToken {
        &self.started
    }

    /// Waits until what is still open is cut.
    pub(super) async fn cut(&self) {
        // A child, as above.
        self.abort.child_token().cancelled_owned().await;
    }

    /// Whether what was still open is being cut, or was.
    pub(super) fn has_cut(&self) -> bool {
        self.abort.is_cancelled()
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.connections.len()
    }

    /// The most that were open at once since this was last asked.
    pub fn most(&self) -> usize {
        self.most.swap(self.open(), Relaxed)
    }

    /// Asks every connection to finish, waits at most `deadline`, then cuts what is left.
    /// Returns how many were cut.
    pub async fn run(&self, deadline: Duration) -> usize {
        self.started.cancel();
        self.listeners.close();
        self.connections.close();
        let ended = async {
            if self.succeeded.is_cancelled() {
                self.listeners.wait().await;
            }
            self.connections.wait().await;
        };
        let cut = match timeout(deadline, ended).await {
            Ok(()) => 0,
            Err(_) => {
                let cut = self.connections.len();
                self.abort.cancel();
                self.connections.wait().await;
                cut
            }
        };
        self.carried.close();
        if timeout(LAST_SPANS, self.carried.wait()).await.is_err() {
            tracing::warn!("spans of connections that were cut may be lost");
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_that_finish_in_time_are_not_cut() {
        let drain = Drain::default();
        let asked = drain.started().clone();
        drain.connection(&Handle::current(), async move { asked.cancelled().await });
        assert_eq!(drain.run(Duration::from_secs(15)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_accepted_until_the_listeners_of_another_agent_get_them_all() {
        let drain = Drain::default();
        let (arrive, mut arriving) = tokio::sync::mpsc::unbounded_channel::<Duration>();
        let listener = drain.clone();
        tokio::spawn(drain.listener(async move {
            loop {
                tokio::select! {
                    Some(takes) = arriving.recv() => listener.connection(&Handle::current(), sleep(takes)),
                    () = listener.dry() => return,
                }
            }
        }));
        let began = tokio::time::Instant::now();
        drain.succeeded();
        let late = async {
            sleep(LAST_HANDSHAKE / 2).await;
            arrive.send(2 * LAST_HANDSHAKE).unwrap();
        };
        let (cut, ()) = tokio::join!(drain.run(Duration::from_secs(60)), late);
        assert_eq!((cut, began.elapsed()), (0, LAST_HANDSHAKE / 2 + 2 * LAST_HANDSHAKE));
    }

    #[tokio::test(start_paused = true)]
    async fn what_they_have_carried_is_waited_for_after_the_last_but_not_for_ever() {
        let drain = Drain::default();
        let (carried, stuck) = (drain.carries(), drain.carries());
        let began = tokio::time::Instant::now();
        tokio::spawn(async move {
            sleep(LAST_SPANS / 2).await;
            drop(carried);
        });
        let second = drain.clone();
        assert_eq!(drain.run(Duration::from_secs(15)).await, 0);
        assert_eq!(began.elapsed(), LAST_SPANS);
        drop(stuck);
        assert_eq!(second.run(Duration::from_secs(15)).await, 0);
        assert_eq!(began.elapsed(), LAST_SPANS);
    }

    #[tokio::test]
    async fn those_that_came_and_went_between_two_looks_are_counted() {
        let drain = Drain::default();
        let held: Vec<_> = (0..5).map(|_| drain.held(std::future::pending())).collect();
        drop(held);
        let _one = drain.held(std::future::pending());
        assert_eq!((drain.most(), drain.most()), (5, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_outlive_the_deadline_are_cut_and_counted() {
        let drain = Drain::default();
        drain.connection(&Handle::current(), std::future::pending());
        assert_eq!(drain.open(), 1);
        assert_eq!(drain.run(Duration::from_secs(15)).await, 1);
    }
}
