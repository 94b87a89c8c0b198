//! Captures new pods before their containers start: what the container runtime tells of a pod goes
//! to the source and to enrolment, and the runtime waits until the pod is captured. It does not
//! wait for a certificate: until there is one the pod is closed.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use tokio::{sync::watch, task::spawn_blocking};

use super::enrolment::Enrolment;
use crate::{
    capture::Netns,
    config::kube::{Membership, PodAddresses},
    mesh::PodUid,
    nri::{Plugin, PodEvents, Sandbox},
};

pub(super) struct NewPods {
    pub(super) addresses: PodAddresses,
    pub(super) enrolment: Arc<Enrolment>,
}

/// A pod with a network of its own, as the runtime tells it.
struct NewPod {
    uid: PodUid,
    name: String,
    netns: PathBuf,
    ips: Vec<IpAddr>,
}

impl NewPods {
    /// The plugin that listens to the runtime, and keeps `connected` what its name says.
    pub(super) fn plugin(self, connected: watch::Sender<bool>) -> Plugin<Self> {
        Plugin::new("sluice", Arc::new(self), connected)
    }

    /// Notes where a pod's namespace is; `None` for a pod on the host's network.
    fn note(&self, sandbox: Sandbox) -> Option<NewPod> {
        let Sandbox { uid, namespace, name, netns, ips, .. } = sandbox;
        let (uid, netns) = (PodUid::new(&uid)?, netns?);
        self.enrolment.expect(uid.clone(), &netns);
        Some(NewPod { uid, name: format!("{namespace}/{name}"), netns, ips })
    }
}

impl NewPod {
    /// Its addresses. A runtime whose NRI does not tell (containerd before 2.1 and CRI-O before
    /// 1.32 do not) has given the pod its network all the same.
    async fn addresses(&self) -> Vec<IpAddr> {
        if !self.ips.is_empty() {
            return self.ips.clone();
        }
        let netns = self.netns.clone();
        let read = spawn_blocking(move || Netns::on_node(&netns)?.addresses()).await;
        let why = match read {
            Ok(Ok(ips)) if !ips.is_empty() => return ips,
            Ok(Ok(_)) => "its network namespace holds none".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(failed) => failed.to_string(),
        };
        tracing::debug!(pod = self.name, why, "the addresses of a new pod are not known");
        Vec::new()
    }
}

#[async_trait]
impl PodEvents for NewPods {
    async fn started(&self, sandbox: Sandbox) {
        let Some(pod) = self.note(sandbox) else { return };
        let ips = pod.addresses().await;
        if !self.enrolment.expects(&pod.uid) {
            // It has ended meanwhile.
            return;
        }
        if ips.is_empty() {
            tracing::warn!(
                pod = pod.name,
                "a new pod has no address: it is captured when the API server tells one"
            );
            return;
        }
        match self.addresses.give_and_ask(pod.uid.clone(), ips).await {
            Membership::Inside => self.enrolment.captured(&pod.uid).await,
            Membership::Outside => {}
            Membership::Unknown => tracing::warn!(
                pod = pod.name,
                "a new pod starts as it is: the API server is away, and does not tell whether it \
                 belongs to the mesh"
            ),
        }
    }

    async fn running(self: Arc<Self>, sandboxes: Vec<Sandbox>) {
        // All of them before anything that takes time: what is told next may be that one ends.
        let pods: Vec<_> = sandboxes.into_iter().filter_map(|sandbox| self.note(sandbox)).collect();
        tokio::spawn(async move {
            for pod in pods {
                let ips = pod.addresses().await;
                if !ips.is_empty() && self.enrolment.expects(&pod.uid) {
                    self.addresses.give(pod.uid, ips);
                }
            }
        });
    }

    async fn stopped(&self, uid: &str) {
        if let Some(uid) = PodUid::new(uid) {
            self.enrolment.no_longer_expect(&uid);
            self.addresses.forget(uid);
        }
    }
}
