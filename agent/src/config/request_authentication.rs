//! RequestAuthentication: which tokens requests may have. Read here object by object, and put together for
//! each workload; what a token has to be is for [`crate::jwt`] to say.

mod rules;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    compile::{Key, Table},
    error::Problem,
    facts::{RequestAuthenticationFacts, Selects, ServiceFacts},
    object::Object,
    security_kind::security_kind,
    selection::{self, PolicyTargetReference, Selection, Targets, WorkloadSelector, are_same},
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
#[derive(Clone, Debug, Default)]
pub(super) struct RequestAuthentications {
    all: Selection<jwt::RequestAuthentication>,
    /// What was put together already, by the addresses of the objects, which are held above.
    known: HashMap<Vec<usize>, Arc<Authentication>>,
}

impl RequestAuthentications {
    pub(super) fn new(all: &Table<RequestAuthenticationFacts>, root: &RootNamespace) -> Self {
        let mut selection = Selection::new(root);
        for ((namespace, _), facts) in all {
            selection.add(namespace, &facts.selects, &facts.authentication);
        }
        Self { all: selection, ..Self::default() }
    }

    /// Whether one of `namespace` is about the pods of Services.
    pub(super) fn speak_of_services(&self, namespace: &str) -> bool {
        self.all.speaks_of_services(namespace)
    }

    /// What is in force for a workload of `namespace` with `labels`, for which `former` was. Most have it
    /// in common with others, and with what they had before.
    pub(super) fn of(
        &mut self,
        namespace: &Arc<str>,
        labels: &BTreeMap<String, String>,
        services: &Table<ServiceFacts>,
        former: &Arc<Authentication>,
    ) -> Arc<Authentication> {
        let selecting = self.all.of(namespace, labels, services);
        if selecting.is_empty() {
            return Authentication::none();
        }
        let key = selecting.iter().map(|one| Arc::as_ptr(one).addr()).collect();
        let known =
            self.known.entry(key).or_insert_with(|| match are_same(former.all(), &selecting) {
                true => former.clone(),
                false => Arc::new(Authentication::new(selecting)),
            });
        known.clone()
    }
}

#[cfg(test)]
mod tests;
