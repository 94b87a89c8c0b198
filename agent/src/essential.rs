//! Tasks that the agent cannot do without.
//!
//! An agent whose configuration no longer changes, or that enrols nobody any more, looks well from
//! outside and is not. It ends instead: what is captured stays closed, and the next agent goes on.

use std::{future::Future, thread};

use tokio::{sync::watch, task::JoinHandle};

/// Knows when one of them has ended. Clones share that.
#[derive(Clone, Debug, Default)]
pub struct Essential {
    ended: watch::Sender<Option<&'static str>>,
}

impl Essential {
    /// `task`, which is not expected to end by itself: when it returns or panics, that is noted
    /// under what it `does`. Dropped before it has ended, it was to end.
    pub fn task<F>(&self, does: &'static str, task: F) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Future<Output = ()> + Send,
    {
        let ended = self.ended.clone();
        async move {
            let mut watched = Watched { does, ended, returned: false };
            task.await;
            watched.returned = true;
        }
    }

    /// As [`Self::task`], running.
    pub fn spawn(
        &self,
        does: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        tokio::spawn(self.task(does, task))
    }

    /// Waits until one of them has ended, and says what it did.
    pub async fn ended(&self) -> &'static str {
        let mut ended = self.ended.subscribe();
        let ended = ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
        ended.expect("the sender lives in self, and only something is waited for")
    }
}

/// Tells of the end of one task.
struct Watched {
    does: &'static str,
    ended: watch::Sender<Option<&'static str>>,
    returned: bool,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.returned || thread::panicking() {
            // The first one is why the others end.
            self.ended.send_if_modified(|ended| ended.replace(self.does).is_none());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_noticed() {
        let essential = Essential::default();
        let task = essential.spawn("enrolling pods", async { panic!("as a test does") });
        assert_eq!(essential.ended().await, "enrolling pods");
        assert!(task.await.unwrap_err().is_panic());
    }

    #[tokio::test]
    async fn a_task_that_returns_is_noticed() {
        let essential = Essential::default();
        let _going_on = essential.spawn("watching pods", pending());
        essential.spawn("making snapshots", async {});
        assert_eq!(essential.ended().await, "making snapshots");
    }

    #[tokio::test]
    async fn a_task_that_is_ended_is_as_it_should_be() {
        let essential = Essential::default();
        let task = essential.spawn("enrolling pods", pending());
        yield_now().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(*essential.ended.borrow(), None);
    }
}
