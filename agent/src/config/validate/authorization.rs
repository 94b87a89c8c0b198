//! Whom AuthorizationPolicies speak for, and what they come to as a whole.

use std::collections::BTreeMap;

use super::{
    read::{Read, Runner},
    rules,
    walk::At,
};
use crate::{
    config::{
        authorization_policy::AuthorizationPolicy,
        error::{Problem, nearest},
        facts::Selects,
        object::Object,
        yaml::Step,
    },
    policy::{Action, Rule},
};

pub(super) fn check(read: &Read<'_>, warnings: &mut Vec<Problem>) {
    for policy in &read.manifests.authorization_policies {
        let key = (policy.namespace().into(), policy.name().into());
        // What cannot be obeyed is said already; what is for gateways is for others to judge.
        let Some(facts) = read.facts.authorization_policies.get(&key) else { continue };
        let selected = match &facts.selects {
            Selects::Labels(labels) => {
                let selected = read.selected(policy.namespace(), labels);
                if selected.is_empty() {
                    warnings.extend(selects_nobody(read, policy, labels));
                }
                selected
            }
            Selects::Services(names) => {
                let behind = |name: &str| {
                    let service = read.service(policy.namespace(), name)?;
                    let all = read.runners.iter();
                    let here = all.filter(|runner| runner.namespace == policy.namespace());
                    Some(here.filter(|runner| service.selects(&runner.labels)).collect::<Vec<_>>())
                };
                warnings.extend(names.iter().filter_map(|name| lacks_service(read, policy, name)));
                names.iter().filter_map(|name| behind(name)).flatten().collect()
            }
        };
        warnings.extend(outside(policy, &selected));
        let spec = facts.policy.spec();
        let action = spec.action;
        warnings.extend(as_a_whole(policy, action, &spec.rules));
        rules::check(&rules::Checked { read, policy, action, selected: &selected }, warnings);
    }
}

/// The complaint about a selector that selects nothing of what was read.
pub(super) fn selects_nobody<T>(
    read: &Read<'_>,
    policy: &Object<T>,
    labels: &BTreeMap<String, String>,
) -> Option<Problem>
where
    T: k8s_openapi::Metadata<Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>,
{
    let namespace = policy.namespace();
    // Without any pod there is nothing that it could be held against.
    let anybody = read.runners.first()?;
    if labels.is_empty() {
        let what = format!("speaks for namespace {namespace}, of which no pod was read");
        let is = read.settings.root_namespace.as_str() == namespace;
        let hint = format!("{} is in namespace {}", anybody.what, anybody.namespace);
        return (!is).then(|| policy.problem(&["metadata".into()], what).hint(hint));
    }
    let steps: [Step<'_>; 3] = ["spec".into(), "selector".into(), "matchLabels".into()];
    let wanted: Vec<_> = labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    let what = format!("`{}` selects no pod that was read", wanted.join(", "));
    let problem = policy.problem(&steps, what);
    let elsewhere = read.runners.iter().find(|runner| labels.iter().all(|label| runner.has(label)));
    if let Some(Runner { what, namespace: other, .. }) = elsewhere {
        return Some(problem.hint(format!(
            "{what} has these labels, in namespace {other}; a policy speaks for its own, {namespace}"
        )));
    }
    for (key, value) in labels {
        let runners = || read.in_scope(namespace);
        let values = runners().filter_map(|runner| runner.labels.get(key).map(String::as_str));
        if let Some(meant) = nearest(value, values).filter(|meant| meant != value) {
            return Some(problem.hint(format!("did you mean `{key}: {meant}`?")));
        }
        let keys = runners().flat_map(|runner| runner.labels.keys().map(String::as_str));
        if let Some(meant) = nearest(key, keys).filter(|meant| meant != key) {
            return Some(problem.hint(format!("did you mean `{meant}`?")));
        }
    }
    Some(match read.in_scope(namespace).next() {
        Some(runner) => problem.hint(format!("{} has {}", runner.what, runner.labels_in_words())),
        None => problem.hint(format!("no pod of namespace {namespace} was read")),
    })
}

impl Runner<'_> {
    fn has(&self, (key, value): (&String, &String)) -> bool {
        self.labels.get(key) == Some(value)
    }
}

/// The complaint about a Service that a policy targets, and that leads to no pods.
fn lacks_service(
    read: &Read<'_>,
    policy: &Object<AuthorizationPolicy>,
    name: &str,
) -> Option<Problem> {
    let namespace = policy.namespace();
    let steps = match policy.node()?.at(&["spec".into(), "targetRef".into()]) {
        Some(_) => ["spec".into(), "targetRef".into()],
        None => ["spec".into(), "targetRefs".into()],
    };
    match read.service(namespace, name) {
        // Without any Service, there is nothing that it could be held against.
        None if read.facts.services.is_empty() => None,
        None => {
            let what = format!("no Service {namespace}/{name} was read, so that it selects nobody");
            let there = read.facts.services.keys().filter(|(of, _)| **of == *namespace);
            let near = nearest(name, there.map(|(_, name)| &**name));
            let problem = policy.problem(&steps, what);
            Some(match near {
                Some(near) => problem.hint(format!("did you mean `{near}`?")),
                None => problem,
            })
        }
        Some(service) if service.selector.is_empty() => {
            let what = format!(
                "Service {namespace}/{name} has no selector, so that nobody says whose pods it has"
            );
            let hint = "spec.selector.matchLabels names pods by their labels";
            Some(policy.problem(&steps, what).hint(hint))
        }
        Some(_) => None,
    }
}

/// The complaint about a policy that nobody enforces.
fn outside(policy: &Object<AuthorizationPolicy>, selected: &[&Runner<'_>]) -> Option<Problem> {
    let first = selected.first()?;
    if !selected.iter().all(|runner| runner.meshed == Some(false)) {
        return None;
    }
    let what = format!(
        "is not enforced: {} is not in the mesh{}",
        first.what,
        if selected.len() > 1 { ", nor is any other pod that it selects" } else { "" }
    );
    let hint = "label istio.io/dataplane-mode: ambient, on the pods or on their namespace";
    Some(policy.problem(&["spec".into()], what).hint(hint))
}

/// The complaint about what a policy does or does not do to everybody.
fn as_a_whole(
    policy: &Object<AuthorizationPolicy>,
    action: Action,
    rules: &[Rule],
) -> Option<Problem> {
    let everything =
        |rule: &Rule| rule.from.is_empty() && rule.to.is_empty() && rule.when.is_empty();
    let spec: [Step<'_>; 1] = ["spec".into()];
    match action {
        Action::Allow if rules.is_empty() => {
            let what = "lets nobody in to the pods it selects: an ALLOW policy without rules";
            let hint = "`rules: [{}]` lets everybody in; without the policy everybody may come in \
                        whom no other keeps out";
            Some(policy.problem(&spec, what).hint(hint))
        }
        Action::Deny => match rules.iter().position(everything) {
            Some(at) => {
                let steps = [Step::Field("spec"), Step::Field("rules"), at.into()];
                let what = format!(
                    "is about everything: the policy, {}, lets nobody in to the pods it selects",
                    action.as_str()
                );
                let root = At::root(policy.node()?).field("spec")?.each("rules").nth(at)?;
                let hint = match root.node.entries() {
                    [] => "`from`, `to` and `when` say what it is about",
                    _ => "what is in it says nothing",
                };
                Some(policy.problem(&steps, what).hint(hint))
            }
            None if rules.is_empty() => {
                Some(policy.problem(&spec, "does nothing: it has no rules").hint("`rules: [{}]`"))
            }
            None => None,
        },
        Action::Audit | Action::Custom if rules.is_empty() => {
            Some(policy.problem(&spec, "does nothing: it has no rules").hint("`rules: [{}]`"))
        }
        Action::Allow | Action::Audit | Action::Custom => None,
    }
}
