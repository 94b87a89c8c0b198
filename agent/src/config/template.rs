//! The pods that controllers make: of each template one, as an object of its own.
//!
//! Nothing of a controller is obeyed or checked here. What is wrong with it is for the API server to say.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use super::{
    foreign::Foreign,
    object::{Object, Text},
    yaml::{Node, Step, Value},
};

/// Where each kind has its template.
const TEMPLATES: [(&str, &[&str]); 7] = [
    ("CronJob", &["spec", "jobTemplate", "spec", "template"]),
    ("DaemonSet", &["spec", "template"]),
    ("Deployment", &["spec", "template"]),
    ("Job", &["spec", "template"]),
    ("ReplicaSet", &["spec", "template"]),
    ("ReplicationController", &["spec", "template"]),
    ("StatefulSet", &["spec", "template"]),
];

/// A pod as a controller makes it, under the controller's name and at its place.
#[derive(Debug)]
pub(super) struct Template {
    /// `Deployment shop/order`.
    pub(super) what: String,
    pub(super) pod: Object<Pod>,
}

/// Whether objects of `kind` make pods.
pub(super) fn has_template(kind: &str) -> bool {
    TEMPLATES.iter().any(|(known, _)| *known == kind)
}

impl Template {
    /// That of an object, if its kind has one.
    pub(super) fn of(foreign: &Foreign) -> Option<Self> {
        let Text { node, file } = &foreign.text;
        let kind = node.text("kind")?;
        let (_, steps) = TEMPLATES.iter().find(|(known, _)| *known == kind)?;
        let steps: Vec<Step<'_>> = steps.iter().map(|step| Step::Field(step)).collect();
        let template = node.at(&steps)?;
        let (namespace, name) = foreign.name();
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                labels: Some(texts(template.at(&["metadata".into(), "labels".into()]))),
                annotations: Some(texts(template.at(&["metadata".into(), "annotations".into()]))),
                owner_references: Some(vec![OwnerReference {
                    kind: kind.to_owned(),
                    name: name.to_owned(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(spec(template.field("spec"))),
            status: None,
        };
        // At the template, where its fields have the paths that they have in a pod.
        let text = Text { node: template.clone(), file: file.clone() };
        let what = format!("{kind} {namespace}/{name}");
        Some(Self { what, pod: Object::of_file(pod, text) })
    }
}

fn spec(spec: Option<&Node>) -> PodSpec {
    let text = |field| spec.and_then(|spec| spec.text(field)).map(str::to_owned);
    let host_network = spec.and_then(|spec| spec.field("hostNetwork"));
    let containers = spec.and_then(|spec| spec.field("containers"));
    PodSpec {
        service_account_name: text("serviceAccountName").or_else(|| text("serviceAccount")),
        host_network: host_network.map(|node| matches!(node.value, Value::Bool(true))),
        containers: containers.into_iter().flat_map(Node::items).map(container).collect(),
        ..PodSpec::default()
    }
}

fn container(node: &Node) -> Container {
    let ports = node.field("ports").into_iter().flat_map(Node::items);
    let ports = ports.filter_map(|port| {
        let Value::Integer(number) = port.field("containerPort")?.value else { return None };
        Some(ContainerPort {
            container_port: i32::try_from(number).ok()?,
            name: port.text("name").map(str::to_owned),
            protocol: port.text("protocol").map(str::to_owned),
            ..ContainerPort::default()
        })
    });
    Container {
        name: node.text("name").unwrap_or_default().to_owned(),
        ports: Some(ports.collect()),
        ..Container::default()
    }
}

fn texts(mapping: Option<&Node>) -> BTreeMap<String, String> {
    let entries = mapping.into_iter().flat_map(Node::entries);
    entries
        .filter_map(|entry| Some((entry.key.clone(), entry.value.as_text()?.to_owned())))
        .collect()
}
