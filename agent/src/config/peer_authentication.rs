//! PeerAuthentication: who insists on mutual TLS. Read here object by object, and put together
//! for each workload.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    compile::{Key, Table},
    error::{Problem, meant_or_all},
    facts::{PeerAuthenticationFacts, match_labels},
    object::Object,
    security_kind::security_kind,
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

security_kind!(PeerAuthentication, "peerauthentications");

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
    MODES.into_iter().find(|mode| mode.as_str() == text).map(Some).ok_or_else(|| {
        let names = [&MODES.map(MutualTlsMode::as_str)[..], &[UNSET]].concat();
        let hint = meant_or_all(&text, "modes", &names);
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
#[derive(Clone, Debug, Default)]
pub(super) struct Policies {
    root: Arc<str>,
    mesh: Option<Policy>,
    namespaces: HashMap<Arc<str>, Policy>,
    /// Those with a selector by their namespaces, the oldest first.
    workloads: HashMap<Arc<str>, Vec<Policy>>,
    /// What was put together already, by a workload's namespace and what selects it there.
    known: HashMap<(Arc<str>, Option<Key>), Arc<MutualTls>>,
}

#[derive(Clone, Debug)]
struct Policy {
    key: Key,
    facts: Arc<PeerAuthenticationFacts>,
}

impl Policies {
    pub(super) fn new(all: &Table<PeerAuthenticationFacts>, root: &RootNamespace) -> Self {
        let mut policies = Self { root: root.as_str().into(), ..Self::default() };
        // Of several that speak for the same the oldest holds, then the first by its name.
        let policy =
            |(key, facts): (&Key, &PeerAuthenticationFacts)| (key.clone(), Arc::new(facts.clone()));
        let mut by_age: Vec<_> = all.iter().map(policy).collect();
        by_age.sort_by_key(|((_, name), facts)| (facts.created, name.clone()));
        for (key, facts) in by_age {
            let (namespace, policy) = (key.0.clone(), Policy { key, facts });
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
        namespace: &Arc<str>,
        labels: &BTreeMap<String, String>,
    ) -> Arc<MutualTls> {
        let selecting = self.selecting(namespace, labels);
        let place = (namespace.clone(), selecting.map(|policy| policy.key.clone()));
        if let Some(known) = self.known.get(&place) {
            return known.clone();
        }
        let in_scope = [self.mesh.as_ref(), self.namespaces.get(namespace), selecting];
        let mtls = if in_scope.iter().all(Option::is_none) {
            MutualTls::none()
        } else {
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
            Arc::new(mtls)
        };
        self.known.insert(place, mtls.clone());
        mtls
    }

    /// The policy whose selector names the workload. Those of the root namespace select in every
    /// namespace, where it has none of its own.
    fn selecting(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Option<&Policy> {
        let selects = |policy: &&Policy| match_labels(&policy.facts.selector, labels);
        [namespace, &self.root]
            .iter()
            .find_map(|namespace| self.workloads.get(*namespace)?.iter().find(selects))
    }
}

impl Policy {
    fn rule(&self, mode: MutualTlsMode) -> PortMutualTls {
        let (namespace, name) = &self.key;
        PortMutualTls { mode, policy: Some(format!("{namespace}/{name}").into()) }
    }
}

#[cfg(test)]
mod tests;
