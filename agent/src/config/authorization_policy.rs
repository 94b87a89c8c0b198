//! AuthorizationPolicy: who may ask what of whom. Read here object by object, and put together for each
//! workload; what a policy means is for [`crate::policy`] to say.

mod rules;
mod values;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    compile::{Key, Table},
    error::{Problem, meant_or_all},
    facts::{AuthorizationPolicyFacts, Selects, ServiceFacts, match_labels},
    object::Object,
    security_kind::security_kind,
    yaml::Step,
};
use crate::{
    mesh::{RootNamespace, TrustDomain},
    policy::{Action, Authorization, Policy, Spec},
};

/// Istio's annotation by which a policy is only tried.
const DRY_RUN: &str = "istio.io/dry-run";

/// Istio's kind. Its versions differ in their names alone.
///
/// A field that is not known here may narrow what a policy allows: whoever reads these refuses it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthorizationPolicy {
    #[serde(default, rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(default, rename = "kind")]
    _kind: IgnoredAny,
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<AuthorizationPolicySpec>,
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct AuthorizationPolicySpec {
    selector: Option<WorkloadSelector>,
    target_ref: Option<PolicyTargetReference>,
    target_refs: Option<Vec<PolicyTargetReference>>,
    rules: Option<Vec<rules::Rule>>,
    action: Option<String>,
    provider: Option<ExtensionProvider>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct WorkloadSelector {
    match_labels: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct PolicyTargetReference {
    group: Option<String>,
    kind: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ExtensionProvider {
    name: Option<String>,
}

security_kind!(AuthorizationPolicy, "authorizationpolicies");

/// Reads one AuthorizationPolicy; `None` where it is about none of the agent's workloads.
pub(super) fn read(
    policy: &Object<AuthorizationPolicy>,
    trust_domain: &TrustDomain,
) -> Result<Option<AuthorizationPolicyFacts>, Problem> {
    let spec = policy.body.spec.clone().unwrap_or_default();
    let Some(selects) = selects(policy, &spec)? else { return Ok(None) };
    let action = action(policy, spec.action.as_deref())?;
    check_provider(policy, action, spec.provider.as_ref())?;
    let rules = rules::Reading { policy, trust_domain }.rules(spec.rules.unwrap_or_default())?;
    let spec = Spec { action, dry_run: dry_run(policy)?, rules, unreadable: None };
    let policy = Policy::new(&named(policy.namespace(), policy.name()), spec);
    Ok(Some(AuthorizationPolicyFacts { selects, policy: Arc::new(policy) }))
}

/// Whom a policy speaks for that cannot be obeyed: all of its namespace, where it does not say by labels.
pub(super) fn selects_at_most(policy: &Object<AuthorizationPolicy>) -> Selects {
    let selector = policy.body.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let labels = selector.and_then(|selector| selector.match_labels.clone());
    Selects::Labels(labels.unwrap_or_default())
}

/// The same by the selector of one that cannot be read.
pub(super) fn selects_by(selector: &serde_json::Value) -> Selects {
    let labels = serde_json::from_value(selector["matchLabels"].clone());
    Selects::Labels(labels.unwrap_or_default())
}

/// What stands for a policy of which nothing can be obeyed, because of `why`: nobody may pass where it may
/// have had a say.
pub(super) fn unreadable(
    (namespace, name): &Key,
    selects: Selects,
    why: &str,
) -> AuthorizationPolicyFacts {
    let spec = Spec { unreadable: Some(why.into()), ..Spec::default() };
    AuthorizationPolicyFacts { selects, policy: Policy::new(&named(namespace, name), spec).into() }
}

fn named(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// Whom a policy speaks for; `None` where that is a gateway or a waypoint, which the agent is not.
fn selects(
    policy: &Object<AuthorizationPolicy>,
    spec: &AuthorizationPolicySpec,
) -> Result<Option<Selects>, Problem> {
    let labels = spec.selector.as_ref().and_then(|selector| selector.match_labels.clone());
    let path = |field: &'static str| [Step::Field("spec"), Step::Field(field)];
    if spec.target_ref.is_some() && spec.target_refs.is_some() {
        let problem = policy.problem(&path("targetRef"), "is there beside targetRefs");
        return Err(problem.hint("one of the two"));
    }
    let (field, one_only) = match &spec.target_ref {
        Some(_) => ("targetRef", true),
        None => ("targetRefs", false),
    };
    let references: Vec<_> =
        spec.target_ref.iter().chain(spec.target_refs.iter().flatten()).collect();
    if references.is_empty() {
        let labels = labels.unwrap_or_default();
        if let Some((key, _)) =
            labels.iter().find(|(key, value)| (*key).contains('*') || value.contains('*'))
        {
            let steps = ["spec".into(), "selector".into(), "matchLabels".into(), Step::Field(key)];
            let what = "has a star, which stands for nothing here";
            return Err(policy.problem(&steps, what).hint("the label as pods have it"));
        }
        return Ok(Some(Selects::Labels(labels)));
    }
    if spec.selector.is_some() {
        let problem = policy.problem(&path(field), "is there beside a selector");
        return Err(problem.hint("one of the two"));
    }
    let mut services = Vec::new();
    for (index, reference) in references.into_iter().enumerate() {
        let mut steps = path(field).to_vec();
        if !one_only {
            steps.push(index.into());
        }
        let named = |field: &'static str| [&steps[..], &[Step::Field(field)]].concat();
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
            ("" | "core", "Service") => services.push(name.into()),
            ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
            | ("networking.istio.io", "ServiceEntry") => {
                let (namespace, own, kind) = (policy.namespace(), policy.name(), kind.as_deref());
                tracing::debug!(
                    namespace,
                    name = own,
                    kind,
                    target = name,
                    "an AuthorizationPolicy is not for the agent: nothing of that kind is on its way"
                );
            }
            (group, kind) => {
                let what = format!(
                    "`{}` of group `{}` is nothing that a policy can speak for",
                    kind.escape_debug(),
                    group.escape_debug()
                );
                return Err(policy.problem(&named("kind"), what).hint(
                    "kind: Service with an empty group, Gateway or GatewayClass of \
                           gateway.networking.k8s.io, ServiceEntry of networking.istio.io",
                ));
            }
        }
    }
    Ok((!services.is_empty()).then_some(Selects::Services(services)))
}

fn action(policy: &Object<AuthorizationPolicy>, text: Option<&str>) -> Result<Action, Problem> {
    const ACTIONS: [Action; 4] = [Action::Allow, Action::Deny, Action::Audit, Action::Custom];
    let Some(text) = text else { return Ok(Action::Allow) };
    ACTIONS.into_iter().find(|action| action.as_str() == text).ok_or_else(|| {
        let hint = meant_or_all(text, "actions", &ACTIONS.map(Action::as_str));
        let what = format_args!("`{}` is no action", text.escape_debug());
        policy.problem(&["spec".into(), "action".into()], what).hint(hint)
    })
}

fn check_provider(
    policy: &Object<AuthorizationPolicy>,
    action: Action,
    provider: Option<&ExtensionProvider>,
) -> Result<(), Problem> {
    let named = provider.and_then(|provider| provider.name.as_deref()).unwrap_or_default();
    let problem = |what: &str| policy.problem(&["spec".into(), "provider".into()], what);
    match (action, provider) {
        (Action::Custom, _) if named.is_empty() => {
            Err(problem("names nobody").hint("CUSTOM has one of the extension providers asked"))
        }
        (Action::Allow | Action::Deny | Action::Audit, Some(_)) => {
            Err(problem("has nothing to do").hint("action: CUSTOM has it asked"))
        }
        _ => Ok(()),
    }
}

/// As Go's `ParseBool`, which Istio reads it by.
fn dry_run(policy: &Object<AuthorizationPolicy>) -> Result<bool, Problem> {
    let annotations = policy.body.metadata.annotations.as_ref();
    match annotations.and_then(|all| all.get(DRY_RUN)).map(String::as_str) {
        None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some(other) => {
            let steps = ["metadata".into(), "annotations".into(), DRY_RUN.into()];
            let what = format_args!("`{}` is neither true nor false", other.escape_debug());
            Err(policy.problem(&steps, what).hint("\"true\" only tells what it would do"))
        }
    }
}

/// All policies, by their namespaces.
#[derive(Clone, Debug, Default)]
pub(super) struct AuthorizationPolicies {
    root: Arc<str>,
    namespaces: HashMap<Arc<str>, Vec<AuthorizationPolicyFacts>>,
    /// What was put together already, by the addresses of the policies, which are held above.
    known: HashMap<Vec<usize>, Arc<Authorization>>,
    nothing: Arc<Authorization>,
}

impl AuthorizationPolicies {
    pub(super) fn new(all: &Table<AuthorizationPolicyFacts>, root: &RootNamespace) -> Self {
        let mut policies = Self { root: root.as_str().into(), ..Self::default() };
        for ((namespace, _), facts) in all {
            policies.namespaces.entry(namespace.clone()).or_default().push(facts.clone());
        }
        policies
    }

    /// Whether a policy of `namespace` is about the pods of Services.
    pub(super) fn speak_of_services(&self, namespace: &str) -> bool {
        let there = self.namespaces.get(namespace);
        there.is_some_and(|all| all.iter().any(|one| matches!(one.selects, Selects::Services(_))))
    }

    /// What is in force for a workload of `namespace` with `labels`, for which `former` was. Most have it
    /// in common with others, and with what they had before.
    pub(super) fn of(
        &mut self,
        namespace: &Arc<str>,
        labels: &BTreeMap<String, String>,
        services: &Table<ServiceFacts>,
        former: &Arc<Authorization>,
    ) -> Arc<Authorization> {
        let policies = self.selecting(namespace, labels, services);
        if policies.is_empty() {
            return if former.is_empty() { former.clone() } else { self.nothing.clone() };
        }
        let key = policies.iter().map(|policy| Arc::as_ptr(policy).addr()).collect();
        let before = former.policies();
        let known = self.known.entry(key).or_insert_with(|| {
            let same = before.len() == policies.len()
                && before.iter().zip(&policies).all(|(one, other)| Arc::ptr_eq(one, other));
            match same {
                true => former.clone(),
                false => Arc::new(Authorization::new(policies)),
            }
        });
        known.clone()
    }

    /// The policies that select it, those of the mesh first.
    fn selecting(
        &self,
        namespace: &Arc<str>,
        labels: &BTreeMap<String, String>,
        services: &Table<ServiceFacts>,
    ) -> Vec<Arc<Policy>> {
        let mut selecting = Vec::new();
        let mesh = Some(&self.root).filter(|root| *root != namespace);
        for scope in mesh.into_iter().chain([namespace]) {
            let there = self.namespaces.get(scope).into_iter().flatten();
            let there = there.filter(|facts| match &facts.selects {
                Selects::Labels(wanted) => match_labels(wanted, labels),
                Selects::Services(names) if scope == namespace => names.iter().any(|name| {
                    let service = services.get(&(scope.clone(), name.clone()));
                    // Without a selector, nobody says whose pods they are.
                    service.is_some_and(|service| service.selects(labels))
                }),
                Selects::Services(_) => false,
            });
            selecting.extend(there.map(|facts| facts.policy.clone()));
        }
        selecting
    }
}

#[cfg(test)]
mod tests;
