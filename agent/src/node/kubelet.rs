//! Keeps the kubelet's cgroup known to capture, so that its connections go past the agent.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use crate::{
    capture::{Capture, KubeletCgroup, KubeletSearch},
    proxy::Proxy,
};

/// How soon it is looked for again. Where it is not known that goes through every process of the
/// node, and probes come every few seconds.
const PAUSE: Duration = Duration::from_secs(5);

/// What looks for the kubelet of the node.
pub(super) struct Kubelet {
    pub(super) search: KubeletSearch,
    pub(super) capture: Arc<Capture>,
    pub(super) proxy: Arc<Proxy>,
    /// Where it is, while that is known.
    pub(super) known: watch::Sender<Option<KubeletCgroup>>,
}

impl Kubelet {
    /// Looks at once, and again when the agent gets a connection that may be the kubelet's: it was
    /// started since, perhaps in another cgroup. Nothing else tells of that, and until then it does
    /// not matter.
    pub(super) async fn follow(self) {
        let kubelet = Arc::new(self);
        let mut said = None;
        loop {
            let looking = kubelet.clone();
            let looked = spawn_blocking(move || looking.look()).await;
            let unknown = looked.unwrap_or_else(|failed| Err(failed.to_string())).err();
            // The first answer, and every other one.
            if said.as_ref() != Some(&unknown) {
                kubelet.say(unknown.as_deref());
                said = Some(unknown);
            }
            sleep(PAUSE).await;
            kubelet.proxy.unknown_clients.notified().await;
        }
    }

    /// Makes what capture passes what it should be. An error says why that is nothing. Blocks.
    fn look(&self) -> Result<(), String> {
        let known = self.known.borrow().clone();
        let is_known = |found: &KubeletCgroup| known.as_ref().is_some_and(|it| it.is_same(found));
        let found = self.search.find(known.as_ref()).map_err(|why| why.to_string());
        let passed = found.and_then(|found| {
            if !is_known(&found) {
                self.capture.pass_kubelet(&found).map_err(|error| error.to_string())?;
            }
            Ok(found)
        });
        if passed.is_err()
            // What a former agent knew is no proof either.
            && let Err(error) = self.capture.pass_nobody()
        {
            tracing::warn!(%error, "could not detach from the cgroup of a former kubelet");
        }
        self.known.send_replace(passed.as_ref().ok().cloned());
        passed.map(drop)
    }

    fn say(&self, unknown: Option<&str>) {
        match (unknown, &*self.known.borrow()) {
            (Some(why), _) => {
                tracing::info!(why, "the kubelet is not known: the agent takes its connections");
            }
            (None, Some(cgroup)) => {
                let cgroup = cgroup.path().display();
                tracing::info!(%cgroup, "the kubelet is known: its connections pass the agent by");
            }
            (None, None) => {}
        }
    }
}
