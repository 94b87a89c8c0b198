//! Letting connections end before the agent does.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Follows every connection from accept to close.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    started: CancellationToken,
    abort: CancellationToken,
    connections: TaskTracker,
}

impl Drain {
    /// Runs a connection to its end, or until the drain deadline.
    pub fn connection(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let abort = self.abort.clone();
        self.connections.spawn(async move {
            tokio::select! {
                // A connection that watches for the cut itself gets to record how it ended.
                biased;
                () = connection => {}
                () = abort.cancelled() => {}
            }
        });
    }

    /// Cancelled when connections should finish what they are doing and close.
    pub fn started(&self) -> &CancellationToken {
        &self.started
    }

    /// Cancelled when what is still open is cut.
    pub(super) fn cut(&self) -> &CancellationToken {
        &self.abort
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.connections.len()
    }

    /// Asks every connection to finish, waits at most `deadline`, then cuts what is left.
    /// Returns how many were cut.
    pub async fn run(&self, deadline: Duration) -> usize {
        self.started.cancel();
        self.connections.close();
        if tokio::time::timeout(deadline, self.connections.wait()).await.is_ok() {
            return 0;
        }
        let cut = self.connections.len();
        self.abort.cancel();
        self.connections.wait().await;
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
        drain.connection(async move { asked.cancelled().await });
        assert_eq!(drain.run(Duration::from_secs(15)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_outlive_the_deadline_are_cut_and_counted() {
        let drain = Drain::default();
        drain.connection(std::future::pending());
        assert_eq!(drain.open(), 1);
        assert_eq!(drain.run(Duration::from_secs(15)).await, 1);
    }
}
