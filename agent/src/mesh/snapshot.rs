//! The one immutable picture of the mesh that the data path reads.

use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use imbl::OrdMap;

use super::{
    AppProtocol, PodUid, Principal, Service, ServiceId, ServicePort, TrustDomain, Workload,
    claimed::{Claimed, OwnerOf, Place, Served},
};
use crate::policy::Providers;

/// A map whose copies share what they have in common: a change copies what it touches. A tree, since
/// hashed ones of this kind take three times as much memory.
pub(super) type Map<K, V> = OrdMap<K, V>;

/// Everything the data path may know about the mesh, as one node sees it. It never changes once it
/// is published; the next one is this one with a [`Patch`](super::Patch), and shares with it what the
/// patch does not speak of.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts up with every change the source published; 0 before the first.
    pub version: u64,
    /// Whether a pod that it does not name does not exist: not so in what was saved some time ago.
    pub complete: bool,
    /// The root of trust of local workloads.
    pub trust_domain: TrustDomain,
    /// Whether there may be policies between pods of kinds that only the CNI understands.
    pub cni_policies: bool,
    /// The node's name.
    pub(super) node: Arc<str>,
    /// Counts up whenever other policies hold for a pod of this node.
    pub(super) rules: u64,
    pub(super) pods: Map<PodUid, Arc<Workload>>,
    /// Those of `pods` that are this node's.
    pub(super) local: Map<PodUid, Arc<Workload>>,
    pub(super) pod_by_ip: Map<IpAddr, Arc<Workload>>,
    /// How many pods each owner has.
    pub(super) owners: Map<OwnerOf, u32>,
    pub(super) services: Map<ServiceId, Arc<Service>>,
    pub(super) service_by_vip: Map<IpAddr, ServiceId>,
    pub(super) by_external: Claimed<SocketAddr, Place>,
    pub(super) by_node_port: Claimed<u16, Place>,
    pub(super) by_endpoint: Claimed<IpAddr, Served>,
    pub(super) nodes: Arc<BTreeSet<IpAddr>>,
    pub(super) providers: Arc<Providers>,
}

/// A Service and the port of it that an address leads to.
type Reached = (Arc<Service>, Arc<ServicePort>);

/// What a dialled address means.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A Service and one of its ports, by whichever of its addresses: an endpoint has to be
    /// picked.
    Service(Arc<Service>, Arc<ServicePort>),
    /// A pod dialled by its own address, with the Service port it serves where one does.
    Workload(Arc<Workload>, Option<(Arc<Service>, Arc<ServicePort>)>),
    /// Nothing the mesh knows.
    Unknown,
}

impl Snapshot {
    /// Of a mesh without pods and Services, as the node `node` sees it.
    pub fn new(trust_domain: TrustDomain, node: Arc<str>) -> Self {
        Self { trust_domain, node, ..Self::default() }
    }

    /// The pod that owns `ip`.
    pub fn workload(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.pod_by_ip.get(&ip)
    }

    /// The pod of that UID.
    pub fn pod(&self, uid: &PodUid) -> Option<&Arc<Workload>> {
        self.pods.get(uid)
    }

    /// What is known of a pod by now; `None` when it has gone.
    pub fn newest(&self, pod: &Workload) -> Option<&Arc<Workload>> {
        self.pod(&pod.uid)
    }

    /// Every pod, in the order of UIDs.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.pods.values()
    }

    /// The pods of this node.
    pub fn local(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.local.values()
    }

    /// Whether `pod` is this node's.
    pub fn is_local(&self, pod: &Workload) -> bool {
        *pod.node == *self.node
    }

    /// Who the pods of this node are that belong to the mesh.
    pub fn local_principals(&self) -> HashSet<Principal> {
        self.local().filter(|pod| pod.meshed).map(|pod| pod.principal.clone()).collect()
    }

    /// Whether a pod in `namespace` belongs to a controller called `owner`.
    pub fn has_pods_of(&self, namespace: &str, owner: &str) -> bool {
        self.owners.contains_key(&(namespace, owner))
    }

    /// Every Service, in the order of names.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The Service of that name.
    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// The Service `name` in `namespace`.
    pub fn service_named(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.services.get(&(namespace, name))
    }

    /// The Service that has the cluster IP `ip`.
    pub fn service_of(&self, ip: IpAddr) -> Option<&ServiceId> {
        self.service_by_vip.get(&ip)
    }

    /// The Services that have an endpoint at `ip`; one as often as it has ports there.
    pub fn services_at(&self, ip: IpAddr) -> impl Iterator<Item = &ServiceId> {
        self.by_endpoint.get(&ip).iter().map(|served| &served.service)
    }

    /// The addresses of nodes, where some Service has a port of every node.
    pub fn nodes(&self) -> &Arc<BTreeSet<IpAddr>> {
        &self.nodes
    }

    /// The external authorizers that policies may name.
    pub fn providers(&self) -> &Arc<Providers> {
        &self.providers
    }

    /// What `address` leads to. Allocates nothing.
    ///
    /// Cluster IPs and pods go first: whoever may write a Service may claim any address as an
    /// external one, and must not come between others with it.
    pub fn destination(&self, address: SocketAddr) -> Destination {
        let service = self.service_by_vip.get(&address.ip()).and_then(|id| self.service(id));
        if let Some(service) = service
            && let Some(port) = service.port(address.port())
        {
            return Destination::Service(service.clone(), port.clone());
        }
        if let Some(workload) = self.workload(address.ip()) {
            return Destination::Workload(workload.clone(), self.serving(address));
        }
        match self.external(address).or_else(|| self.on_node(address)) {
            Some((service, port)) => Destination::Service(service, port),
            None => Destination::Unknown,
        }
    }

    fn reached(&self, id: &ServiceId, port: u16) -> Option<Reached> {
        let service = self.service(id)?;
        Some((service.clone(), service.ports.get(usize::from(port))?.clone()))
    }

    /// The Service port that `address` leads to although it is of no cluster IP.
    fn external(&self, address: SocketAddr) -> Option<Reached> {
        let Place { service, port } = self.by_external.get(&address).first()?;
        self.reached(service, *port)
    }

    /// The Service port that `address` leads to because every node does.
    fn on_node(&self, address: SocketAddr) -> Option<Reached> {
        let Place { service, port } = self.by_node_port.get(&address.port()).first()?;
        self.nodes.contains(&address.ip()).then(|| self.reached(service, *port)).flatten()
    }

    /// The Service port that `address`, a pod address and target port, serves. Where several do, the
    /// first by the Services' names.
    pub fn serving(&self, address: SocketAddr) -> Option<Reached> {
        let first = self.served_at(address).next()?;
        self.reached(&first.service, first.port)
    }

    fn served_at(&self, address: SocketAddr) -> impl Iterator<Item = &Served> {
        let there = self.by_endpoint.get(&address.ip()).iter();
        there.filter(move |served| served.target == address.port())
    }

    /// What `address`, a pod address and target port, speaks, as far as its Services agree.
    pub fn spoken_at(&self, address: SocketAddr) -> AppProtocol {
        let mut said = self.served_at(address).filter_map(|served| {
            Some(self.service(&served.service)?.ports.get(usize::from(served.port))?.protocol)
        });
        match said.next() {
            Some(first) if said.all(|other| other == first) => first,
            _ => AppProtocol::Unknown,
        }
    }
}
