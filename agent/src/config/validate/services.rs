//! Services that lead nowhere.

use super::read::{Read, Runner};
use crate::config::{
    error::{Problem, nearest},
    facts::Target,
    yaml::Step,
};

pub(super) fn check(read: &Read<'_>, warnings: &mut Vec<Problem>) {
    for object in &read.manifests.services {
        let (namespace, name) = (object.namespace(), object.name());
        let Some(service) = read.service(namespace, name) else { continue };
        let here: Vec<&Runner<'_>> =
            read.runners.iter().filter(|runner| runner.namespace == namespace).collect();
        if service.selector.is_empty() || here.is_empty() {
            continue;
        }
        let selected: Vec<_> =
            here.iter().filter(|runner| service.selects(&runner.labels)).collect();
        if selected.is_empty() {
            let what = "selects no pod that was read";
            let values = here.iter().flat_map(|runner| runner.labels.values().map(String::as_str));
            let values: Vec<_> = values.collect();
            let near = service.selector.iter().find_map(|(key, value)| {
                let near =
                    nearest(value, values.iter().copied()).filter(|near| *near != &**value)?;
                Some(format!("did you mean `{key}: {near}`?"))
            });
            let hint = near
                .unwrap_or_else(|| format!("{} has {}", here[0].what, here[0].labels_in_words()));
            warnings.push(object.problem(&["spec".into(), "selector".into()], what).hint(hint));
            continue;
        }
        // As they are written, of which those of TCP were read.
        let ports = object.body.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        for (index, written) in ports.enumerate() {
            let port = service.ports.iter().find(|port| {
                i32::from(port.number) == written.port
                    && port.name == written.name.as_deref().unwrap_or_default()
            });
            let Some(port) = port else { continue };
            let steps: [Step<'_>; 4] =
                ["spec".into(), "ports".into(), index.into(), "targetPort".into()];
            let names = || selected.iter().flat_map(|runner| &runner.ports);
            let is_there = match &port.target {
                Target::Name(name) => names().any(|(of, _)| of == name),
                // Whoever declares none may have any.
                Target::Number(number) => {
                    selected.iter().any(|runner| runner.ports.is_empty())
                        || names().any(|(_, of)| of == number)
                }
                Target::Nowhere => continue,
            };
            if is_there {
                continue;
            }
            let target = match &port.target {
                Target::Name(name) => name.clone(),
                Target::Number(number) => number.to_string(),
                Target::Nowhere => continue,
            };
            let what = format!("`{target}` is no port of {}, which it selects", selected[0].what);
            let has: Vec<_> = names()
                .map(|(name, number)| match name.is_empty() {
                    true => number.to_string(),
                    false => format!("{name} ({number})"),
                })
                .collect();
            let problem = object.problem(&steps, what);
            warnings.push(match has.is_empty() {
                true => problem.hint("its containers declare none"),
                false => problem.hint(format!("its containers have {}", has.join(", "))),
            });
        }
    }
}
