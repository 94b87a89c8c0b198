//! Enrolments that are being worked at.

use std::{collections::HashSet, future::Future, sync::Arc};

use tokio::{sync::Semaphore, task::JoinSet};

use crate::mesh::PodUid;

/// How many pods are enrolled at once. The kernel's part is a matter of milliseconds and mostly
/// one at a time; more threads than this would only wait for one another.
const AT_ONCE: usize = 4;

/// One task a pod. Dropped, they end.
pub(super) struct Underway {
    tasks: JoinSet<PodUid>,
    pods: HashSet<PodUid>,
    places: Arc<Semaphore>,
}

impl Default for Underway {
    fn default() -> Self {
        Self {
            tasks: JoinSet::new(),
            pods: HashSet::new(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Underway {
    /// Works at one more pod, as soon as there is a place.
    pub(super) fn start(&mut self, uid: PodUid, work: impl Future<Output = ()> + Send + 'static) {
        let places = self.places.clone();
        self.pods.insert(uid.clone());
        self.tasks.spawn(async move {
            let _place = places.acquire().await.expect("it is never closed");
            work.await;
            uid
        });
    }

    pub(super) fn has(&self, uid: &PodUid) -> bool {
        self.pods.contains(uid)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Waits until some have ended; for ever while there are none.
    ///
    /// # Panics
    /// As one of them did.
    pub(super) async fn some_ended(&mut self) {
        let Some(first) = self.tasks.join_next().await else { return std::future::pending().await };
        let mut ended = vec![first];
        ended.extend(std::iter::from_fn(|| self.tasks.try_join_next()));
        for ended in ended {
            match ended {
                Ok(uid) => drop(self.pods.remove(&uid)),
                Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
                // Only with the runtime.
                Err(_cancelled) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_pod_that_takes_long_holds_up_no_other() {
        let pod = |name: &str| PodUid::new(name).unwrap();
        let go = Arc::new(Notify::new());
        let mut underway = Underway::default();
        let wait = go.clone();
        underway.start(pod("slow"), async move { wait.notified().await });
        underway.start(pod("quick"), async {});
        underway.some_ended().await;
        assert!(underway.has(&pod("slow")) && !underway.has(&pod("quick")));
        go.notify_one();
        underway.some_ended().await;
        assert!(underway.is_empty());
    }

    #[tokio::test]
    #[should_panic(expected = "as a test does")]
    async fn a_panic_is_not_kept_quiet() {
        let mut underway = Underway::default();
        underway.start(PodUid::new("a").unwrap(), async { panic!("as a test does") });
        underway.some_ended().await;
    }
}
