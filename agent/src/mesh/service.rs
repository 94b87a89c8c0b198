//! Services, their ports and the endpoints behind them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::Workload;

/// What a Service says its port speaks (`appProtocol`, else the port name's prefix).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// `http`, `http-web`, …: HTTP/1.1 or HTTP/2, told apart by the client's first bytes.
    Http,
    /// `http2`, `grpc`, `kubernetes.io/h2c`: HTTP/2 with prior knowledge.
    Http2,
    /// `tcp`, `tls`, `https`, `mongo`, …: never looked into.
    Opaque,
    /// Nothing said: decided by the client's first bytes, without waiting for them.
    Unknown,
}

/// One place a Service port leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Pod address and target port.
    pub address: SocketAddr,
    /// The pod behind the address, where it is known.
    pub workload: Option<Arc<Workload>>,
}

/// One port of a Service with the endpoints ready to take its traffic.
#[derive(Debug)]
pub struct ServicePort {
    /// The port clients dial.
    pub port: u16,
    /// The port's name; empty when the Service has one unnamed port.
    pub name: String,
    /// What the port speaks.
    pub protocol: AppProtocol,
    /// Ready endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Where the next round-robin pick starts; not configuration, so it is outside equality.
    pub(super) next: AtomicUsize,
}

impl PartialEq for ServicePort {
    fn eq(&self, other: &Self) -> bool {
        let Self { port, name, protocol, endpoints, next: _ } = self;
        *port == other.port
            && *name == other.name
            && *protocol == other.protocol
            && *endpoints == other.endpoints
    }
}

impl Eq for ServicePort {}

impl ServicePort {
    /// A port with its endpoints.
    pub fn new(port: u16, name: String, protocol: AppProtocol, endpoints: Vec<Endpoint>) -> Self {
        Self { port, name, protocol, endpoints, next: AtomicUsize::new(0) }
    }

    /// The next endpoint in round-robin order; `None` when no endpoint is ready.
    pub fn pick(&self) -> Option<&Endpoint> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.endpoints.get(turn.checked_rem(self.endpoints.len())?)
    }
}

/// One Kubernetes Service.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// The Service's name.
    pub name: String,
    /// The Service's namespace.
    pub namespace: String,
    /// `spec.clusterIPs`; empty for a headless Service.
    pub vips: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<Arc<ServicePort>>,
}

impl Service {
    /// The fully qualified name, as Istio's `destination_service` label has it.
    pub fn hostname(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.namespace)
    }

    /// The port clients reach under `number`.
    pub fn port(&self, number: u16) -> Option<&Arc<ServicePort>> {
        self.ports.iter().find(|port| port.port == number)
    }
}
