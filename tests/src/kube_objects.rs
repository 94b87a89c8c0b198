//! The lab's pods and services as objects of an API server.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{KubeApi, KubeKind, Pod, mesh::Service};

/// A pod as the API server tells it, with fields of which an agent needs none.
#[derive(Clone, Debug)]
pub struct KubePod(pub Value);

impl KubePod {
    /// The pod with the labels `labels`.
    pub fn new(pod: &Pod, labels: &BTreeMap<&str, &str>) -> Self {
        let ips: Vec<_> = pod.ips().iter().map(|ip| json!({"ip": ip})).collect();
        Self(json!({
            "metadata": {
                "name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid(),
                "labels": labels, "creationTimestamp": "2026-01-02T03:04:05Z",
                "managedFields": [{"manager": "kubelet", "operation": "Update",
                    "apiVersion": "v1", "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:status": {"f:podIPs": {}}}}],
            },
            "spec": {
                "nodeName": pod.node(), "serviceAccountName": pod.service_account(),
                "containers": [{"name": pod.app(), "image": "app:1",
                    "env": [{"name": "A", "value": "b"}]}],
            },
            "status": {
                "phase": "Running", "podIP": pod.ip(), "podIPs": ips,
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": pod.app(), "image": "app:1", "imageID": "",
                    "ready": true, "restartCount": 0,
                    "state": {"running": {"startedAt": "2026-01-02T03:04:06Z"}}}],
            },
        }))
    }
}

impl KubeApi {
    /// Creates a pod, or changes it back to what it is.
    pub fn pod(&self, pod: &Pod) {
        self.pod_with(pod, &pod.labels());
    }

    /// Creates a pod with `labels` in place of its own, or changes them.
    pub fn pod_with(&self, pod: &Pod, labels: &BTreeMap<&str, &str>) {
        self.apply(KubeKind::Pod, KubePod::new(pod, labels).0);
    }

    /// Deletes a pod.
    pub fn delete_pod(&self, pod: &Pod) {
        self.delete(KubeKind::Pod, pod.namespace(), pod.name());
    }

    /// Creates a namespace, or changes its labels.
    pub fn namespace(&self, name: &str, labels: &BTreeMap<&str, &str>) {
        let metadata = json!({"name": name, "labels": labels});
        self.apply(KubeKind::Namespace, json!({"metadata": metadata}));
    }

    /// Creates a service and its endpoints.
    pub fn service(&self, service: &Service<'_>) {
        let Service { name, namespace, ips, ports, endpoints } = service;
        let listed = ports
            .iter()
            .map(|port| json!({"name": port.name, "port": port.port, "targetPort": port.target}));
        self.apply(
            KubeKind::Service,
            json!({
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterIP": ips.first(), "clusterIPs": ips,
                    "ports": listed.collect::<Vec<_>>()},
            }),
        );
        let targets: Vec<_> =
            ports.iter().map(|port| json!({"name": port.name, "port": port.target})).collect();
        for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
            let addresses = endpoints.iter().flat_map(|pod| pod.ips().map(|ip| (pod, ip)));
            let endpoints = addresses.filter(|(_, ip)| ip.is_ipv4() == is_v4).map(|(pod, ip)| {
                json!({"addresses": [ip], "conditions": {"ready": true},
                    "targetRef": {"kind": "Pod", "name": pod.name(), "namespace": pod.namespace()}})
            });
            self.apply(
                KubeKind::EndpointSlice,
                json!({
                    "metadata": {"name": format!("{name}-{}", family.to_lowercase()),
                        "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
                    "addressType": family, "ports": targets,
                    "endpoints": endpoints.collect::<Vec<_>>(),
                }),
            );
        }
    }
}
