//! The rules of AuthorizationPolicies: what in them matches nobody, or more than is meant.

mod ports;
mod values;

pub(super) use ports::wrong as wrong_port;

use super::{
    read::{Read, Runner},
    walk::At,
};
use crate::{
    config::{
        authorization_policy::AuthorizationPolicy, error::Problem, object::Object, yaml::Step,
    },
    policy::Action,
};

/// A policy, and whom it speaks for.
pub(super) struct Checked<'a, 'r> {
    pub(super) read: &'a Read<'r>,
    pub(super) policy: &'a Object<AuthorizationPolicy>,
    pub(super) action: Action,
    pub(super) selected: &'a [&'a Runner<'r>],
}

/// A value of a list, and the way to it.
type Listed<'a> = (Vec<Step<'a>>, &'a str);

/// What is wrong with a value, and what to do about it.
pub(super) type Wrong = (String, Option<String>);

pub(super) fn check(checked: &Checked<'_, '_>, warnings: &mut Vec<Problem>) {
    let Some(node) = checked.policy.node() else { return };
    let Some(spec) = At::root(node).field("spec") else { return };
    for rule in spec.each("rules") {
        let mut add = |values: Vec<Listed<'_>>, judge: &dyn Fn(&str) -> Option<Wrong>| {
            warnings.extend(values.into_iter().filter_map(|(steps, text)| {
                let (what, hint) = judge(text)?;
                let problem = checked.policy.problem(&steps, what);
                Some(match hint {
                    Some(hint) => problem.hint(hint),
                    None => problem,
                })
            }));
        };
        let (read, namespace) = (checked.read, checked.policy.namespace());
        add(in_sources(&rule, "principals", Some("source.principal")), &|text| {
            values::principal(read, text)
        });
        add(in_sources(&rule, "serviceAccounts", Some("source.serviceAccount")), &|text| {
            values::account(read, namespace, text)
        });
        add(in_sources(&rule, "namespaces", Some("source.namespace")), &|text| {
            values::namespace(read, text)
        });
        add(in_operations(&rule, "methods", None), &values::method);
        add(in_operations(&rule, "paths", None), &values::path);
        add(in_operations(&rule, "hosts", None), &|text| values::host(checked, text));
        add(in_operations(&rule, "ports", Some("destination.port")), &|text| {
            ports::wrong(read, checked.selected, text)
        });
        warnings.extend(ports::not_http(checked, &rule));
    }
}

/// `principals` and `notPrincipals`, as they are written.
fn both(field: &'static str) -> [&'static str; 2] {
    const NOTS: [(&str, &str); 8] = [
        ("principals", "notPrincipals"),
        ("serviceAccounts", "notServiceAccounts"),
        ("namespaces", "notNamespaces"),
        ("requestPrincipals", "notRequestPrincipals"),
        ("methods", "notMethods"),
        ("paths", "notPaths"),
        ("hosts", "notHosts"),
        ("ports", "notPorts"),
    ];
    let not = NOTS.iter().find(|(of, _)| *of == field).map_or(field, |(_, not)| not);
    [field, not]
}

/// The values of `field` of the rule's sources, and of the condition called `key`.
fn in_sources<'a>(rule: &At<'a>, field: &'static str, key: Option<&str>) -> Vec<Listed<'a>> {
    let sources = rule.each("from").filter_map(|from| from.field("source"));
    let listed = sources.flat_map(|source| both(field).map(|field| source.texts(field)));
    listed.flatten().chain(in_conditions(rule, key)).collect()
}

/// The same of its operations.
fn in_operations<'a>(rule: &At<'a>, field: &'static str, key: Option<&str>) -> Vec<Listed<'a>> {
    let operations = rule.each("to").filter_map(|to| to.field("operation"));
    let listed = operations.flat_map(|operation| both(field).map(|field| operation.texts(field)));
    listed.flatten().chain(in_conditions(rule, key)).collect()
}

fn in_conditions<'a>(rule: &At<'a>, key: Option<&str>) -> Vec<Listed<'a>> {
    let conditions = rule.each("when").filter(|when| when.node.text("key") == key);
    let conditions = conditions.filter(|_| key.is_some());
    conditions
        .flat_map(|when| ["values", "notValues"].map(|list| when.texts(list)))
        .flatten()
        .collect()
}
