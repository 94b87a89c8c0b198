//! Addresses of pods that the API server does not tell yet.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use tokio::sync::mpsc::Sender;

use super::tables::Change;
use crate::{
    config::facts::PodFacts,
    mesh::{PodUid, Workload},
};

/// Tells the source the addresses of pods whose sandbox was just made: the API server hears of
/// them from the kubelet, after the pod's containers have started.
#[derive(Clone, Debug)]
pub struct PodAddresses {
    pub(super) changes: Sender<Change>,
}

impl PodAddresses {
    /// The pod `uid` has `ips`, until the API server tells its addresses, or it is forgotten.
    pub async fn give(&self, uid: PodUid, ips: Vec<IpAddr>) {
        self.tell(Change::Addresses(uid, ips)).await;
    }

    /// The pod `uid` ends.
    pub async fn forget(&self, uid: PodUid) {
        self.tell(Change::Addresses(uid, Vec::new())).await;
    }

    async fn tell(&self, change: Change) {
        // Without a source nobody wants to know.
        let _ = self.changes.send(change).await;
    }
}

/// The addresses given so far.
#[derive(Debug, Default)]
pub(super) struct Given(BTreeMap<PodUid, Vec<IpAddr>>);

impl Given {
    /// Takes in what is told of a pod, which may be one of `pods` already; no addresses means
    /// that it ends.
    pub(super) fn note<'a>(
        &mut self,
        uid: PodUid,
        ips: Vec<IpAddr>,
        mut pods: impl Iterator<Item = &'a mut PodFacts>,
    ) {
        if ips.is_empty() {
            self.0.remove(&uid);
            return;
        }
        if let Some(pod) = pods.find(|pod| pod.workload.uid == uid) {
            lend(pod, &ips);
        }
        self.0.insert(uid, ips);
    }

    /// Completes a pod as the API server tells it. From the moment that it tells addresses, those
    /// are the pod's.
    pub(super) fn complete(&mut self, pod: &mut PodFacts) {
        if !pod.addresses.is_empty() {
            self.0.remove(&pod.workload.uid);
        } else if let Some(ips) = self.0.get(&pod.workload.uid) {
            lend(pod, ips);
        }
    }
}

/// Gives `pod` addresses where it has none.
fn lend(pod: &mut PodFacts, ips: &[IpAddr]) {
    if pod.addresses.is_empty() && !pod.host_network {
        pod.addresses = ips.to_vec();
        pod.workload = Arc::new(Workload { ips: ips.to_vec(), ..(*pod.workload).clone() });
    }
}
