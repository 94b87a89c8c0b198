//! Kinds that there are, and that the agent does not read: those of meshes that it does not obey yet, and
//! those that are none of its business.

use super::{
    error::{Problem, nearest},
    manifest::group,
    object::Text,
    yaml::Step,
};

/// An object of such a kind.
#[derive(Debug)]
pub(super) struct Foreign {
    pub(super) text: Text,
    /// What there is to say about it where it cannot be passed over.
    pub(super) problem: Problem,
}

impl Foreign {
    /// Its kind.
    pub(super) fn kind(&self) -> &str {
        self.text.node.text("kind").unwrap_or_default()
    }

    /// Whether it says something to a mesh.
    pub(super) fn is_of_meshes(&self) -> bool {
        is_of_meshes(group(self.text.node.text("apiVersion").unwrap_or_default()))
    }

    /// Its namespace and its name.
    pub(super) fn name(&self) -> (&str, &str) {
        let of = |field| self.text.node.at(&["metadata".into(), Step::Field(field)])?.as_text();
        (of("namespace").unwrap_or("default"), of("name").unwrap_or_default())
    }
}

/// Istio's kinds and those of the Gateway API, whichever the agent reads.
const OF_MESHES: [&str; 25] = [
    "AuthorizationPolicy",
    "BackendTLSPolicy",
    "DestinationRule",
    "EnvoyFilter",
    "GRPCRoute",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "IstioOperator",
    "ListenerSet",
    "PeerAuthentication",
    "ProxyConfig",
    "ReferenceGrant",
    "RequestAuthentication",
    "ServiceEntry",
    "Sidecar",
    "TCPRoute",
    "TLSRoute",
    "Telemetry",
    "TrafficExtension",
    "UDPRoute",
    "VirtualService",
    "WasmPlugin",
    "WorkloadEntry",
    "WorkloadGroup",
];

/// Whether a kind of `group` says something to a mesh.
pub(super) fn is_of_meshes(group: &str) -> bool {
    group == "istio.io" || group.ends_with(".istio.io") || group == "gateway.networking.k8s.io"
}

/// Whether `kind` of `group` is one that there is, rather than a slip of the pen for one of the agent's
/// `own`: where groups are not Kubernetes' and not Istio's, nobody here can tell.
pub(super) fn is_kind(group: &str, kind: &str, own: &[&str]) -> bool {
    if is_of_meshes(group) {
        return OF_MESHES.contains(&kind);
    }
    let is_of_kubernetes = !group.contains('.') || group.ends_with(".k8s.io");
    !is_of_kubernetes || nearest(kind, own.iter().copied()).is_none()
}
