//! One pod as the mesh sees it.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{MutualTls, Principal};
use crate::{jwt::Authentication, policy::Authorization};

/// The port of a pod by which the mesh reaches it, as Istio has it.
pub const HBONE_PORT: u16 = 15008;

/// Label of namespaces and pods: whether they belong to the mesh, as Istio has it.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// Annotation of pods by which the agent of a pod's node tells that it is captured, as Istio's does;
/// its value is [`REDIRECTION_ENABLED`].
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// What [`REDIRECTION`] says of a pod that is captured.
pub const REDIRECTION_ENABLED: &str = "enabled";

/// The UID the API server gave a pod; the name of the pod's enrolment everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// Accepts letters, digits and `-`, at most 64 characters: the UID becomes a file name
    /// under bpffs, so it must not be able to name anything else.
    pub fn new(text: &str) -> Option<Self> {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-';
        (!text.is_empty() && text.len() <= 64 && text.chars().all(legal)).then(|| Self(text.into()))
    }

    /// The UID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is that of a static pod, as its node knows it: a hash of 32 hexadecimal digits,
    /// a form that no UID of the API server's has. The pod's mirror there has another one.
    pub fn is_static(&self) -> bool {
        self.0.len() == 32 && self.0.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

impl TryFrom<String> for PodUid {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text).ok_or("not the UID of a pod")
    }
}

impl From<PodUid> for String {
    fn from(uid: PodUid) -> Self {
        uid.as_str().to_owned()
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The controller a pod belongs to, after folding `ReplicaSet` into `Deployment`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `Job`, `CronJob`, `ReplicaSet` or `Pod`.
    pub kind: String,
    /// The controller's name; the pod's own where it has none.
    pub name: String,
}

/// One pod: where it is, who it is and how its telemetry is labelled.
///
/// A cluster has thousands, and most say the same in most fields: those are shared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// The pod's UID.
    pub uid: PodUid,
    /// The pod's name.
    pub name: Arc<str>,
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The controller that made the pod.
    pub owner: Arc<Owner>,
    /// `spec.nodeName`; empty while unscheduled.
    pub node: Arc<str>,
    /// Every address of the pod, IPv4 and IPv6. Empty where the pod uses the host's network:
    /// such an address is the node's and tells nothing about who is behind it.
    pub ips: Vec<IpAddr>,
    /// The pod's labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Who the pod is to its peers.
    pub principal: Principal,
    /// It has a proxy of Istio's in it, which its traffic passes through already.
    pub sidecar: bool,
    /// Whether it belongs to the mesh: namespace or pod ask for that by their labels
    /// (`istio.io/dataplane-mode`), it has no sidecar, and does not use the host's network.
    pub meshed: bool,
    /// Whether it is captured, as far as is known: the agent of its node tells, after the fact.
    /// Files are taken at their word.
    pub captured: bool,
    /// What NetworkPolicies that select it mean for it; `None` where none does. Settled and saved as
    /// the next.
    #[serde(skip)]
    pub policed: Option<Arc<Policed>>,
    /// What it accepts on its ports. Settled by policies together with the rest of the mesh, and
    /// never saved without those.
    #[serde(skip, default = "MutualTls::none")]
    pub mtls: Arc<MutualTls>,
    /// Who may ask what of it. Settled and saved as the former.
    #[serde(skip, default = "Authorization::none")]
    pub authorization: Arc<Authorization>,
    /// Which tokens requests to it may have. Settled and saved as the former.
    #[serde(skip, default = "Authentication::none")]
    pub authentication: Arc<Authentication>,
    /// How often its containers have started so far. A change tells that the pod's network
    /// namespace may be there now, or be another one.
    pub starts: u32,
    /// Where a static source says the pod's network namespace is; other sources find it
    /// themselves and leave this empty.
    pub netns: Option<PathBuf>,
    /// The pod's `resource.opentelemetry.io/*` annotations, prefix cut: attributes its owner
    /// wants on every span recorded on its behalf.
    pub resource_attributes: BTreeMap<String, String>,
}

/// What NetworkPolicies mean for a pod that they select: the CNI has to see what reaches and leaves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policed {
    /// The name of one that selects it.
    pub by: Arc<str>,
    /// The name of one that lets clients reach ports of the pod, where none lets them reach the port
    /// by which the mesh does.
    pub cut_by: Option<Arc<str>>,
    /// Another number where they are others, or say something else.
    pub digest: u64,
}

impl Workload {
    /// Why clients in the mesh do not reach it whom a NetworkPolicy lets reach its ports; `None` where
    /// they do, or where there are none.
    pub fn cut_by_policy(&self) -> Option<String> {
        let policy = self.policed.as_ref()?.cut_by.as_ref()?;
        Some(format!(
            "NetworkPolicy {}/{policy} lets clients reach ports of it, and none lets them reach TCP \
             port {HBONE_PORT}, by which the mesh does (hint: allow that port too)",
            self.namespace
        ))
    }

    /// `app` for metrics: label `app`, else `unknown` as Istio writes it.
    pub fn app(&self) -> &str {
        self.labels.get("app").map_or("unknown", String::as_str)
    }

    /// `version` for metrics: label `version`, else `unknown`.
    pub fn version(&self) -> &str {
        self.labels.get("version").map_or("unknown", String::as_str)
    }

    /// Istio's canonical service: `service.istio.io/canonical-name`, else
    /// `app.kubernetes.io/name`, else `app`, else the owner's name.
    pub fn canonical_service(&self) -> &str {
        ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]
            .iter()
            .find_map(|key| self.labels.get(*key))
            .map_or(&self.owner.name, String::as_str)
    }

    /// Istio's canonical revision: `service.istio.io/canonical-revision`, else
    /// `app.kubernetes.io/version`, else `version`, else `latest`.
    pub fn canonical_revision(&self) -> &str {
        ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]
            .iter()
            .find_map(|key| self.labels.get(*key))
            .map_or("latest", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_pod_is_told_by_the_form_of_its_uid() {
        let is_static = |uid: &str| PodUid::new(uid).unwrap().is_static();
        assert!(is_static("0a1b2c3d4e5f60718293a4b5c6d7e8f9"));
        for other in ["6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11", "0a1b2c3d", &"g".repeat(32)] {
            assert!(!is_static(other), "{other}");
        }
    }
}
