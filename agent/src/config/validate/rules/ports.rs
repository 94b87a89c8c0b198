//! Ports that nobody listens on, and ports that do not speak what is asked for.

use super::{Checked, Wrong, in_operations};
use crate::{
    config::{
        error::Problem,
        validate::{
            read::{Read, Runner, Served},
            walk::At,
        },
        yaml::{Step, Value},
    },
    mesh::AppProtocol,
    policy::Action,
};

/// The complaint about a port that none of the `selected` pods has.
pub(in crate::config::validate) fn wrong(
    read: &Read<'_>,
    selected: &[&Runner<'_>],
    text: &str,
) -> Option<Wrong> {
    let port: u16 = text.parse().ok()?;
    let served: Vec<_> = selected.iter().flat_map(|runner| read.served(runner)).collect();
    let declared = |runner: &&&Runner<'_>| runner.ports.iter().any(|(_, number)| *number == port);
    if selected.iter().any(|runner| declared(&runner))
        || served.iter().any(|served| served.target == port)
    {
        return None;
    }
    let of_service = served.iter().find(|served| served.port == port);
    if let Some(Served { service: (namespace, name), target, .. }) = of_service {
        let what = format!(
            "`{port}` is a port of Service {namespace}/{name}, which leads to port {target} of its \
             pods: that is the one meant here"
        );
        return Some((what, Some(format!("`{target}`"))));
    }
    // Whoever declares none may have any.
    if selected.is_empty() || selected.iter().any(|runner| runner.ports.is_empty()) {
        return None;
    }
    let mut ports: Vec<_> =
        selected.iter().flat_map(|runner| &runner.ports).map(|(_, number)| *number).collect();
    ports.sort_unstable();
    ports.dedup();
    let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
    let what = format!("nobody listens on `{port}`, as far as the pods' containers say");
    Some((what, Some(format!("they have {}", ports.join(", ")))))
}

/// The complaint about a rule that asks for what only HTTP has, where that is not spoken.
pub(super) fn not_http(checked: &Checked<'_, '_>, rule: &At<'_>) -> Option<Problem> {
    let steps = asked_of_http(rule)?;
    let served: Vec<_> =
        checked.selected.iter().flat_map(|runner| checked.read.served(runner)).collect();
    let named: Vec<u16> = in_operations(rule, "ports", Some("destination.port"))
        .iter()
        .filter_map(|(steps, text)| {
            let is_not =
                |step: &Step<'_>| matches!(step, Step::Field(field) if field.starts_with("not"));
            (!steps.iter().any(is_not)).then(|| text.parse().ok())?
        })
        .collect();
    let meant = || served.iter().filter(|it| named.is_empty() || named.contains(&it.target));
    let opaque = meant().find(|it| it.protocol == AppProtocol::Opaque)?;
    let all_are = meant().all(|it| it.protocol == AppProtocol::Opaque);
    let Served { service: (namespace, name), port, target, .. } = opaque;
    let comes_to = match checked.action {
        Action::Allow if all_are => "the rule lets nobody in there",
        // It is about the other ports.
        Action::Allow => return None,
        Action::Deny => "the rule denies all connections there that the rest of it is about",
        Action::Audit | Action::Custom => "the rule is about all connections there",
    };
    let what = format!(
        "asks for what only HTTP has, but Service {namespace}/{name} says of its port {port}, the pods' \
         {target}, that it is not HTTP: {comes_to}"
    );
    let hint = "name the Service's port http-…, or set its appProtocol to http; `ports` names those that \
                are meant";
    Some(checked.policy.problem(&steps, what).hint(hint))
}

/// The way to the first thing that only HTTP has.
fn asked_of_http<'a>(rule: &At<'a>) -> Option<Vec<Step<'a>>> {
    const OPERATION: [&str; 6] =
        ["methods", "notMethods", "paths", "notPaths", "hosts", "notHosts"];
    let there = |at: &At<'a>, field: &'static str| {
        at.field(field).filter(|list| matches!(list.node.value, Value::Sequence(_)))
    };
    let mut operations = rule.each("to").filter_map(|to| to.field("operation"));
    let of_operation = operations
        .find_map(|operation| OPERATION.into_iter().find_map(|field| there(&operation, field)));
    let mut conditions = rule.each("when");
    let of_condition = || {
        conditions.find_map(|when| {
            let key = when.node.text("key")?;
            key.starts_with("request.").then(|| when.field("key"))?
        })
    };
    of_operation.or_else(of_condition).map(|at| at.steps)
}
