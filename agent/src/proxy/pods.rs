//! The enrolled pods of this node.

use std::{
    collections::HashMap,
    future::Future,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::Channels;
use crate::{
    capture::PodDialer,
    http::h2::Pool,
    limits::PodLimits,
    mesh::{PodUid, Principal, Workload},
    telemetry::Failure,
    tunnel::HbonePool,
    workers::Home,
};

/// One enrolled pod with the connections made on its behalf.
pub struct LocalPod {
    /// The pod's UID.
    pub uid: PodUid,
    /// The thread that carries its traffic.
    pub home: Home,
    /// Makes sockets in the pod's network namespace.
    pub dialer: PodDialer,
    /// HBONE connections with this pod as their client.
    pub tunnels: HbonePool,
    /// HTTP/2 connections to this pod's own application.
    pub inbound: Pool,
    /// A lock of this pod's own: a concurrent map is 17 KB.
    outbound: Mutex<HashMap<Option<Principal>, Pool>>,
    /// Whom it has others asked by.
    pub authorizers: Channels,
    workload: ArcSwap<Workload>,
    released: CancellationToken,
    /// What it holds of the agent's budgets.
    pub limits: Arc<PodLimits>,
}

impl LocalPod {
    /// A pod that was just enrolled.
    pub fn new(
        workload: Arc<Workload>,
        home: Home,
        dialer: PodDialer,
        tunnels: HbonePool,
        limits: PodLimits,
    ) -> Self {
        Self {
            uid: workload.uid.clone(),
            home,
            dialer,
            tunnels,
            outbound: Mutex::default(),
            authorizers: Channels::default(),
            inbound: Pool::new(limits.buffered_in()),
            limits: Arc::new(limits),
            workload: ArcSwap::new(workload),
            released: CancellationToken::new(),
        }
    }

    /// In the same namespace as `former`, whose connections end with this pod, and count as this
    /// pod's until then.
    pub fn in_place_of(self, former: &Self) -> Self {
        let limits = former.limits.clone();
        let inbound = Pool::new(limits.buffered_in());
        Self { released: former.released.clone(), limits, inbound, ..self }
    }

    /// Resets every captured connection of the pod. To be called before capture lets go of it:
    /// without the routing in its namespace they would only hang, and hold the namespace.
    pub fn release(&self) {
        self.released.cancel();
    }

    /// Ready when the pod is released.
    pub(super) fn released(&self) -> WaitForCancellationFutureOwned {
        // A child: waiting on the one token of all connections takes its lock at every poll.
        self.released.child_token().cancelled_owned()
    }

    /// Runs a connection to its end, or until the pod is released.
    pub(super) async fn while_captured(&self, connection: impl Future<Output = ()>) {
        // A child, as in the drain.
        let released = self.released.child_token();
        tokio::select! {
            biased;
            () = connection => {}
            () = released.cancelled() => {}
        }
    }

    /// Waits until the pod leaves.
    pub(super) async fn left(&self) -> Failure {
        self.released().await;
        Failure::PodLeft
    }

    /// Whether what is still open is being cut, or was.
    pub(super) fn has_left(&self) -> bool {
        self.released.is_cancelled()
    }

    /// HTTP/2 connections to servers that have proved to be `peer`, or in plaintext to servers
    /// outside the mesh, or without mutual TLS. Kept apart: a server that joins the mesh, or an address that becomes
    /// somebody else's, must not be asked on a connection from before.
    pub fn outbound(&self, peer: Option<&Principal>) -> Pool {
        let mut outbound = self.outbound.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Pool::new(self.limits.buffered_out());
        outbound.entry(peer.cloned()).or_insert_with(new).clone()
    }

    /// What the newest snapshot says about the pod.
    pub fn workload(&self) -> Arc<Workload> {
        self.workload.load_full()
    }

    /// Takes over what a newer snapshot says about the pod.
    pub fn update(&self, workload: Arc<Workload>) {
        self.workload.store(workload);
    }
}

/// Finds enrolled pods by address. Reading takes no lock.
#[derive(Default)]
pub struct LocalPods {
    by_ip: ArcSwap<HashMap<IpAddr, Arc<LocalPod>>>,
}

impl LocalPods {
    /// The enrolled pod at `ip`, if it is the one that `workload` is about.
    pub fn of(&self, workload: &Workload, ip: IpAddr) -> Option<Arc<LocalPod>> {
        let by_ip = self.by_ip.load();
        by_ip.get(&ip).filter(|pod| pod.uid == workload.uid).cloned()
    }

    /// Replaces the set of enrolled pods.
    pub fn replace(&self, pods: impl Iterator<Item = Arc<LocalPod>>) {
        let by_ip = pods
            .flat_map(|pod| {
                let ips = pod.workload().ips.clone();
                ips.into_iter().map(move |ip| (ip, pod.clone()))
            })
            .collect();
        self.by_ip.store(Arc::new(by_ip));
    }
}
