//! What the mesh needs to know of each object, and nothing else of it.
//!
//! Every source turns Kubernetes objects into these, one by one, and lets go of the objects.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    jwt::RequestAuthentication,
    mesh::{AppProtocol, MutualTlsMode, Workload},
    policy::{Policy, Providers},
};

/// What `istio.io/dataplane-mode` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mode {
    /// Take part.
    Ambient,
    /// `none`: stay out, whatever the namespace says.
    Out,
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NamespaceFacts {
    pub(super) mode: Option<Mode>,
}

/// A Pod that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PodFacts {
    /// `meshed`, `mtls`, `authorization`, `authentication` and `policed` are settled together with what
    /// others say, see [`Compiler::compile`](super::compile::Compiler::compile).
    pub(super) workload: Arc<Workload>,
    /// The node's addresses by which it is reached, where it uses the host's network.
    pub(super) host_addresses: Box<[IpAddr]>,
    /// The addresses of its node, as the kubelet tells them.
    pub(super) node_addresses: Arc<[IpAddr]>,
    /// What its own label says.
    pub(super) mode: Option<Mode>,
    pub(super) host_network: bool,
    pub(super) condition: Condition,
    /// TCP ports by their names.
    pub(super) ports: NamedPorts,
    /// Unix time; 0 where nobody noted it.
    pub(super) created: i64,
}

/// Ports by their names; those of a Deployment's pods are the same.
pub(super) type NamedPorts = Arc<[(Box<str>, u16)]>;

/// Whether a pod takes traffic. The first is the one that does most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Condition {
    Ready,
    /// It is on its way out, and still serves.
    Leaving,
    NotReady,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServiceFacts {
    pub(super) vips: Vec<IpAddr>,
    /// Those that lead to it from outside the cluster: of load balancers, and `externalIPs`.
    pub(super) external: Vec<IpAddr>,
    /// One is usually assigned, and is not there.
    pub(super) lacks_vip: bool,
    pub(super) selector: Box<[(Box<str>, Box<str>)]>,
    /// Pods that are not ready count too.
    pub(super) publish_not_ready: bool,
    /// `sessionAffinity: ClientIP`, with its timeout.
    pub(super) affinity: Option<Duration>,
    /// `internalTrafficPolicy: Local`.
    pub(super) stays_on_node: bool,
    /// Its TCP ports.
    pub(super) ports: Vec<PortFacts>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortFacts {
    pub(super) number: u16,
    /// The port of every node that leads to it.
    pub(super) node_port: Option<u16>,
    pub(super) name: String,
    pub(super) protocol: AppProtocol,
    pub(super) target: Target,
}

/// The port of the pods that a Service's port leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Target {
    Number(u16),
    /// As the pod's containers name it.
    Name(String),
    /// A number that is no port.
    Nowhere,
}

/// An EndpointSlice of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SliceFacts {
    /// The Service's name, in the slice's own namespace.
    pub(super) service: Arc<str>,
    /// TCP ports by their names; the same name is empty as in the Service.
    pub(super) ports: NamedPorts,
    pub(super) endpoints: Box<[EndpointFacts]>,
    /// The zone that one of its endpoints on this node is in.
    pub(super) zone: Option<Arc<str>>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EndpointFacts {
    pub(super) address: IpAddr,
    /// The name of the pod it is said to be, in the slice's own namespace.
    pub(super) pod: Option<Arc<str>>,
    pub(super) condition: Condition,
    /// Whether it is on this node.
    pub(super) is_here: bool,
    pub(super) hints: Option<Arc<Hints>>,
}

/// For whom an endpoint is meant, as the control plane spreads traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Hints {
    /// For nodes, of whichever names.
    pub(super) for_nodes: bool,
    /// Those nodes are this one, too.
    pub(super) for_this_node: bool,
    pub(super) for_zones: Vec<String>,
}

/// A PeerAuthentication. A mode of `None` is left to a policy of a wider scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PeerAuthenticationFacts {
    /// The labels of the workloads it speaks for; without any, all of its namespace, or of the
    /// mesh.
    pub(super) selector: BTreeMap<String, String>,
    pub(super) mode: Option<MutualTlsMode>,
    /// By ports of the workload.
    pub(super) ports: BTreeMap<u16, Option<MutualTlsMode>>,
    /// Unix time; 0 where nobody noted it.
    pub(super) created: i64,
}

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AuthorizationPolicyFacts {
    pub(super) selects: Selects,
    pub(super) policy: Arc<Policy>,
}

/// A RequestAuthentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RequestAuthenticationFacts {
    pub(super) selects: Selects,
    pub(super) authentication: Arc<RequestAuthentication>,
}

/// What is obeyed of MeshConfig.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MeshConfigFacts {
    pub(super) providers: Providers,
}

/// The workloads that a policy speaks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Selects {
    /// By their labels; without any, all of its namespace, or of the mesh.
    Labels(BTreeMap<String, String>),
    /// Those of these Services, in its namespace.
    Services(Vec<Arc<str>>),
}

/// A NetworkPolicy: which pods of its namespace it selects. The default selects all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetworkPolicyFacts {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) tests: Vec<LabelTest>,
    #[serde(default)]
    pub(super) lets_in: LetsIn,
    /// Another number where it says something else.
    #[serde(default)]
    pub(super) digest: u64,
}

/// Which TCP ports of the pods that it selects a NetworkPolicy lets somebody reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum LetsIn {
    /// None, or it speaks of what the pods dial alone.
    #[default]
    Nothing,
    /// Some, but not the one by which the mesh reaches them.
    OtherPorts,
    /// That one too.
    TheMesh,
}

/// What a pod's label has to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum LabelTest {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

/// Whether `labels` have all that is `wanted`, as the `matchLabels` of a selector.
pub(super) fn match_labels(
    wanted: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl ServiceFacts {
    /// Whether it selects a pod of its own namespace with `labels`.
    pub(super) fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.selector.is_empty()
            && self
                .selector
                .iter()
                .all(|(key, value)| labels.get(&**key).is_some_and(|label| **label == **value))
    }
}

impl PodFacts {
    /// Its addresses, which are the node's when it uses the host's network; none while it starts.
    pub(super) fn addresses(&self) -> &[IpAddr] {
        if self.host_network { &self.host_addresses } else { &self.workload.ips }
    }

    /// Whether the pod belongs to the mesh, where its namespace says `mode`. That is Istio's
    /// rule (`PodRedirectionEnabled`): either may ask for it, the pod's own `none` goes before
    /// both, and whoever has a proxy already, or the node's network, gets no second one.
    pub(super) fn belongs(&self, namespace: Option<Mode>) -> bool {
        let asked = [namespace, self.mode].contains(&Some(Mode::Ambient));
        asked && self.mode != Some(Mode::Out) && !self.host_network && !self.workload.sidecar
    }
}

impl Mode {
    /// `None` for what the label says to somebody else, which is as if it said nothing.
    pub(super) fn of(label: &str) -> Option<Self> {
        match label {
            "ambient" => Some(Self::Ambient),
            "none" => Some(Self::Out),
            _ => None,
        }
    }
}
