//! AuthorizationPolicy: who may ask what of whom. Read here object by object, and put together for each
//! workload; what a policy means is for [`crate::policy`] to say.

mod rules;
mod values;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    compile::{Key, Table},
    error::{Problem, meant_or_all},
    facts::{AuthorizationPolicyFacts, Selects},
    in_force::{InForce, Together},
    object::Object,
    security_kind::security_kind,
    selection::{self, PolicyTargetReference, Targets, WorkloadSelector},
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
    let targets = Targets {
        selector: spec.selector.as_ref(),
        target_ref: spec.target_ref.as_ref(),
        target_refs: spec.target_refs.as_deref(),
    };
    let Some(selects) = targets.of(policy)? else { return Ok(None) };
    let action = action(policy, spec.action.as_deref())?;
    let provider = provider(policy, action, spec.provider.as_ref())?;
    let rules = rules::Reading { policy, trust_domain }.rules(spec.rules.unwrap_or_default())?;
    let spec = Spec { action, dry_run: dry_run(policy)?, rules, provider, unreadable: None };
    let policy = Policy::new(&named(policy.namespace(), policy.name()), spec);
    Ok(Some(AuthorizationPolicyFacts { selects, policy: Arc::new(policy) }))
}

/// Whom a policy speaks for that cannot be obeyed.
pub(super) fn selects_at_most(policy: &Object<AuthorizationPolicy>) -> Selects {
    let selector = policy.body.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selection::at_most(selector)
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

fn action(policy: &Object<AuthorizationPolicy>, text: Option<&str>) -> Result<Action, Problem> {
    const ACTIONS: [Action; 4] = [Action::Allow, Action::Deny, Action::Audit, Action::Custom];
    let Some(text) = text else { return Ok(Action::Allow) };
    ACTIONS.into_iter().find(|action| action.as_str() == text).ok_or_else(|| {
        let hint = meant_or_all(text, "actions", &ACTIONS.map(Action::as_str));
        let what = format_args!("`{}` is no action", text.escape_debug());
        policy.problem(&["spec".into(), "action".into()], what).hint(hint)
    })
}

/// Who is asked, of CUSTOM.
fn provider(
    policy: &Object<AuthorizationPolicy>,
    action: Action,
    provider: Option<&ExtensionProvider>,
) -> Result<Option<Arc<str>>, Problem> {
    let named = provider.and_then(|provider| provider.name.as_deref()).unwrap_or_default();
    let problem = |what: &str| policy.problem(&["spec".into(), "provider".into()], what);
    match (action, provider) {
        (Action::Custom, _) if named.is_empty() => {
            Err(problem("names nobody").hint("CUSTOM has one of the extension providers asked"))
        }
        (Action::Allow | Action::Deny | Action::Audit, Some(_)) => {
            Err(problem("has nothing to do").hint("action: CUSTOM has it asked"))
        }
        (Action::Custom, _) => Ok(Some(named.into())),
        _ => Ok(None),
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
pub(super) type AuthorizationPolicies = InForce<Authorization>;

impl InForce<Authorization> {
    pub(super) fn new(all: &Table<AuthorizationPolicyFacts>, root: &RootNamespace) -> Self {
        let all =
            all.iter().map(|((namespace, _), facts)| (namespace, &facts.selects, &facts.policy));
        Self::of_all(all, root)
    }
}

impl Together for Authorization {
    type Policy = Policy;

    fn none() -> Arc<Self> {
        Self::none()
    }

    fn of(policies: Vec<Arc<Self::Policy>>) -> Self {
        Self::new(policies)
    }

    fn policies(&self) -> &[Arc<Self::Policy>] {
        self.policies()
    }
}

#[cfg(test)]
mod tests;
