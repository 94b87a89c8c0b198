//! Objects beside one another: whatever one names, another one is.
//!
//! A schema looks at one object. A selector that selects nothing, a volume that is not there and
//! a role that nobody has are right for every schema.

use std::collections::BTreeSet;

use anyhow::Context;
use serde_json::Value;

/// The objects of one rendering.
pub(super) struct Objects(Vec<Value>);

/// A pod as a controller makes it.
#[derive(Clone, Copy)]
pub(super) struct PodTemplate<'a> {
    /// Its controller, for messages: `DaemonSet/sluice`.
    pub(super) of: &'a str,
    pub(super) controller: &'a Value,
    pub(super) labels: &'a Value,
    pub(super) annotations: &'a Value,
    pub(super) spec: &'a Value,
}

impl Objects {
    pub(super) fn read(yaml: &str) -> anyhow::Result<Self> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(yaml).context("what is rendered is no YAML")?;
        Ok(Self(documents.into_iter().filter(|document| !document.is_null()).collect()))
    }

    /// `apiVersion` and `kind` of each.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (String, String)> {
        self.0.iter().map(|object| (text(&object["apiVersion"]), text(&object["kind"])))
    }

    pub(super) fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = PodTemplate<'_>> {
        let controllers = self.0.iter().filter(|object| object["spec"]["template"].is_object());
        controllers.map(|controller| {
            let template = &controller["spec"]["template"];
            PodTemplate {
                of: controller["metadata"]["name"].as_str().unwrap_or_default(),
                controller,
                labels: &template["metadata"]["labels"],
                annotations: &template["metadata"]["annotations"],
                spec: &template["spec"],
            }
        })
    }

    /// Everything that leads nowhere.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = self.names();
        for pod in self.pods() {
            problems.extend(pod.problems(self).into_iter().map(|it| format!("{}: {it}", pod.of)));
        }
        for (kind, selector) in [
            ("Service", "/spec/selector"),
            ("NetworkPolicy", "/spec/podSelector/matchLabels"),
            ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ] {
            for object in self.of_kind(kind) {
                let selector = object.pointer(selector).unwrap_or(&Value::Null);
                let selected: Vec<_> =
                    self.pods().filter(|pod| matches(selector, pod.labels)).collect();
                if selected.is_empty() {
                    problems.push(format!("{} selects no pod", name(object)));
                }
                for port in named_ports(object) {
                    if !selected.iter().any(|pod| pod.has_port(port)) {
                        problems.push(format!("{}: no pod has the port {port}", name(object)));
                    }
                }
            }
        }
        for policy in self.of_kind("NetworkPolicy") {
            let peers = policy["spec"]["ingress"].as_array().into_iter().flatten();
            let peers = peers.filter_map(|rule| rule["from"].as_array()).flatten();
            for peer in peers.filter(|peer| peer["namespaceSelector"].is_null()) {
                let selector = &peer["podSelector"]["matchLabels"];
                if !self.pods().any(|pod| matches(selector, pod.labels)) {
                    problems.push(format!("{} lets pods in that nobody makes", name(policy)));
                }
            }
        }
        problems.extend(self.bindings());
        problems
    }

    /// Each object has a name and, unless it is the whole cluster's, a namespace, and no two have
    /// the same.
    fn names(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut problems = Vec::new();
        for object in &self.0 {
            let namespace = &object["metadata"]["namespace"];
            let kind = text(&object["kind"]);
            if kind.starts_with("Cluster") || kind == "Namespace" {
                if !namespace.is_null() {
                    problems.push(format!("{} is in a namespace", name(object)));
                }
            } else if namespace.is_null() {
                problems.push(format!("{} is in no namespace", name(object)));
            }
            if !seen.insert((kind, text(namespace), text(&object["metadata"]["name"]))) {
                problems.push(format!("{} is there twice", name(object)));
            }
        }
        problems
    }

    /// Bindings bind what is there, and every role is bound.
    fn bindings(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut bound = BTreeSet::new();
        for binding in
            ["RoleBinding", "ClusterRoleBinding"].into_iter().flat_map(|k| self.of_kind(k))
        {
            let role = &binding["roleRef"];
            let reference = (text(&role["kind"]), text(&role["name"]));
            let is_there =
                self.of_kind(&reference.0).any(|role| role["metadata"]["name"] == reference.1);
            if !is_there {
                problems.push(format!("{} binds a role that is not there", name(binding)));
            }
            for subject in binding["subjects"].as_array().into_iter().flatten() {
                if !self.has_account(&subject["namespace"], &subject["name"]) {
                    problems.push(format!("{} binds nobody that is there", name(binding)));
                }
            }
            bound.insert(reference);
        }
        for role in ["Role", "ClusterRole"].into_iter().flat_map(|kind| self.of_kind(kind)) {
            if !bound.contains(&(text(&role["kind"]), text(&role["metadata"]["name"]))) {
                problems.push(format!("{} is nobody's", name(role)));
            }
        }
        problems
    }

    fn has_account(&self, namespace: &Value, name: &Value) -> bool {
        self.of_kind("ServiceAccount").any(|account| {
            account["metadata"]["namespace"] == *namespace && account["metadata"]["name"] == *name
        })
    }
}

impl<'a> PodTemplate<'a> {
    /// Its containers, those that run first included.
    pub(super) fn containers(self) -> impl Iterator<Item = &'a Value> {
        let lists = [&self.spec["initContainers"], &self.spec["containers"]];
        lists.into_iter().filter_map(Value::as_array).flatten()
    }

    pub(super) fn volume(self, name: &Value) -> Option<&'a Value> {
        let volumes = self.spec["volumes"].as_array();
        volumes.into_iter().flatten().find(|volume| volume["name"] == *name)
    }

    fn has_port(self, name: &str) -> bool {
        self.containers().any(|container| has_port(container, name))
    }

    fn problems(self, objects: &Objects) -> Vec<String> {
        let mut problems = Vec::new();
        let selector = &self.controller["spec"]["selector"]["matchLabels"];
        if !matches(selector, self.labels) {
            problems.push("its selector does not select its own pods".into());
        }
        let namespace = &self.controller["metadata"]["namespace"];
        if !objects.has_account(namespace, &self.spec["serviceAccountName"]) {
            problems.push(format!("there is no account {}", self.spec["serviceAccountName"]));
        }
        let spreads = self.spec["topologySpreadConstraints"].as_array().into_iter().flatten();
        for spread in spreads {
            if !matches(&spread["labelSelector"]["matchLabels"], self.labels) {
                problems.push("it is spread by the labels of others".into());
            }
        }
        let mut used = BTreeSet::new();
        for container in self.containers() {
            let mut places = BTreeSet::new();
            for mount in container["volumeMounts"].as_array().into_iter().flatten() {
                used.insert(text(&mount["name"]));
                if self.volume(&mount["name"]).is_none() {
                    problems.push(format!("there is no volume {}", mount["name"]));
                }
                if !places.insert(text(&mount["mountPath"])) {
                    problems.push(format!("two volumes are at {}", mount["mountPath"]));
                }
            }
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                let port = container[probe]["httpGet"]["port"].as_str();
                if port.is_some_and(|port| !has_port(container, port)) {
                    problems.push(format!("its {probe} asks a port that it does not have"));
                }
            }
            let mut variables = BTreeSet::new();
            for variable in container["env"].as_array().into_iter().flatten() {
                if !variables.insert(text(&variable["name"])) {
                    problems.push(format!("{} is set twice", variable["name"]));
                }
            }
        }
        for volume in self.spec["volumes"].as_array().into_iter().flatten() {
            if !used.contains(&text(&volume["name"])) {
                problems.push(format!("nobody mounts {}", volume["name"]));
            }
        }
        problems
    }
}

/// Ports that a Service or a NetworkPolicy names by their names.
fn named_ports(object: &Value) -> impl Iterator<Item = &str> {
    let of_service = object["spec"]["ports"].as_array().into_iter().flatten();
    let of_policy = object["spec"]["ingress"].as_array().into_iter().flatten();
    let of_policy = of_policy.filter_map(|rule| rule["ports"].as_array()).flatten();
    let ports = of_service.map(|port| &port["targetPort"]);
    ports.chain(of_policy.map(|port| &port["port"])).filter_map(Value::as_str)
}

fn has_port(container: &Value, name: &str) -> bool {
    let ports = container["ports"].as_array();
    ports.into_iter().flatten().any(|port| port["name"] == name)
}

/// Whether `labels` hold all of `selector`, which is not empty.
fn matches(selector: &Value, labels: &Value) -> bool {
    let Some(selector) = selector.as_object().filter(|selector| !selector.is_empty()) else {
        return false;
    };
    selector.iter().all(|(label, value)| labels[label] == *value)
}

/// What an object is called in messages.
pub(super) fn name(object: &Value) -> String {
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// The text of `value`, or none.
pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = r"
apiVersion: v1
kind: ServiceAccount
metadata: {name: one, namespace: here}
---
apiVersion: v1
kind: Service
metadata: {name: one, namespace: here}
spec: {selector: {app: one}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: one, namespace: here}
spec:
  selector: {matchLabels: {app: one}}
  template:
    metadata: {labels: {app: one}}
    spec:
      serviceAccountName: one
      containers:
      - name: one
        ports: [{name: web, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: web}}
        volumeMounts: [{name: files, mountPath: /files}]
      volumes: [{name: files, emptyDir: {}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: one, namespace: here}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: one, namespace: here}
roleRef: {kind: Role, name: one}
subjects: [{kind: ServiceAccount, name: one, namespace: here}]
";

    #[test]
    fn objects_that_name_one_another_are_sound() {
        assert_eq!(Objects::read(SOUND).unwrap().problems(), [""; 0]);
    }

    #[test]
    fn whatever_leads_nowhere_is_a_problem() {
        for (right, wrong, says) in [
            ("spec: {selector: {app: one}", "spec: {selector: {app: two}", "selects no pod"),
            ("targetPort: web", "targetPort: grpc", "no pod has the port grpc"),
            ("matchLabels: {app: one}", "matchLabels: {app: two}", "its own pods"),
            ("serviceAccountName: one", "serviceAccountName: two", "no account"),
            ("path: /, port: web", "path: /, port: health", "readinessProbe"),
            ("volumeMounts: [{name: files", "volumeMounts: [{name: other", "no volume"),
            ("volumeMounts: [{name: files, mountPath: /files}]", "args: []", "nobody mounts"),
            ("roleRef: {kind: Role, name: one}", "roleRef: {kind: Role, name: two}", "nobody's"),
            ("kind: ServiceAccount, name: one", "kind: ServiceAccount, name: two", "binds nobody"),
            ("metadata: {name: one, namespace: here}", "metadata: {name: one}", "in no namespace"),
            ("kind: Service\n", "kind: Deployment\n", "is there twice"),
        ] {
            let wrong = SOUND.replacen(right, wrong, 1);
            let problems = Objects::read(&wrong).unwrap().problems().join("\n");
            assert!(problems.contains(says), "{says}: {problems}");
        }
    }
}
