//! What the chart asks of a node and of the API server: each right has its reason in
//! `docs/security.md`, and none is among those that nobody needs.

use serde_json::{Value, json};

use super::objects::{Objects, PodTemplate, name, text};

/// What the agent may write: what it tells of pods.
const EVENTS: [&str; 1] = ["create"];
const NODES: [&str; 2] = ["get", "patch"];
const PODS: [&str; 4] = ["get", "list", "watch", "patch"];
const READING: [&str; 3] = ["get", "list", "watch"];

/// Rights that are too many, or that `security`, the document, does not name.
pub(super) fn problems(objects: &Objects, security: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for pod in objects.pods() {
        let found = of_pod(pod, security);
        problems.extend(found.into_iter().map(|problem| format!("{}: {problem}", pod.of)));
    }
    for role in ["Role", "ClusterRole"].into_iter().flat_map(|kind| objects.of_kind(kind)) {
        let of_agent = role["metadata"]["labels"]["app.kubernetes.io/component"] == "agent";
        for rule in role["rules"].as_array().into_iter().flatten() {
            let found = of_rule(rule, of_agent, security);
            problems.extend(found.into_iter().map(|problem| format!("{}: {problem}", name(role))));
        }
    }
    problems
}

fn of_pod(pod: PodTemplate<'_>, security: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let spec = pod.spec;
    for field in ["hostNetwork", "hostIPC"] {
        if spec[field] == true {
            problems.push(format!("it has {field}"));
        }
    }
    if spec["hostPID"] == true && !is_named("hostPID", security) {
        problems.push("docs/security.md does not say why it has hostPID".into());
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        if !volume["secret"].is_null() {
            problems.push(format!("{} is a Secret", volume["name"]));
        }
        let path = &volume["hostPath"]["path"];
        // Or the value by which users name another folder of the same purpose.
        let value = format!("{}.directory", text(&volume["name"]));
        if !path.is_null() && ![text(path), value].iter().any(|it| is_named(it, security)) {
            problems.push(format!("docs/security.md does not say why it mounts {path}"));
        }
    }
    for container in pod.containers() {
        let context = &container["securityContext"];
        let seccomp = [context, &spec["securityContext"]].map(|it| &it["seccompProfile"]["type"]);
        for (what, holds) in [
            ("is privileged", context["privileged"] == false),
            ("may gain privileges", context["allowPrivilegeEscalation"] == false),
            ("writes its own files", context["readOnlyRootFilesystem"] == true),
            ("keeps capabilities", context["capabilities"]["drop"] == json!(["ALL"])),
            ("has no seccomp profile", seccomp.into_iter().any(|it| it == "RuntimeDefault")),
        ] {
            if !holds {
                problems.push(format!("{} {what}", container["name"]));
            }
        }
        for capability in context["capabilities"]["add"].as_array().into_iter().flatten() {
            if !is_named(&text(capability), security) {
                problems.push(format!("docs/security.md does not say why it has {capability}"));
            }
        }
    }
    problems
}

fn of_rule(rule: &Value, of_agent: bool, security: &str) -> Vec<String> {
    let words = |field: &str| -> Vec<String> {
        rule[field].as_array().into_iter().flatten().map(text).collect()
    };
    let (resources, verbs) = (words("resources"), words("verbs"));
    let mut problems = Vec::new();
    if [&resources, &verbs, &words("apiGroups")].into_iter().flatten().any(|word| word == "*") {
        problems.push("it may do anything".to_owned());
    }
    for resource in &resources {
        if !is_named(resource, security) {
            problems.push(format!("docs/security.md does not say why it may use {resource}"));
        }
        let allowed: &[&str] = match (of_agent, resource.as_str()) {
            // By its name alone.
            (true, "configmaps") if rule["resourceNames"] == json!(["istio"]) => &READING,
            (true, "secrets" | "configmaps") => &[],
            (true, "events") => &EVENTS,
            // An admission policy narrows it to its own, and to a taint.
            (true, "nodes") => &NODES,
            // Likewise: to those of its node, and to an annotation.
            (true, "pods") => &PODS,
            (true, _) => &READING,
            (false, _) => continue,
        };
        for verb in verbs.iter().filter(|verb| !allowed.contains(&verb.as_str())) {
            problems.push(format!("the agent may {verb} {resource}"));
        }
    }
    problems
}

/// Whether a table of the document names `what`, as code, or among other words in code.
fn is_named(what: &str, document: &str) -> bool {
    let rows = document.lines().filter(|line| line.starts_with('|'));
    rows.flat_map(|row| row.split('`').skip(1).step_by(2))
        .flat_map(|code| code.split([',', ' ']))
        .any(|word| word == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "`BPF` is text\n\n| Right | For |\n|---|---|\n\
        | `SYS_ADMIN` | pods |\n| `hostPID`, `/sys/fs/bpf` | pods |\n| `pods`, `events` | pods |\n";

    fn pod(context: &Value, volumes: &Value) -> String {
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "one"},
            "spec": {"template": {"spec": {
                "hostPID": true,
                "containers": [{"name": "one", "securityContext": context}],
                "volumes": volumes,
            }}},
        })
        .to_string()
    }

    fn found(yaml: &str) -> String {
        problems(&Objects::read(yaml).unwrap(), DOCUMENT).join("\n")
    }

    fn sound() -> Value {
        json!({
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        })
    }

    #[test]
    fn rights_with_a_reason_are_sound() {
        let bpffs = json!([{"name": "bpffs", "hostPath": {"path": "/sys/fs/bpf"}}]);
        assert_eq!(found(&pod(&sound(), &bpffs)), "");
    }

    #[test]
    fn rights_without_a_reason_and_missing_restraints_are_problems() {
        let volumes = json!([
            {"name": "etc", "hostPath": {"path": "/etc"}},
            {"name": "key", "secret": {"secretName": "key"}},
        ]);
        for (field, value, says) in [
            ("privileged", json!(true), "is privileged"),
            ("allowPrivilegeEscalation", Value::Null, "may gain privileges"),
            ("readOnlyRootFilesystem", json!(false), "writes its own files"),
            ("capabilities", json!({"add": ["SYS_ADMIN"]}), "keeps capabilities"),
            ("capabilities", json!({"drop": ["ALL"], "add": ["BPF"]}), "why it has \"BPF\""),
            ("seccompProfile", json!({"type": "Unconfined"}), "has no seccomp profile"),
        ] {
            let mut context = sound();
            context[field] = value;
            let found = found(&pod(&context, &volumes));
            assert!(found.contains(says), "{says}: {found}");
            assert!(found.contains("/etc") && found.contains("is a Secret"), "{found}");
        }
    }

    #[test]
    fn the_agent_reads_and_tells_and_no_more() {
        let role = |resource: &str, verb: &str| {
            let labels = json!({"app.kubernetes.io/component": "agent"});
            let rule = json!({"apiGroups": [""], "resources": [resource], "verbs": [verb]});
            let metadata = json!({"name": "one", "labels": labels});
            found(
                &json!({"kind": "ClusterRole", "metadata": metadata, "rules": [rule]}).to_string(),
            )
        };
        assert_eq!(role("pods", "watch"), "");
        assert_eq!(role("pods", "patch"), "");
        assert_eq!(role("events", "create"), "");
        assert!(role("pods", "delete").contains("the agent may delete pods"));
        assert!(role("secrets", "get").contains("the agent may get secrets"));
        assert!(role("configmaps", "get").contains("the agent may get configmaps"));
        assert!(role("pods", "*").contains("may do anything"));
    }
}
