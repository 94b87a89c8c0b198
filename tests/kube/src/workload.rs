//! Objects that tests make: Deployments of the sample application, and Services in front.

use serde_json::{Value, json};

use crate::{NodeName, image};

/// A Deployment of the sample application, with one replica unless told otherwise, its account and
/// its Service, all of one name.
#[derive(Clone, Debug)]
pub struct Workload {
    name: String,
    arguments: Vec<String>,
    port: u16,
    replicas: u32,
    node: Option<NodeName>,
    labels: Value,
    pod: Value,
    container: Value,
}

impl Workload {
    /// `arguments` are those of the sample's program, which listens on `port`.
    pub fn new(name: &str, arguments: &[&str], port: u16) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let [labels, pod, container] = [(); 3].map(|()| json!({}));
        let name = name.to_owned();
        Self { name, arguments, port, replicas: 1, node: None, labels, pod, container }
    }

    /// So many, evenly on all nodes.
    #[must_use]
    pub fn spread(mut self, replicas: u32) -> Self {
        self.pod["topologySpreadConstraints"] = json!([{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": self.name}},
        }]);
        Self { replicas, ..self }
    }

    /// On this node alone.
    #[must_use]
    pub fn on(self, node: NodeName) -> Self {
        Self { node: Some(node), ..self }
    }

    /// Its pods have these labels too.
    #[must_use]
    pub fn labels(self, labels: Value) -> Self {
        Self { labels, ..self }
    }

    /// More of the pods' `spec`.
    #[must_use]
    pub fn pod(self, pod: Value) -> Self {
        Self { pod, ..self }
    }

    /// More of the container.
    #[must_use]
    pub fn container(self, container: Value) -> Self {
        Self { container, ..self }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its containers have these environment variables.
    #[must_use]
    pub fn env(mut self, variables: &Value) -> Self {
        self.container["env"] = variables.clone();
        self
    }

    /// The objects.
    pub fn objects(self) -> [Value; 3] {
        let Self { name, arguments, port, replicas, node, mut labels, pod, container } = self;
        let selector = json!({"app": name});
        merge(&mut labels, selector.clone());
        let mut spec = json!({
            "serviceAccountName": name,
            "terminationGracePeriodSeconds": 1,
            "enableServiceLinks": false,
            "containers": [{
                "name": "sample",
                "image": image("sluice-sample"),
                "imagePullPolicy": "Never",
                "args": arguments,
                "ports": [{"name": "app", "containerPort": port}],
            }],
        });
        if let Some(node) = node {
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": node.to_string()});
        }
        merge(&mut spec, pod);
        merge(&mut spec["containers"][0], container);
        [
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}),
            json!({
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": name},
                "spec": {
                    "replicas": replicas,
                    "selector": {"matchLabels": selector},
                    "template": {"metadata": {"labels": labels}, "spec": spec},
                },
            }),
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name},
                "spec": {"selector": selector, "ports": [{"name": "app", "port": port}]},
            }),
        ]
    }
}

/// Adds the fields of `more`, which win.
fn merge(object: &mut Value, more: Value) {
    for (field, value) in more.as_object().into_iter().flatten() {
        object[field] = value.clone();
    }
}
