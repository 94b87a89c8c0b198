//! NetworkPolicy: whom one selects. What it allows is for the CNI to say, which sees what passes
//! between pods; so a selected pod is to be talked to by ways that the CNI sees.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelectorRequirement, util::intstr::IntOrString},
};

use super::{
    compile::Table,
    error::Problem,
    facts::{LabelTest, LetsIn, NetworkPolicyFacts, match_labels},
    object::Object,
    yaml::Step,
};
use crate::mesh::{HBONE_PORT, Policed};

/// Groups of kinds by which CNIs keep pods apart and that the agent cannot read: Calico's, Cilium's,
/// Antrea's, Kube-OVN's, AWS', and those that are to be common to all (AdminNetworkPolicy,
/// ClusterNetworkPolicy).
const CNI_GROUPS: [&str; 7] = [
    "crd.projectcalico.org",
    "projectcalico.org",
    "cilium.io",
    "crd.antrea.io",
    "kubeovn.io",
    "networking.k8s.aws",
    "policy.networking.k8s.io",
];

/// Whether kinds of `group` keep pods apart in ways that the CNI alone understands.
pub(super) fn is_of_cni(group: &str) -> bool {
    CNI_GROUPS.contains(&group)
}

/// Reads one NetworkPolicy.
pub(super) fn read(policy: &Object<NetworkPolicy>) -> Result<NetworkPolicyFacts, Problem> {
    let spec = policy.body.spec.as_ref();
    let selector = spec.and_then(|spec| spec.pod_selector.as_ref());
    let labels = selector.and_then(|selector| selector.match_labels.clone()).unwrap_or_default();
    let tests = selector.and_then(|selector| selector.match_expressions.as_ref());
    let tests = tests.into_iter().flatten().enumerate();
    let tests = tests.map(|(index, requirement)| test(policy, index, requirement));
    let tests = tests.collect::<Result<_, _>>()?;
    let lets_in = spec.map_or(LetsIn::Nothing, lets_in);
    Ok(NetworkPolicyFacts { labels, tests, lets_in, digest: digest(spec) })
}

/// What a policy lets somebody reach. One that names no types speaks of what comes in.
fn lets_in(spec: &NetworkPolicySpec) -> LetsIn {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if !types.is_empty() && !types.iter().any(|one| one == "Ingress") {
        return LetsIn::Nothing;
    }
    let rules = spec.ingress.iter().flatten();
    // A rule without ports is one for all of them.
    let of_rule = |ports: &[NetworkPolicyPort]| match ports {
        [] => LetsIn::TheMesh,
        ports => ports.iter().map(lets_reach).max().unwrap_or_default(),
    };
    rules.map(|rule| of_rule(rule.ports.as_deref().unwrap_or_default())).max().unwrap_or_default()
}

fn lets_reach(port: &NetworkPolicyPort) -> LetsIn {
    if port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP") {
        return LetsIn::Nothing;
    }
    let hbone = i32::from(HBONE_PORT);
    let has_it = match &port.port {
        None => true,
        Some(IntOrString::Int(first)) => {
            (*first..=port.end_port.unwrap_or(*first)).contains(&hbone)
        }
        // The name of a container's port, which the mesh's has not.
        Some(IntOrString::String(_)) => false,
    };
    if has_it { LetsIn::TheMesh } else { LetsIn::OtherPorts }
}

fn digest(spec: Option<&NetworkPolicySpec>) -> u64 {
    let mut hasher = DefaultHasher::new();
    // All of its maps are sorted.
    serde_json::to_string(&spec).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

fn test(
    policy: &Object<NetworkPolicy>,
    index: usize,
    requirement: &LabelSelectorRequirement,
) -> Result<LabelTest, Problem> {
    let LabelSelectorRequirement { key, operator, values } = requirement;
    let (key, values) = (key.clone(), values.clone().unwrap_or_default());
    match operator.as_str() {
        "In" => Ok(LabelTest::In(key, values)),
        "NotIn" => Ok(LabelTest::NotIn(key, values)),
        "Exists" => Ok(LabelTest::Exists(key)),
        "DoesNotExist" => Ok(LabelTest::DoesNotExist(key)),
        unknown => {
            let steps: [Step<'_>; 5] = [
                "spec".into(),
                "podSelector".into(),
                "matchExpressions".into(),
                index.into(),
                "operator".into(),
            ];
            let what = format_args!("`{}` is no operator", unknown.escape_debug());
            let hint = "the operators are In, NotIn, Exists, DoesNotExist";
            Err(policy.problem(&steps, what).hint(hint))
        }
    }
}

impl NetworkPolicyFacts {
    /// Whether a pod of the policy's namespace with `labels` is meant.
    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        match_labels(&self.labels, labels) && self.tests.iter().all(|test| test.holds(labels))
    }
}

impl LabelTest {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let is_one_of = |key, values: &[String]| {
            labels.get(key).is_some_and(|value| values.iter().any(|one| one == value))
        };
        match self {
            Self::In(key, values) => is_one_of(key, values),
            // A pod without the label is not in it either, as Kubernetes has it.
            Self::NotIn(key, values) => !is_one_of(key, values),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

/// All policies, by the namespaces whose pods they select.
#[derive(Clone, Debug, Default)]
pub(super) struct NetworkPolicies {
    namespaces: HashMap<Arc<str>, Vec<(Arc<str>, NetworkPolicyFacts)>>,
    /// What they mean for pods, by the digests: most pods have it in common with others.
    known: HashMap<u64, Arc<Policed>>,
}

impl NetworkPolicies {
    pub(super) fn new(all: &Table<NetworkPolicyFacts>) -> Self {
        let mut namespaces: HashMap<Arc<str>, Vec<_>> = HashMap::new();
        for ((namespace, name), facts) in all {
            namespaces.entry(namespace.clone()).or_default().push((name.clone(), facts.clone()));
        }
        Self { namespaces, known: HashMap::new() }
    }

    /// What they mean for a pod of `namespace` with `labels`; `None` where none selects it.
    pub(super) fn of(
        &mut self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Option<Arc<Policed>> {
        let there = self.namespaces.get(namespace)?;
        let selecting = || there.iter().filter(|(_, policy)| policy.selects(labels));
        let (by, _) = selecting().next()?;
        let mut hasher = DefaultHasher::new();
        for (name, policy) in selecting() {
            (namespace, name, policy.digest).hash(&mut hasher);
        }
        let digest = hasher.finish();
        let policed = self.known.entry(digest).or_insert_with(|| {
            let most = selecting().max_by_key(|(_, policy)| policy.lets_in);
            let cut_by = most.filter(|(_, policy)| policy.lets_in == LetsIn::OtherPorts);
            let cut_by = cut_by.map(|(name, _)| Arc::clone(name));
            Arc::new(Policed { by: Arc::clone(by), cut_by, digest })
        });
        Some(Arc::clone(policed))
    }
}

#[cfg(test)]
mod tests;
