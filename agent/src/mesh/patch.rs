//! What a source tells of the mesh that was not so before.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    PodUid, Service, ServiceId, Snapshot, Workload,
    claimed::{OwnerOf, Place, Served},
};
use crate::policy::Providers;

/// Changes of a [`Snapshot`]. Costs what it speaks of, however large the mesh is.
#[derive(Debug, Default)]
pub struct Patch {
    /// Pods that are new, or other than before.
    pub pods: Vec<Arc<Workload>>,
    /// Pods that are gone.
    pub pods_gone: Vec<PodUid>,
    /// Services that are new, or other than before. Of two that have a cluster IP in common, one is
    /// to be left out.
    pub services: Vec<Arc<Service>>,
    /// Services that are gone.
    pub services_gone: Vec<ServiceId>,
    /// The addresses of nodes, where they are others now.
    pub nodes: Option<Arc<BTreeSet<IpAddr>>>,
    /// The external authorizers, where they are others now.
    pub providers: Option<Arc<Providers>>,
    /// Whether there may be policies of kinds that only the CNI understands, where that is news.
    pub cni_policies: Option<bool>,
}

impl Patch {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        let Self { pods, pods_gone, services, services_gone, nodes, providers, cni_policies } =
            self;
        pods.is_empty()
            && pods_gone.is_empty()
            && services.is_empty()
            && services_gone.is_empty()
            && nodes.is_none()
            && providers.is_none()
            && cni_policies.is_none()
    }
}

impl Snapshot {
    /// Makes the changes. What the patch does not speak of stays as it is, and shared with copies made
    /// before.
    pub fn apply(&mut self, patch: Patch) {
        let Patch { pods, pods_gone, services, services_gone, nodes, providers, cni_policies } =
            patch;
        pods_gone.iter().for_each(|uid| self.remove_pod(uid));
        pods.into_iter().for_each(|pod| self.put_pod(pod));
        services_gone.iter().for_each(|id| self.remove_service(id));
        services.into_iter().for_each(|service| self.put_service(service));
        if let Some(nodes) = nodes {
            self.nodes = nodes;
        }
        if let Some(providers) = providers {
            self.providers = providers;
        }
        self.cni_policies = cni_policies.unwrap_or(self.cni_policies);
    }

    fn put_pod(&mut self, pod: Arc<Workload>) {
        let former = self.pods.insert(pod.uid.clone(), pod.clone());
        if let Some(former) = &former {
            self.forget_places(former);
        }
        if self.is_local(&pod) {
            // One that is new may have been left out for a while, with connections that are open still.
            let rules = |pod: &Workload| {
                (pod.mtls.clone(), pod.authorization.clone(), pod.authentication.clone())
            };
            let former = former.as_deref().map(rules).unwrap_or_default();
            self.rules += u64::from(former != rules(&pod));
        }
        for ip in &pod.ips {
            self.pod_by_ip.insert(*ip, pod.clone());
        }
        *self.owners.entry(owner_of(&pod)).or_insert(0) += 1;
        if self.is_local(&pod) {
            self.local.insert(pod.uid.clone(), pod);
        } else {
            self.local.remove(&pod.uid);
        }
    }

    fn remove_pod(&mut self, uid: &PodUid) {
        if let Some(former) = self.pods.remove(uid) {
            self.forget_places(&former);
            self.local.remove(uid);
        }
    }

    /// Takes back what leads to a pod by something else than its UID.
    fn forget_places(&mut self, pod: &Workload) {
        for ip in &pod.ips {
            // It may be another pod's by now.
            if self.pod_by_ip.get(ip).is_some_and(|there| there.uid == pod.uid) {
                self.pod_by_ip.remove(ip);
            }
        }
        let owner = owner_of(pod);
        match self.owners.get_mut(&owner) {
            Some(pods) if *pods > 1 => *pods -= 1,
            _ => drop(self.owners.remove(&owner)),
        }
    }

    fn put_service(&mut self, service: Arc<Service>) {
        let former = self.services.insert(service.id.clone(), service.clone());
        self.replace(former.as_deref(), Some(&service));
    }

    fn remove_service(&mut self, id: &ServiceId) {
        let former = self.services.remove(id);
        self.replace(former.as_deref(), None);
    }

    fn replace(&mut self, former: Option<&Service>, service: Option<&Service>) {
        for vip in former.iter().flat_map(|former| &former.vips) {
            let id = self.service_by_vip.get(vip);
            if former.is_some_and(|former| Some(&former.id) == id) {
                self.service_by_vip.remove(vip);
            }
        }
        if let Some(service) = service {
            for vip in &service.vips {
                self.service_by_vip.insert(*vip, service.id.clone());
            }
        }
        self.by_external.change(&in_order(former, external), &in_order(service, external));
        self.by_node_port.change(&in_order(former, node_ports), &in_order(service, node_ports));
        self.by_endpoint.change(&in_order(former, endpoints), &in_order(service, endpoints));
    }
}

fn owner_of(pod: &Workload) -> OwnerOf {
    OwnerOf { namespace: pod.namespace.clone(), owner: pod.owner.clone() }
}

/// What `service` claims of a kind, in order.
fn in_order<T: Ord>(service: Option<&Service>, of: impl FnOnce(&Service) -> Vec<T>) -> Vec<T> {
    let mut claims = service.map(of).unwrap_or_default();
    claims.sort_unstable();
    claims
}

fn external(service: &Service) -> Vec<(SocketAddr, Place)> {
    let mut claims = Vec::new();
    for (place, port) in places(service).zip(&service.ports) {
        let at = service.external.iter().map(|ip| SocketAddr::new(*ip, port.port));
        claims.extend(at.map(|address| (address, place.clone())));
    }
    claims
}

fn node_ports(service: &Service) -> Vec<(u16, Place)> {
    let claim = |(place, number): (Place, Option<u16>)| Some((number?, place));
    places(service).zip(service.ports.iter().map(|port| port.node_port)).filter_map(claim).collect()
}

fn endpoints(service: &Service) -> Vec<(IpAddr, Served)> {
    let mut claims = Vec::new();
    for (place, port) in places(service).zip(&service.ports) {
        claims.extend(port.endpoints.all().map(|endpoint| {
            let Place { service, port } = place.clone();
            (endpoint.address.ip(), Served { target: endpoint.address.port(), service, port })
        }));
    }
    claims
}

fn places(service: &Service) -> impl Iterator<Item = Place> {
    // A Service has some hundred ports at most: its object would be too large for the API server.
    (0u16..).map(|port| Place { service: service.id.clone(), port })
}
