//! The one immutable picture of the mesh that the data path reads.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{AppProtocol, Principal, Service, ServicePort, TrustDomain, Workload};

/// Everything the data path may know about the mesh. Built once by a source, then only read.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts up with every change the source published; 0 before the first.
    pub version: u64,
    /// Whether a pod that it does not name does not exist: not so in what was saved some time ago.
    pub complete: bool,
    /// The root of trust of local workloads.
    pub trust_domain: TrustDomain,
    /// Whether there may be policies between pods of kinds that only the CNI understands.
    pub cni_policies: bool,
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    nodes: BTreeSet<IpAddr>,
    workload_by_ip: HashMap<IpAddr, Arc<Workload>>,
    service_by_vip: HashMap<IpAddr, Arc<Service>>,
    service_by_external: HashMap<SocketAddr, Reached>,
    service_by_node_port: HashMap<u16, Reached>,
    service_by_endpoint: HashMap<SocketAddr, Reached>,
    /// Endpoints of which one Service says something else than another.
    disputed: HashSet<SocketAddr>,
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
    /// The pod that owns `ip`.
    pub fn workload(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workload_by_ip.get(&ip)
    }

    /// What is known of a pod by now; `None` when it has gone.
    pub fn newest(&self, pod: &Workload) -> Option<&Arc<Workload>> {
        let newest = pod.ips.first().and_then(|ip| self.workload(*ip));
        newest.filter(|newest| newest.uid == pod.uid)
    }

    /// Every pod.
    pub fn workloads(&self) -> &[Arc<Workload>] {
        &self.workloads
    }

    /// The pods of one node.
    pub fn pods_of<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Workload>> {
        self.workloads.iter().filter(move |workload| *workload.node == *node)
    }

    /// Who the pods of one node are that belong to the mesh.
    pub fn principals_of(&self, node: &str) -> HashSet<Principal> {
        let pods = self.pods_of(node).filter(|pod| pod.meshed);
        pods.map(|pod| pod.principal.clone()).collect()
    }

    /// Whether a pod that is in `former` too accepts something else here.
    pub(super) fn differs_in_mutual_tls(&self, former: &Self) -> bool {
        self.workloads.iter().any(|workload| {
            let same = workload.ips.first().and_then(|ip| former.workload(*ip));
            same.is_some_and(|same| same.mtls != workload.mtls)
        })
    }

    /// Every Service.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// The addresses of nodes, where some Service has a port of every node.
    pub fn nodes(&self) -> &BTreeSet<IpAddr> {
        &self.nodes
    }

    /// What `address` leads to. Allocates nothing.
    ///
    /// Cluster IPs and pods go first: whoever may write a Service may claim any address as an
    /// external one, and must not come between others with it.
    pub fn destination(&self, address: SocketAddr) -> Destination {
        if let Some(service) = self.service_by_vip.get(&address.ip())
            && let Some(port) = service.port(address.port())
        {
            return Destination::Service(service.clone(), port.clone());
        }
        if let Some(workload) = self.workload(address.ip()) {
            return Destination::Workload(workload.clone(), self.serving(address).cloned());
        }
        match self.service_by_external.get(&address).or_else(|| self.on_node(address)) {
            Some((service, port)) => Destination::Service(service.clone(), port.clone()),
            None => Destination::Unknown,
        }
    }

    /// The Service port that `address` leads to because every node does.
    fn on_node(&self, address: SocketAddr) -> Option<&Reached> {
        let reached = self.service_by_node_port.get(&address.port())?;
        self.nodes.contains(&address.ip()).then_some(reached)
    }

    /// The Service port that `address`, a pod address and target port, serves.
    pub fn serving(&self, address: SocketAddr) -> Option<&Reached> {
        self.service_by_endpoint.get(&address)
    }

    /// What `address`, a pod address and target port, speaks, as far as its Services agree.
    pub fn spoken_at(&self, address: SocketAddr) -> AppProtocol {
        match self.serving(address) {
            Some((_, port)) if !self.disputed.contains(&address) => port.protocol,
            _ => AppProtocol::Unknown,
        }
    }
}

/// Gathers workloads and services, then indexes them once.
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    /// The root of trust of local workloads.
    pub trust_domain: TrustDomain,
    /// Every pod.
    pub workloads: Vec<Arc<Workload>>,
    /// Every Service, its endpoints already resolved to workloads.
    pub services: Vec<Arc<Service>>,
    /// The addresses of nodes.
    pub nodes: BTreeSet<IpAddr>,
    /// Whether there may be policies between pods of kinds that only the CNI understands.
    pub cni_policies: bool,
}

impl SnapshotBuilder {
    /// Indexes everything under `version`.
    pub fn build(self, version: u64) -> Snapshot {
        let mut snapshot = Snapshot {
            version,
            trust_domain: self.trust_domain,
            cni_policies: self.cni_policies,
            ..Snapshot::default()
        };
        for workload in &self.workloads {
            for ip in &workload.ips {
                snapshot.workload_by_ip.insert(*ip, workload.clone());
            }
        }
        for service in &self.services {
            for vip in &service.vips {
                snapshot.service_by_vip.insert(*vip, service.clone());
            }
            for port in &service.ports {
                let reached = || (service.clone(), port.clone());
                for external in &service.external {
                    let address = SocketAddr::new(*external, port.port);
                    snapshot.service_by_external.entry(address).or_insert_with(reached);
                }
                if let Some(node_port) = port.node_port {
                    snapshot.service_by_node_port.entry(node_port).or_insert_with(reached);
                }
                for endpoint in &port.endpoints {
                    let address = endpoint.address;
                    let first = snapshot.service_by_endpoint.entry(address).or_insert_with(reached);
                    if first.1.protocol != port.protocol {
                        snapshot.disputed.insert(address);
                    }
                }
            }
        }
        snapshot.workloads = self.workloads;
        snapshot.services = self.services;
        snapshot.nodes = self.nodes;
        snapshot
    }
}
