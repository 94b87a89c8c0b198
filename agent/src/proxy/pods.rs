//! The enrolled pods of this node.

use std::{collections::HashMap, future::Future, net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::Drain;
use crate::{
    capture::PodDialer,
    http::Pool,
    mesh::{PodUid, Principal, Workload},
    telemetry::Failure,
    tunnel::HbonePool,
};

/// One enrolled pod with the connections made on its behalf.
pub struct LocalPod {
    /// The pod's UID.
    pub uid: PodUid,
    /// Makes sockets in the pod's network namespace.
    pub dialer: PodDialer,
    /// HBONE connections with this pod as their client.
    pub tunnels: HbonePool,
    /// HTTP connections to this pod's own application.
    pub inbound: Pool,
    outbound: papaya::HashMap<Option<Principal>, Arc<Pool>>,
    workload: ArcSwap<Workload>,
    released: CancellationToken,
}

impl LocalPod {
    /// A pod that was just enrolled.
    pub fn new(workload: Arc<Workload>, dialer: PodDialer, tunnels: HbonePool) -> Self {
        Self {
            uid: workload.uid.clone(),
            dialer,
            tunnels,
            outbound: papaya::HashMap::new(),
            inbound: Pool::default(),
            workload: ArcSwap::new(workload),
            released: CancellationToken::new(),
        }
    }

    /// In the same namespace as `former`, whose connections end with this pod.
    pub fn in_place_of(self, former: &Self) -> Self {
        Self { released: former.released.clone(), ..self }
    }

    /// Resets every captured connection of the pod. To be called before capture lets go of it:
    /// without the routing in its namespace they would only hang, and hold the namespace.
    pub fn release(&self) {
        self.released.cancel();
    }

    /// Runs a connection to its end, or until the pod is released.
    pub(super) async fn while_captured(&self, connection: impl Future<Output = ()>) {
        tokio::select! {
            // A connection that watches for the cut itself gets to record how it ended.
            biased;
            () = connection => {}
            () = self.released.cancelled() => {}
        }
    }

    /// Waits until what is still open must end, and says why.
    pub(super) async fn cut(&self, drain: &Drain) -> Failure {
        tokio::select! {
            () = drain.cut().cancelled() => Failure::DrainTimeout,
            () = self.released.cancelled() => Failure::PodLeft,
        }
    }

    /// HTTP connections to servers that have proved to be `peer`, or in plaintext to servers
    /// outside the mesh, or without mutual TLS. Kept apart: a server that joins the mesh, or an address that becomes
    /// somebody else's, must not be asked on a connection from before.
    pub fn outbound(&self, peer: Option<&Principal>) -> Arc<Pool> {
        self.outbound.pin().get_or_insert_with(peer.cloned(), Arc::default).clone()
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
    /// The enrolled pod that owns `ip`.
    pub fn at(&self, ip: IpAddr) -> Option<Arc<LocalPod>> {
        self.by_ip.load().get(&ip).cloned()
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
