//! PeerAuthentication: who insists on mutual TLS. Read here object by object, and put together
//! for each workload.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use k8s_openapi::{
    Metadata, NamespaceResourceScope, Resource, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    compile::Key,
    error::{Problem, nearest},
    facts::PeerAuthenticationFacts,
    object::Object,
    yaml::Step,
};
use crate::mesh::{MutualTls, MutualTlsMode, PortMutualTls, RootNamespace};

/// Istio's kind. Its versions differ in their names alone.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PeerAuthentication {
    #[serde(default, rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(default, rename = "kind")]
    _kind: IgnoredAny,
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<PeerAuthenticationSpec>,
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PeerAuthenticationSpec {
    selector: Option<WorkloadSelector>,
    mtls: Option<MutualTlsSpec>,
    port_level_mtls: Option<BTreeMap<String, Option<MutualTlsSpec>>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WorkloadSelector {
    match_labels: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename = "MutualTLS", expecting = "MutualTLS")]
struct MutualTlsSpec {
    mode: Option<String>,
}

impl Resource for PeerAuthentication {
    const API_VERSION: &'static str = "security.istio.io/v1";
    const GROUP: &'static str = "security.istio.io";
    const KIND: &'static str = "PeerAuthentication";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "peerauthentications";
    type Scope = NamespaceResourceScope;
}

impl Metadata for PeerAuthentication {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl PeerAuthentication {
    /// What Istio before 1.22 has alone.
    pub(super) const FORMER_API_VERSION: &'static str = "security.istio.io/v1beta1";
}

/// Reads one PeerAuthentication.
pub(super) fn read(
    policy: &Object<PeerAuthentication>,
) -> Result<PeerAuthenticationFacts, Problem> {
    let PeerAuthenticationSpec { selector, mtls, port_level_mtls } =
        policy.body.spec.clone().unwrap_or_default();
    let selector = selector.and_then(|selector| selector.match_labels).unwrap_or_default();
    let ports = port_level_mtls.unwrap_or_default();
    const PORTS: &str = "portLevelMtls";
    if selector.is_empty() && !ports.is_empty() {
        return Err(policy
            .problem(&["spec".into(), PORTS.into()], "needs a selector: ports are a workload's")
            .hint("spec.selector.matchLabels with the labels of the workload"));
    }
    let created = policy.body.metadata.creation_timestamp.as_ref();
    Ok(PeerAuthenticationFacts {
        selector,
        mode: mode(policy, mtls, &["spec".into(), "mtls".into(), "mode".into()])?,
        ports: ports
            .into_iter()
            .map(|(port, mtls)| {
                let steps = ["spec".into(), PORTS.into(), Step::Field(&port), "mode".into()];
                Ok((number(policy, &port, &steps[..3])?, mode(policy, mtls, &steps)?))
            })
            .collect::<Result<_, Problem>>()?,
        created: created.map_or(0, |time| time.0.as_second()),
    })
}

/// The mode `steps` below; `None` where it is left to a policy of a wider scope.
fn mode(
    policy: &Object<PeerAuthentication>,
    mtls: Option<MutualTlsSpec>,
    steps: &[Step<'_>],
) -> Result<Option<MutualTlsMode>, Problem> {
    const MODES: [MutualTlsMode; 3] =
        [MutualTlsMode::Strict, MutualTlsMode::Permissive, MutualTlsMode::Disable];
    const UNSET: &str = "UNSET";
    let Some(text) = mtls.and_then(|mtls| mtls.mode) else { return Ok(None) };
    if text == UNSET {
        return Ok(None);
    }
    let names = || MODES.map(MutualTlsMode::as_str).into_iter().chain([UNSET]);
    MODES.into_iter().find(|mode| mode.as_str() == text).map(Some).ok_or_else(|| {
        let hint = match nearest(&text, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the modes are {}", names().collect::<Vec<_>>().join(", ")),
        };
        policy.problem(steps, format_args!("`{}` is no mode", text.escape_debug())).hint(hint)
    })
}

fn number(
    policy: &Object<PeerAuthentication>,
    port: &str,
    steps: &[Step<'_>],
) -> Result<u16, Problem> {
    port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
        policy.problem(steps, "is not a port").hint("1 to 65535, a port of the workload itself")
    })
}

/// All policies, by what they speak for.
pub(super) struct Policies<'a> {
    root: &'a str,
    mesh: Option<Policy<'a>>,
    namespaces: HashMap<&'a str, Policy<'a>>,
    /// Those with a selector by their namespaces, the oldest first.
    workloads: HashMap<&'a str, Vec<Policy<'a>>>,
    /// What was put together already, by a workload's namespace and what selects it there.
    known: HashMap<(&'a str, Option<&'a Key>), Arc<MutualTls>>,
    nothing: Arc<MutualTls>,
}

#[derive(Clone, Copy)]
struct Policy<'a> {
    key: &'a Key,
    facts: &'a PeerAuthenticationFacts,
}

impl<'a> Policies<'a> {
    pub(super) fn new(
        all: &'a BTreeMap<Key, PeerAuthenticationFacts>,
        root: &'a RootNamespace,
    ) -> Self {
        let mut policies = Self {
            root: root.as_str(),
            mesh: None,
            namespaces: HashMap::new(),
            workloads: HashMap::new(),
            known: HashMap::new(),
            nothing: Arc::default(),
        };
        // Of several that speak for the same the oldest holds, then the first by its name.
        let mut by_age: Vec<_> = all.iter().map(|(key, facts)| Policy { key, facts }).collect();
        by_age.sort_by_key(|policy| (policy.facts.created, &policy.key.1));
        for policy in by_age {
            let namespace = &*policy.key.0;
            if !policy.facts.selector.is_empty() {
                policies.workloads.entry(namespace).or_default().push(policy);
            } else if namespace == policies.root {
                policies.mesh.get_or_insert(policy);
            } else {
                policies.namespaces.entry(namespace).or_insert(policy);
            }
        }
        policies
    }

    /// What holds for a workload of `namespace` with `labels`.
    pub(super) fn of(
        &mut self,
        namespace: &'a str,
        labels: &BTreeMap<String, String>,
    ) -> Arc<MutualTls> {
        let selecting = self.selecting(namespace, labels);
        let place = match self.known.entry((namespace, selecting.map(|policy| policy.key))) {
            Entry::Occupied(known) => return known.get().clone(),
            Entry::Vacant(place) => place,
        };
        let in_scope = [self.mesh, self.namespaces.get(namespace).copied(), selecting];
        if in_scope.iter().all(Option::is_none) {
            return place.insert(self.nothing.clone()).clone();
        }
        let mut mtls = MutualTls::default();
        for policy in in_scope.into_iter().flatten() {
            if let Some(mode) = policy.facts.mode {
                mtls.usual = policy.rule(mode);
            }
        }
        if let Some(policy) = selecting {
            let ports = policy.facts.ports.iter();
            let set = ports.filter_map(|(port, mode)| Some((*port, policy.rule((*mode)?))));
            mtls.ports = set.collect();
        }
        place.insert(Arc::new(mtls)).clone()
    }

    /// The policy whose selector names the workload. Those of the root namespace select in every
    /// namespace, where it has none of its own.
    fn selecting(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Option<Policy<'a>> {
        let selects = |policy: &&Policy<'_>| {
            policy.facts.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        [namespace, self.root]
            .iter()
            .find_map(|namespace| self.workloads.get(namespace)?.iter().find(selects))
            .copied()
    }
}

impl Policy<'_> {
    fn rule(&self, mode: MutualTlsMode) -> PortMutualTls {
        let (namespace, name) = self.key;
        PortMutualTls { mode, policy: Some(format!("{namespace}/{name}").into()) }
    }
}

#[cfg(test)]
mod tests;
