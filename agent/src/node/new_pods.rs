//! Captures new pods before their containers start: what the container runtime tells of a pod goes
//! to the source and to enrolment, and the runtime waits until the pod is captured.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::enrolment::Enrolment;
use crate::{
    config::kube::PodAddresses,
    mesh::PodUid,
    nri::{Plugin, PodEvents, Sandbox},
};

pub(super) struct NewPods {
    pub(super) addresses: PodAddresses,
    pub(super) enrolment: Arc<Enrolment>,
}

impl NewPods {
    /// The plugin that listens to the runtime, and keeps `connected` what its name says.
    pub(super) fn plugin(self, connected: watch::Sender<bool>) -> Plugin<Self> {
        Plugin::new("sluice", Arc::new(self), connected)
    }

    /// Passes on what the runtime knows of a pod with a network of its own.
    async fn note(&self, sandbox: Sandbox) -> Option<PodUid> {
        let (uid, netns) = (PodUid::new(&sandbox.uid)?, sandbox.netns?);
        self.enrolment.expect(uid.clone(), &netns);
        if !sandbox.ips.is_empty() {
            self.addresses.give(uid.clone(), sandbox.ips).await;
        }
        Some(uid)
    }
}

#[async_trait]
impl PodEvents for NewPods {
    async fn started(&self, sandbox: Sandbox) {
        if let Some(uid) = self.note(sandbox).await {
            self.enrolment.settled(&uid).await;
        }
    }

    async fn running(&self, sandboxes: Vec<Sandbox>) {
        for sandbox in sandboxes {
            self.note(sandbox).await;
        }
    }

    async fn stopped(&self, uid: &str) {
        if let Some(uid) = PodUid::new(uid) {
            self.enrolment.no_longer_expect(&uid);
            self.addresses.forget(uid).await;
        }
    }
}
