//! Services, their ports and the endpoints behind them.

use std::{
    cmp::Ordering,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use equivalent::{Comparable, Equivalent};

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

/// The endpoints of one port of a Service, as one node sees them. Each in the order of addresses,
/// and each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Those that take what the port is sent.
    pub taking: Vec<Endpoint>,
    /// Where `internalTrafficPolicy` is `Local`: those of this node, which alone take what is sent to
    /// the port by a cluster IP.
    pub local: Option<Vec<Endpoint>>,
    /// All others, which are the Service's too but take nothing: not ready, on their way out, or meant
    /// for other zones.
    pub idle: Vec<Endpoint>,
}

/// One port of a Service.
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
    /// Where it leads.
    pub endpoints: Endpoints,
    /// Where the next round-robin pick starts; not configuration, so it is outside equality.
    next: AtomicUsize,
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

impl Endpoints {
    /// Every endpoint of the port once, whether it takes anything or not.
    pub fn all(&self) -> impl Iterator<Item = &Endpoint> {
        self.taking.iter().chain(&self.idle)
    }
}

impl From<Vec<Endpoint>> for Endpoints {
    /// All of them take what the port is sent.
    fn from(taking: Vec<Endpoint>) -> Self {
        Self { taking, ..Self::default() }
    }
}

impl ServicePort {
    /// A port with its endpoints. Turns begin anywhere: every change of the endpoints makes a new
    /// port, and all nodes would begin with the first each time.
    pub fn new(port: u16, name: String, protocol: AppProtocol, endpoints: Endpoints) -> Self {
        let next = AtomicUsize::new(rand::random_range(..endpoints.taking.len().max(1)));
        Self { port, node_port: None, name, protocol, endpoints, next }
    }

    /// The same, reached by the port `node_port` of every node as well.
    pub fn on_nodes(self, node_port: Option<u16>) -> Self {
        Self { node_port, ..self }
    }

    /// The next of `endpoints` in round-robin order, of the family of the address that was dialled: a
    /// client has no address of the other family to reach it from. `None` when there is none.
    fn turn<'a>(&self, endpoints: &'a [Endpoint], dialled: IpAddr) -> Option<&'a Endpoint> {
        let of_family = || {
            let endpoints = endpoints.iter();
            endpoints.filter(|endpoint| endpoint.address.is_ipv4() == dialled.is_ipv4())
        };
        let turn = self.next.fetch_add(1, Relaxed);
        of_family().nth(turn.checked_rem(of_family().count())?)
    }
}

/// The namespace and name of a Service, by which it is held wherever it is referred to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(Arc<(Box<str>, Box<str>)>);

impl ServiceId {
    /// Of the Service `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(Arc::new((namespace.into(), name.into())))
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.0.0
    }

    /// The name within the namespace.
    pub fn name(&self) -> &str {
        &self.0.1
    }
}

impl Equivalent<ServiceId> for (&str, &str) {
    fn equivalent(&self, id: &ServiceId) -> bool {
        *self == (id.namespace(), id.name())
    }
}

impl Comparable<ServiceId> for (&str, &str) {
    fn compare(&self, id: &ServiceId) -> Ordering {
        self.cmp(&(id.namespace(), id.name()))
    }
}

impl fmt::Display for ServiceId {
    /// `shop/order`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace(), self.name())
    }
}

impl fmt::Debug for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One Kubernetes Service.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace and name.
    pub id: ServiceId,
    /// `spec.clusterIPs`; empty for a headless Service.
    pub vips: Vec<IpAddr>,
    /// Addresses by which it is reached from outside the cluster, and from inside too: those of
    /// its load balancers and `spec.externalIPs`. Services may share one, by their ports.
    pub external: Vec<IpAddr>,
    /// How long a client without connections goes on being sent to the endpoint it had
    /// (`sessionAffinity: ClientIP`); `None` where each connection goes where its turn leads.
    pub affinity: Option<Duration>,
    /// The ports.
    pub ports: Vec<Arc<ServicePort>>,
}

impl Service {
    /// The fully qualified name, as Istio's `destination_service` label has it.
    pub fn hostname(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.id.name(), self.id.namespace())
    }

    /// The port clients reach under `number`.
    pub fn port(&self, number: u16) -> Option<&Arc<ServicePort>> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// Those that take what `port` of it is sent by its address `dialled`. That is kube-proxy's rule:
    /// what a pod sends by another address than a cluster IP goes to all of them, whatever
    /// `externalTrafficPolicy` says to clients outside the cluster.
    pub fn taking<'a>(&self, port: &'a ServicePort, dialled: IpAddr) -> &'a [Endpoint] {
        match &port.endpoints.local {
            Some(local) if self.vips.contains(&dialled) => local,
            _ => &port.endpoints.taking,
        }
    }

    /// Whose turn it is of those that take what `port` of it is sent by its address `dialled`; `None`
    /// when there are none of its family.
    pub fn pick<'a>(&self, port: &'a ServicePort, dialled: IpAddr) -> Option<&'a Endpoint> {
        port.turn(self.taking(port, dialled), dialled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints<const N: usize>(addresses: [&str; N]) -> Vec<Endpoint> {
        let endpoint =
            |address: &str| Endpoint { address: address.parse().unwrap(), workload: None };
        addresses.map(endpoint).to_vec()
    }

    fn port(endpoints: impl Into<Endpoints>) -> ServicePort {
        ServicePort::new(80, String::new(), AppProtocol::Http, endpoints.into())
    }

    fn service() -> Service {
        let vips = ["10.96.0.1", "fd00:96::1"].map(|ip| ip.parse().unwrap()).to_vec();
        let id = ServiceId::new("shop", "order");
        Service { id, vips, external: Vec::new(), affinity: None, ports: Vec::new() }
    }

    #[test]
    fn endpoints_take_turns_and_those_of_the_other_family_are_passed_over() {
        let port = port(endpoints(["10.0.0.1:80", "[fd00::1]:80", "10.0.0.2:80", "[fd00::2]:80"]));
        let picked = |dialled: &str, times: usize| -> Vec<String> {
            let dialled = dialled.parse().unwrap();
            let pick = |_| service().pick(&port, dialled).unwrap().address.to_string();
            (0..times).map(pick).collect()
        };
        port.next.store(0, Relaxed);
        assert_eq!(picked("10.96.0.1", 3), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.1:80"]);
        assert_eq!(picked("fd00:96::1", 2), ["[fd00::2]:80", "[fd00::1]:80"]);
    }

    #[test]
    fn a_new_port_begins_with_any_of_its_endpoints() {
        let endpoints = endpoints(["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
        let first = || {
            let port = port(endpoints.clone());
            service().pick(&port, [10, 96, 0, 1].into()).unwrap().address
        };
        // Three of so many are alike by a chance of one in 10^26.
        let began: std::collections::BTreeSet<_> = (0..150).map(|_| first()).collect();
        assert_eq!(began.len(), 3);
    }

    #[test]
    fn without_an_endpoint_of_the_family_there_is_none() {
        let port = port(endpoints(["[fd00::1]:80"]));
        assert_eq!(service().pick(&port, "10.96.0.1".parse().unwrap()), None);
    }

    #[test]
    fn what_is_to_stay_on_the_node_does_so_by_a_cluster_ip_alone() {
        let taking = endpoints(["10.0.0.1:80", "10.0.1.1:80"]);
        let port = port(Endpoints { taking, local: Some(Vec::new()), idle: Vec::new() });
        let taking = |dialled: &str| service().taking(&port, dialled.parse().unwrap()).len();
        assert_eq!(taking("10.96.0.1"), 0);
        assert_eq!(taking("203.0.113.1"), 2);
    }
}
