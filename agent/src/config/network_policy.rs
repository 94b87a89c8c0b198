//! NetworkPolicy: whom one selects. What it allows is for the CNI to say, which sees what passes
//! between pods; so a selected pod is to be talked to by ways that the CNI sees.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::{
    api::networking::v1::NetworkPolicy, apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement,
};

use super::{
    compile::Key,
    error::Problem,
    facts::{LabelTest, NetworkPolicyFacts},
    object::Object,
    yaml::Step,
};

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
    Ok(NetworkPolicyFacts { labels, tests: tests.collect::<Result<_, _>>()? })
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
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.tests.iter().all(|test| test.holds(labels))
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
pub(super) struct NetworkPolicies<'a>(HashMap<&'a str, Vec<&'a NetworkPolicyFacts>>);

impl<'a> NetworkPolicies<'a> {
    pub(super) fn new(all: &'a BTreeMap<Key, NetworkPolicyFacts>) -> Self {
        let mut namespaces: HashMap<&str, Vec<_>> = HashMap::new();
        for ((namespace, _), facts) in all {
            namespaces.entry(namespace).or_default().push(facts);
        }
        Self(namespaces)
    }

    /// Whether one of them selects a pod of `namespace` with `labels`.
    pub(super) fn select(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        let there = self.0.get(namespace);
        there.is_some_and(|policies| policies.iter().any(|policy| policy.selects(labels)))
    }
}

#[cfg(test)]
mod tests;
