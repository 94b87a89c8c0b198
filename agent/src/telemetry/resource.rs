//! The Resource of a workload: what every span on its behalf has in common.
//!
//! The rules are those of OpenTelemetry's Kubernetes conventions, so that spans of the agent
//! and of the application itself land under one service.

use std::{borrow::Cow, collections::BTreeMap};

use super::{semconv as key, wire};
use crate::mesh::Workload;

/// The `resource` field of a `ResourceSpans`. `defaults` are what OTEL_RESOURCE_ATTRIBUTES says
/// of everything on this node; what names one service is the agent's own and left out.
pub(super) fn encode(workload: &Workload, defaults: &[(String, String)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    wire::nested(&mut out, 1, |out| {
        let mut attributes = wire::Attributes::new(out, 1);
        for (key, value) in attributes_of(workload, defaults) {
            attributes.text(key, &value);
        }
    });
    out
}

fn attributes_of<'a>(
    workload: &'a Workload,
    defaults: &'a [(String, String)],
) -> BTreeMap<&'a str, Cow<'a, str>> {
    let mut attributes: BTreeMap<&str, Cow<'_, str>> = defaults
        .iter()
        .filter(|(key, _)| !key.starts_with("service."))
        .map(|(key, value)| (key.as_str(), Cow::from(value)))
        .collect();
    let Workload { uid, name, namespace, owner, node, labels, resource_attributes, .. } = workload;
    let mut set = |key, value: Cow<'a, str>| {
        if !value.is_empty() {
            attributes.insert(key, value);
        }
    };
    set(key::SERVICE_NAME, service_name(workload).into());
    set(key::SERVICE_NAMESPACE, Cow::Borrowed(namespace));
    set(key::SERVICE_INSTANCE_ID, format!("{namespace}.{name}").into());
    if let Some(version) = labels.get("app.kubernetes.io/version") {
        set(key::SERVICE_VERSION, version.into());
    }
    set(key::K8S_NAMESPACE_NAME, Cow::Borrowed(namespace));
    set(key::K8S_POD_NAME, Cow::Borrowed(name));
    set(key::K8S_POD_UID, uid.as_str().into());
    set(key::K8S_NODE_NAME, Cow::Borrowed(node));
    let owner_key = match owner.kind.as_str() {
        "Deployment" => Some(key::K8S_DEPLOYMENT_NAME),
        "ReplicaSet" => Some(key::K8S_REPLICASET_NAME),
        "StatefulSet" => Some(key::K8S_STATEFULSET_NAME),
        "DaemonSet" => Some(key::K8S_DAEMONSET_NAME),
        "CronJob" => Some(key::K8S_CRONJOB_NAME),
        "Job" => Some(key::K8S_JOB_NAME),
        _ => None,
    };
    if let Some(key) = owner_key {
        set(key, owner.name.as_str().into());
    }
    set(key::TELEMETRY_SDK_NAME, "sluice".into());
    set(key::TELEMETRY_SDK_LANGUAGE, "rust".into());
    set(key::TELEMETRY_SDK_VERSION, key::SCOPE_VERSION.into());
    // The pod's owner has the last word.
    for (key, value) in resource_attributes {
        set(key, value.into());
    }
    attributes
}

/// Labels, then the controller, then the pod; the annotation that precedes them all is one of
/// the workload's own attributes.
fn service_name(workload: &Workload) -> &str {
    ["app.kubernetes.io/instance", "app.kubernetes.io/name"]
        .iter()
        .find_map(|label| workload.labels.get(*label))
        .or(Some(&workload.owner.name))
        .filter(|name| !name.is_empty())
        .map_or(&*workload.name, String::as_str)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
    use prost::Message;

    use super::*;
    use crate::telemetry::testing::{attributes, workload};

    fn decoded(workload: &Workload, defaults: &[(String, String)]) -> BTreeMap<String, String> {
        let spans = ResourceSpans::decode(&*encode(workload, defaults)).unwrap();
        attributes(&spans.resource.unwrap().attributes)
    }

    #[test]
    fn a_pod_is_described_as_the_kubernetes_conventions_say() {
        let read = decoded(&workload("order"), &[]);
        for (key, value) in [
            ("service.name", "order"),
            ("service.namespace", "shop"),
            ("service.instance.id", "shop.order-7d4b9"),
            ("k8s.namespace.name", "shop"),
            ("k8s.pod.name", "order-7d4b9"),
            ("k8s.pod.uid", "uid-order"),
            ("k8s.node.name", "node-a"),
            ("k8s.deployment.name", "order"),
            ("telemetry.sdk.name", "sluice"),
            ("telemetry.sdk.language", "rust"),
        ] {
            assert_eq!(read.get(key).map(String::as_str), Some(value), "{key}");
        }
        assert!(!read.contains_key("service.version"));
    }

    #[test]
    fn the_service_name_is_annotation_then_instance_then_name_then_owner() {
        let mut pod = workload("order");
        let name = |pod: &Workload| decoded(pod, &[])["service.name"].clone();
        Arc::make_mut(&mut pod.labels).insert("app.kubernetes.io/name".into(), "by-name".into());
        assert_eq!(name(&pod), "by-name");
        Arc::make_mut(&mut pod.labels)
            .insert("app.kubernetes.io/instance".into(), "by-instance".into());
        assert_eq!(name(&pod), "by-instance");
        pod.resource_attributes.insert("service.name".into(), "by-annotation".into());
        assert_eq!(name(&pod), "by-annotation");
    }

    #[test]
    fn a_pod_without_owner_is_its_own_service() {
        let mut pod = workload("order");
        Arc::make_mut(&mut pod.owner).name.clear();
        assert_eq!(decoded(&pod, &[])["service.name"], "order-7d4b9");
    }

    #[test]
    fn annotations_override_and_node_wide_attributes_fill_in() {
        let mut pod = workload("order");
        Arc::make_mut(&mut pod.labels).insert("app.kubernetes.io/version".into(), "1.2".into());
        pod.resource_attributes.insert("deployment.environment.name".into(), "staging".into());
        let defaults = [
            ("service.name".to_owned(), "sluice".to_owned()),
            ("deployment.environment.name".to_owned(), "prod".to_owned()),
            ("k8s.cluster.name".to_owned(), "east".to_owned()),
        ];
        let read = decoded(&pod, &defaults);
        assert_eq!(read["service.name"], "order");
        assert_eq!(read["service.version"], "1.2");
        assert_eq!(read["deployment.environment.name"], "staging");
        assert_eq!(read["k8s.cluster.name"], "east");
    }
}
