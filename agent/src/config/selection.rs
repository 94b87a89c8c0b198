//! Whom policies speak for: read of one of them, and found of all.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::{Metadata, Resource, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::Deserialize;

use super::{
    compile::Table,
    error::Problem,
    facts::{Selects, ServiceFacts, match_labels},
    object::Object,
    yaml::Step,
};
use crate::mesh::RootNamespace;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WorkloadSelector {
    match_labels: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PolicyTargetReference {
    group: Option<String>,
    kind: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
}

/// The fields of a policy that say whom it speaks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Targets<'a> {
    pub(super) selector: Option<&'a WorkloadSelector>,
    pub(super) target_ref: Option<&'a PolicyTargetReference>,
    pub(super) target_refs: Option<&'a [PolicyTargetReference]>,
}

/// Whom a policy speaks for that cannot be obeyed: all of its namespace, where it does not say by labels.
pub(super) fn at_most(selector: Option<&WorkloadSelector>) -> Selects {
    let labels = selector.and_then(|selector| selector.match_labels.clone());
    Selects::Labels(labels.unwrap_or_default())
}

/// The same by the selector of one that cannot be read.
pub(super) fn at_most_by(selector: &serde_json::Value) -> Selects {
    let labels = serde_json::from_value(selector["matchLabels"].clone());
    Selects::Labels(labels.unwrap_or_default())
}

impl Targets<'_> {
    /// Whom `policy` speaks for; `None` where that is a gateway or a waypoint, which the agent is not.
    pub(super) fn of<T: Metadata<Ty = ObjectMeta>>(
        self,
        policy: &Object<T>,
    ) -> Result<Option<Selects>, Problem> {
        let Self { selector, target_ref, target_refs } = self;
        let path = |field: &'static str| [Step::Field("spec"), Step::Field(field)];
        if target_ref.is_some() && target_refs.is_some() {
            let problem = policy.problem(&path("targetRef"), "is there beside targetRefs");
            return Err(problem.hint("one of the two"));
        }
        let (field, one_only) = match target_ref {
            Some(_) => ("targetRef", true),
            None => ("targetRefs", false),
        };
        let references: Vec<_> =
            target_ref.into_iter().chain(target_refs.into_iter().flatten()).collect();
        if references.is_empty() {
            return by_labels(policy, selector).map(Some);
        }
        if selector.is_some() {
            let problem = policy.problem(&path(field), "is there beside a selector");
            return Err(problem.hint("one of the two"));
        }
        let mut services = Vec::new();
        for (index, reference) in references.into_iter().enumerate() {
            let mut steps = path(field).to_vec();
            if !one_only {
                steps.push(index.into());
            }
            services.extend(service(policy, reference, &steps)?);
        }
        Ok((!services.is_empty()).then_some(Selects::Services(services)))
    }
}

fn by_labels<T: Metadata<Ty = ObjectMeta>>(
    policy: &Object<T>,
    selector: Option<&WorkloadSelector>,
) -> Result<Selects, Problem> {
    let labels = selector.and_then(|selector| selector.match_labels.clone()).unwrap_or_default();
    let has_star = |(key, value): &(&String, &String)| key.contains('*') || value.contains('*');
    if let Some((key, _)) = labels.iter().find(has_star) {
        let steps = ["spec".into(), "selector".into(), "matchLabels".into(), Step::Field(key)];
        let what = "has a star, which stands for nothing here";
        return Err(policy.problem(&steps, what).hint("the label as pods have it"));
    }
    Ok(Selects::Labels(labels))
}

/// The Service that is referred to; `None` where it is something that is not on the agent's way.
fn service<T: Metadata<Ty = ObjectMeta>>(
    policy: &Object<T>,
    reference: &PolicyTargetReference,
    steps: &[Step<'_>],
) -> Result<Option<Arc<str>>, Problem> {
    let named = |field: &'static str| [steps, &[Step::Field(field)]].concat();
    let PolicyTargetReference { group, kind, name, namespace } = reference;
    if namespace.as_ref().is_some_and(|namespace| namespace != policy.namespace()) {
        let what = "is another namespace than the policy's";
        return Err(policy
            .problem(&named("namespace"), what)
            .hint("a policy speaks for what is in its own namespace"));
    }
    let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else {
        return Err(policy.problem(&named("name"), "is missing"));
    };
    match (group.as_deref().unwrap_or_default(), kind.as_deref().unwrap_or_default()) {
        ("" | "core", "Service") => Ok(Some(name.into())),
        ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
        | ("networking.istio.io", "ServiceEntry") => {
            let (namespace, own, kind) = (policy.namespace(), policy.name(), kind.as_deref());
            tracing::debug!(
                policy = <T as Resource>::KIND,
                namespace,
                name = own,
                kind,
                target = name,
                "a policy is not for the agent: nothing of that kind is on its way"
            );
            Ok(None)
        }
        (group, kind) => {
            let what = format!(
                "`{}` of group `{}` is nothing that a policy can speak for",
                kind.escape_debug(),
                group.escape_debug()
            );
            Err(policy.problem(&named("kind"), what).hint(
                "kind: Service with an empty group, Gateway or GatewayClass of \
                 gateway.networking.k8s.io, ServiceEntry of networking.istio.io",
            ))
        }
    }
}

/// All policies of a kind, by their namespaces.
#[derive(Debug)]
pub(super) struct Selection<P> {
    root: Arc<str>,
    namespaces: HashMap<Arc<str>, Vec<(Selects, Arc<P>)>>,
}

impl<P> Default for Selection<P> {
    fn default() -> Self {
        Self { root: Arc::default(), namespaces: HashMap::new() }
    }
}

impl<P> Clone for Selection<P> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), namespaces: self.namespaces.clone() }
    }
}

impl<P> Selection<P> {
    /// Of none yet. Those of `root` are to speak for all namespaces.
    pub(super) fn new(root: &RootNamespace) -> Self {
        Self { root: root.as_str().into(), ..Self::default() }
    }

    pub(super) fn add(&mut self, namespace: &Arc<str>, selects: &Selects, policy: &Arc<P>) {
        let there = self.namespaces.entry(namespace.clone()).or_default();
        there.push((selects.clone(), policy.clone()));
    }

    /// Whether one of `namespace` is about the pods of Services.
    pub(super) fn speaks_of_services(&self, namespace: &str) -> bool {
        let there = self.namespaces.get(namespace);
        there.is_some_and(|all| all.iter().any(|(by, _)| matches!(by, Selects::Services(_))))
    }

    /// Those that select a workload of `namespace` with `labels`, the mesh's first.
    pub(super) fn of(
        &self,
        namespace: &Arc<str>,
        labels: &BTreeMap<String, String>,
        services: &Table<ServiceFacts>,
    ) -> Vec<Arc<P>> {
        let mut selecting = Vec::new();
        let mesh = Some(&self.root).filter(|root| *root != namespace);
        for scope in mesh.into_iter().chain([namespace]) {
            let there = self.namespaces.get(scope).into_iter().flatten();
            let there = there.filter(|(selects, _)| match selects {
                Selects::Labels(wanted) => match_labels(wanted, labels),
                Selects::Services(names) if scope == namespace => names.iter().any(|name| {
                    let service = services.get(&(scope.clone(), name.clone()));
                    // Without a selector, nobody says whose pods they are.
                    service.is_some_and(|service| service.selects(labels))
                }),
                Selects::Services(_) => false,
            });
            selecting.extend(there.map(|(_, policy)| policy.clone()));
        }
        selecting
    }
}
