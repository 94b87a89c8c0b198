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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
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
    /// The port of every node that leads here too.
    pub node_port: Option<u16>,
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
        let Self { port, node_port, name, protocol, endpoints, next: _ } = self;
        *port == other.port
            && *node_port == other.node_port
            && *name == other.name
            && *protocol == other.protocol
            && *endpoints == other.endpoints
    }
}

impl Eq for ServicePort {}

impl ServicePort {
    /// A port with its endpoints. Turns begin anywhere: every change of the endpoints makes a new
    /// port, and all nodes would begin with the first each time.
    pub fn new(port: u16, name: String, protocol: AppProtocol, endpoints: Vec<Endpoint>) -> Self {
        let next = AtomicUsize::new(rand::random_range(..endpoints.len().max(1)));
        Self { port, node_port: None, name, protocol, endpoints, next }
    }

    /// The same, reached by the port `node_port` of every node as well.
    pub fn on_nodes(self, node_port: Option<u16>) -> Self {
        Self { node_port, ..self }
    }

    /// The next endpoint in round-robin order, of the family of the address that was dialled: a
    /// client has no address of the other family to reach it from. `None` when none is ready.
    pub fn pick(&self, dialled: IpAddr) -> Option<&Endpoint> {
        let of_family = || {
            let endpoints = self.endpoints.iter();
            endpoints.filter(|endpoint| endpoint.address.is_ipv4() == dialled.is_ipv4())
        };
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        of_family().nth(turn.checked_rem(of_family().count())?)
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
    /// Addresses by which it is reached from outside the cluster, and from inside too: those of
    /// its load balancers and `spec.externalIPs`. Services may share one, by their ports.
    pub external: Vec<IpAddr>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_take_turns_and_those_of_the_other_family_are_passed_over() {
        let endpoint =
            |address: &str| Endpoint { address: address.parse().unwrap(), workload: None };
        let addresses = ["10.0.0.1:80", "[fd00::1]:80", "10.0.0.2:80", "[fd00::2]:80"];
        let endpoints = addresses.map(endpoint).to_vec();
        let port = ServicePort::new(80, String::new(), AppProtocol::Http, endpoints);
        let picked = |dialled: &str, times: usize| -> Vec<String> {
            let dialled = dialled.parse().unwrap();
            (0..times).map(|_| port.pick(dialled).unwrap().address.to_string()).collect()
        };
        port.next.store(0, Ordering::Relaxed);
        assert_eq!(picked("10.96.0.1", 3), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.1:80"]);
        assert_eq!(picked("fd00:96::1", 2), ["[fd00::2]:80", "[fd00::1]:80"]);
    }

    #[test]
    fn a_new_port_begins_with_any_of_its_endpoints() {
        let endpoint =
            |last: u8| Endpoint { address: ([10, 0, 0, last], 80).into(), workload: None };
        let endpoints = [endpoint(1), endpoint(2), endpoint(3)];
        let first = || {
            let port = ServicePort::new(80, "".into(), AppProtocol::Http, endpoints.to_vec());
            port.pick([10, 96, 0, 1].into()).unwrap().address
        };
        // Three of so many are alike by a chance of one in 10^26.
        let began: std::collections::BTreeSet<_> = (0..150).map(|_| first()).collect();
        assert_eq!(began.len(), 3);
    }

    #[test]
    fn without_an_endpoint_of_the_family_there_is_none() {
        let v6 = Endpoint { address: "[fd00::1]:80".parse().unwrap(), workload: None };
        let port = ServicePort::new(80, String::new(), AppProtocol::Http, vec![v6]);
        assert_eq!(port.pick("10.96.0.1".parse().unwrap()), None);
    }
}
