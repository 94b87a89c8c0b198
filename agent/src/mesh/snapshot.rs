//! The one immutable picture of the mesh that the data path reads.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Service, ServicePort, TrustDomain, Workload};

/// Everything the data path may know about the mesh. Built once by a source, then only read.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts up with every change the source published; 0 before the first.
    pub version: u64,
    /// Whether a pod that it does not name does not exist: not so in what was saved some time ago.
    pub complete: bool,
    /// The root of trust of local workloads.
    pub trust_domain: TrustDomain,
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    workload_by_ip: HashMap<IpAddr, Arc<Workload>>,
    service_by_vip: HashMap<IpAddr, Arc<Service>>,
    service_by_endpoint: HashMap<SocketAddr, (Arc<Service>, Arc<ServicePort>)>,
}

/// What a dialled address means.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A Service's cluster IP and one of its ports: an endpoint has to be picked.
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

    /// Every pod.
    pub fn workloads(&self) -> &[Arc<Workload>] {
        &self.workloads
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

    /// What `address` leads to. Allocates nothing.
    pub fn destination(&self, address: SocketAddr) -> Destination {
        if let Some(service) = self.service_by_vip.get(&address.ip())
            && let Some(port) = service.port(address.port())
        {
            return Destination::Service(service.clone(), port.clone());
        }
        match self.workload(address.ip()) {
            Some(workload) => {
                Destination::Workload(workload.clone(), self.serving(address).cloned())
            }
            None => Destination::Unknown,
        }
    }

    /// The Service port that `address`, a pod address and target port, serves.
    pub fn serving(&self, address: SocketAddr) -> Option<&(Arc<Service>, Arc<ServicePort>)> {
        self.service_by_endpoint.get(&address)
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
}

impl SnapshotBuilder {
    /// Indexes everything under `version`.
    pub fn build(self, version: u64) -> Snapshot {
        let mut snapshot =
            Snapshot { version, trust_domain: self.trust_domain, ..Snapshot::default() };
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
                for endpoint in &port.endpoints {
                    snapshot
                        .service_by_endpoint
                        .entry(endpoint.address)
                        .or_insert_with(|| (service.clone(), port.clone()));
                }
            }
        }
        snapshot.workloads = self.workloads;
        snapshot.services = self.services;
        snapshot
    }
}
