//! What is of kinds that the agent does not obey.

use std::collections::BTreeMap;

use super::{read::Read, walk::At};
use crate::config::{
    error::{Place, Problem, nearest},
    facts::match_labels,
    foreign::Foreign,
    object::dotted,
    yaml::Step,
};

/// The fields of a kind's spec, and where fields are meant to be that are looked for there.
struct Fields {
    kind: &'static str,
    known: &'static [&'static str],
    elsewhere: &'static [(&'static str, &'static [&'static str])],
}

/// Of the two kinds that people write by hand most.
const FIELDS: [Fields; 2] = [
    Fields {
        kind: "VirtualService",
        known: &["hosts", "gateways", "http", "tls", "tcp", "exportTo"],
        elsewhere: &[(
            "spec.http[]",
            &[
                "match",
                "redirect",
                "directResponse",
                "delegate",
                "rewrite",
                "timeout",
                "retries",
                "fault",
                "mirror",
                "mirrors",
                "mirrorPercentage",
                "corsPolicy",
                "headers",
                "route",
            ],
        )],
    },
    Fields {
        kind: "DestinationRule",
        known: &["host", "trafficPolicy", "subsets", "exportTo", "workloadSelector"],
        elsewhere: &[(
            "spec.trafficPolicy",
            &["loadBalancer", "connectionPool", "outlierDetection", "tls", "portLevelSettings"],
        )],
    },
];

pub(super) fn check(read: &Read<'_>, strict: bool, warnings: &mut Vec<Problem>) {
    let foreign = &read.manifests.foreign;
    for object in foreign.iter().filter(|foreign| foreign.is_of_meshes()) {
        let (namespace, name) = object.name();
        if !strict {
            let what = format!(
                "{} {namespace}/{name} is not obeyed by this version: nothing of it is in force",
                object.kind()
            );
            warnings.push(object.text.problem(&["kind".into()], what));
        }
        misplaced(object, warnings);
        if object.kind() == "DestinationRule" {
            subsets(read, object, warnings);
        }
    }
}

/// Complains about fields of the spec that it does not have.
fn misplaced(object: &Foreign, warnings: &mut Vec<Problem>) {
    let Some(fields) = FIELDS.iter().find(|fields| fields.kind == object.kind()) else { return };
    let spec = object.text.node.field("spec").into_iter().flat_map(|spec| spec.entries());
    for entry in spec.filter(|entry| !fields.known.contains(&entry.key.as_str())) {
        let key = entry.key.as_str();
        let place = Place::new(&object.text.file, Some(entry.position));
        let what = format!("spec.{key} is not a field of {}, and sets nothing", fields.kind);
        let there = fields.elsewhere.iter().find(|(_, known)| known.contains(&key));
        let problem = Problem::new(place, what);
        warnings.push(match (there, nearest(key, fields.known.iter().copied())) {
            (Some((path, _)), _) => problem.hint(format!("did you mean `{path}.{key}`?")),
            (None, Some(near)) => problem.hint(format!("did you mean `{near}`?")),
            (None, None) => problem.hint(format!("the fields are {}", fields.known.join(", "))),
        });
    }
}

/// Complains about subsets of a Service that no pod is of.
fn subsets(read: &Read<'_>, object: &Foreign, warnings: &mut Vec<Problem>) {
    let Some(spec) = At::root(&object.text.node).field("spec") else { return };
    let host = spec.node.text("host").unwrap_or_default();
    let mut parts = host.split('.');
    let (name, namespace) = (parts.next().unwrap_or_default(), parts.next());
    let namespace = namespace.unwrap_or(object.name().0);
    let Some(service) = read.service(namespace, name) else { return };
    let behind = |labels: &BTreeMap<String, String>| {
        let all = read.runners.iter().filter(|runner| runner.namespace == namespace);
        let mut all = all.filter(|runner| service.selects(&runner.labels));
        all.any(|runner| match_labels(labels, &runner.labels))
    };
    // Without any pod there is nothing that they could be held against.
    if !behind(&BTreeMap::new()) {
        return;
    }
    for subset in spec.each("subsets") {
        let labels = subset.field("labels");
        let labels = labels
            .iter()
            .flat_map(|labels| labels.node.entries())
            .filter_map(|entry| Some((entry.key.clone(), entry.value.as_text()?.to_owned())));
        let labels = labels.collect();
        if !behind(&labels) {
            let wanted: Vec<_> =
                labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
            let steps: Vec<Step<'_>> = [&subset.steps[..], &["labels".into()]].concat();
            let what = format!(
                "{} `{}`: no pod of Service {namespace}/{name} that was read has these",
                dotted(&steps),
                wanted.join(", ")
            );
            warnings.push(object.text.problem(&steps, what));
        }
    }
}
