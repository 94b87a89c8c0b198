//! RequestAuthentication: which tokens requests may have. Read here object by object, and put together for
//! each workload; what a token has to be is for [`crate::jwt`] to say.

mod rules;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    compile::{Key, Table},
    error::Problem,
    facts::{RequestAuthenticationFacts, Selects},
    in_force::{InForce, Together},
    object::Object,
    security_kind::security_kind,
    selection::{self, PolicyTargetReference, Targets, WorkloadSelector},
};
use crate::{
    jwt::{self, Authentication, Spec},
    mesh::RootNamespace,
};

/// Istio's kind. Its versions differ in their names alone.
///
/// A field that is not known here may narrow which tokens are good: whoever reads these refuses it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RequestAuthentication {
    #[serde(default, rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(default, rename = "kind")]
    _kind: IgnoredAny,
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<RequestAuthenticationSpec>,
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct RequestAuthenticationSpec {
    selector: Option<WorkloadSelector>,
    target_ref: Option<PolicyTargetReference>,
    target_refs: Option<Vec<PolicyTargetReference>>,
    jwt_rules: Option<Vec<rules::JwtRule>>,
}

security_kind!(RequestAuthentication, "requestauthentications");

/// Reads one RequestAuthentication; `None` where it is about none of the agent's workloads.
pub(super) fn read(
    object: &Object<RequestAuthentication>,
) -> Result<Option<RequestAuthenticationFacts>, Problem> {
    let spec = object.body.spec.clone().unwrap_or_default();
    let targets = Targets {
        selector: spec.selector.as_ref(),
        target_ref: spec.target_ref.as_ref(),
        target_refs: spec.target_refs.as_deref(),
    };
    let Some(selects) = targets.of(object)? else { return Ok(None) };
    let rules = rules::read(object, &spec.jwt_rules.unwrap_or_default())?;
    let spec = Spec { rules, unreadable: None };
    let name = named(object.namespace(), object.name());
    let authentication = Arc::new(jwt::RequestAuthentication::new(&name, spec));
    Ok(Some(RequestAuthenticationFacts { selects, authentication }))
}

/// Whom one speaks for that cannot be obeyed.
pub(super) fn selects_at_most(object: &Object<RequestAuthentication>) -> Selects {
    selection::at_most(object.body.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
}

/// What stands for one of which nothing can be obeyed, because of `why`: no request may pass whose token it
/// may have refused.
pub(super) fn unreadable(
    (namespace, name): &Key,
    selects: Selects,
    why: &str,
) -> RequestAuthenticationFacts {
    let spec = Spec { unreadable: Some(why.into()), ..Spec::default() };
    let authentication = jwt::RequestAuthentication::new(&named(namespace, name), spec);
    RequestAuthenticationFacts { selects, authentication: authentication.into() }
}

fn named(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// All RequestAuthentications, by their namespaces.
pub(super) type RequestAuthentications = InForce<Authentication>;

impl InForce<Authentication> {
    pub(super) fn new(all: &Table<RequestAuthenticationFacts>, root: &RootNamespace) -> Self {
        let all = all
            .iter()
            .map(|((namespace, _), facts)| (namespace, &facts.selects, &facts.authentication));
        Self::of_all(all, root)
    }
}

impl Together for Authentication {
    type Policy = jwt::RequestAuthentication;

    fn none() -> Arc<Self> {
        Self::none()
    }

    fn of(policies: Vec<Arc<Self::Policy>>) -> Self {
        Self::new(policies)
    }

    fn policies(&self) -> &[Arc<Self::Policy>] {
        self.all()
    }
}

#[cfg(test)]
mod tests;
