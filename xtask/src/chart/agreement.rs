//! What the agent, the CA and their objects have to agree on: flags name what is mounted, what is
//! served and who may ask.

use std::path::Path;

use serde_json::Value;

use super::objects::{Objects, PodTemplate, text};

/// Flags and variables that name files, which have to be in a volume.
const PATHS: [&str; 8] = [
    "--state-dir",
    "--bpffs",
    "--cgroup",
    "--nri-socket",
    "--ca-root",
    "--ca-token",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "SLUICE_CGROUP",
];

/// What does not fit.
pub(super) fn problems(objects: &Objects) -> Vec<String> {
    let Some(agent) = component(objects, "agent") else {
        return vec!["there is no agent".into()];
    };
    let mut problems = Vec::new();
    let main = &agent.spec["containers"][0];
    for container in agent.containers() {
        let flags = Flags::of(container);
        for (flag, path) in &flags.0 {
            if PATHS.contains(&flag.as_str()) && mount(container, path).is_none() {
                problems.push(format!("nothing is mounted at {flag}={path}"));
            }
        }
    }
    let flags = Flags::of(main);
    for (flag, key) in [("--ca-root", "/configMap/items"), ("--ca-token", "/projected/sources")] {
        let path = flags.value(flag);
        let volume = mount(main, path).and_then(|mount| agent.volume(&mount["name"]));
        let file = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let list = volume.and_then(|volume| volume.pointer(key)).and_then(Value::as_array);
        let named =
            |item: &Value| item["path"] == file || item["serviceAccountToken"]["path"] == file;
        if !list.is_some_and(|list| list.iter().any(named)) {
            problems.push(format!("no volume holds {flag}={path}"));
        }
    }
    let drain = flags.value("--drain-timeout").trim_end_matches('s').parse::<u64>();
    let grace = agent.spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(0);
    if !drain.is_ok_and(|drain| drain < grace) {
        problems.push(format!("an agent is killed after {grace} s, before it has drained"));
    }
    for pod in objects.pods() {
        problems.extend(scraped(pod).err().map(|port| format!("{}: no port {port}", pod.of)));
        // Neither may depend on the mesh that they make.
        if pod.labels["istio.io/dataplane-mode"] != "none" {
            problems.push(format!("pods of {} may join the mesh", pod.of));
        }
    }
    if let Some(ca) = component(objects, "ca") {
        problems.extend(with_ca(objects, agent, ca));
    }
    problems
}

/// What does not fit between the agent and the chart's own CA.
fn with_ca(objects: &Objects, agent: PodTemplate<'_>, ca: PodTemplate<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut equal = |what: &str, one: &str, other: &str| {
        if one != other || one.is_empty() {
            problems.push(format!("{what}: `{one}` here, `{other}` there"));
        }
    };
    let (asks, serves) =
        (Flags::of(&agent.spec["containers"][0]), Flags::of(&ca.spec["containers"][0]));
    let namespace = text(&ca.controller["metadata"]["namespace"]);

    let address = asks.value("--ca-address").trim_start_matches("https://");
    let (host, port) = address.split_once(':').unwrap_or((address, ""));
    let service = objects
        .of_kind("Service")
        .find(|service| host == format!("{}.{namespace}.svc", text(&service["metadata"]["name"])));
    let ports = service.and_then(|service| service["spec"]["ports"].as_array());
    let served = ports.into_iter().flatten().map(|port| port["port"].to_string()).next();
    equal("the CA's port", port, &served.unwrap_or_default());
    let name = serves.all("--dns-name").find(|name| *name == host);
    equal("the CA's name", host, name.unwrap_or_default());

    let tokens = agent.spec["volumes"].as_array().into_iter().flatten();
    let tokens = tokens.filter_map(|volume| volume["projected"]["sources"].as_array()).flatten();
    let audience = tokens.map(|source| text(&source["serviceAccountToken"]["audience"])).next();
    equal("the audience", serves.value("--audience"), &audience.unwrap_or_default());
    let account = format!("{namespace}/{}", text(&agent.spec["serviceAccountName"]));
    equal("the agent's account", serves.value("--agent-service-account"), &account);
    equal("the trust domain", serves.value("--trust-domain"), asks.value("--trust-domain"));

    let maps = agent.spec["volumes"].as_array().into_iter().flatten();
    let mut maps = maps.filter(|volume| volume["name"] == "roots");
    let map = maps.next().map(|volume| text(&volume["configMap"]["name"])).unwrap_or_default();
    equal("the ConfigMap", serves.value("--config-map"), &format!("{namespace}/{map}"));
    for (flag, resource) in [("--secret", "secrets"), ("--config-map", "configmaps")] {
        let rules = objects.of_kind("Role").filter_map(|role| role["rules"].as_array()).flatten();
        let mut names = rules.filter(|rule| rule["resources"][0] == resource);
        let named = names.find_map(|rule| rule["resourceNames"][0].as_str()).unwrap_or_default();
        equal("what the CA may read", serves.value(flag), &format!("{namespace}/{named}"));
    }
    problems
}

fn component<'a>(objects: &'a Objects, name: &str) -> Option<PodTemplate<'a>> {
    objects.pods().find(|pod| pod.labels["app.kubernetes.io/component"] == name)
}

/// The mount that `path` is in.
fn mount<'a>(container: &'a Value, path: &str) -> Option<&'a Value> {
    let mounts = container["volumeMounts"].as_array();
    mounts.into_iter().flatten().find(|mount| {
        mount["mountPath"].as_str().is_some_and(|folder| Path::new(path).starts_with(folder))
    })
}

/// Whether Prometheus is told a port that is there, if it is told any.
fn scraped(pod: PodTemplate<'_>) -> Result<(), String> {
    let Some(port) = pod.annotations["prometheus.io/port"].as_str() else { return Ok(()) };
    let mut ports = pod.containers().filter_map(|one| one["ports"].as_array()).flatten();
    match ports.any(|one| one["containerPort"].to_string() == port) {
        true => Ok(()),
        false => Err(port.to_owned()),
    }
}

/// Flags of a container, and its variables beside them.
struct Flags(Vec<(String, String)>);

impl Flags {
    fn of(container: &Value) -> Self {
        let arguments = container["args"].as_array().into_iter().flatten().map(text);
        let flags = arguments.filter_map(|argument| {
            argument.split_once('=').map(|(flag, value)| (flag.to_owned(), value.to_owned()))
        });
        let variables = container["env"].as_array().into_iter().flatten();
        let variables = variables.map(|one| (text(&one["name"]), text(&one["value"])));
        Self(flags.chain(variables).collect())
    }

    fn all(&self, flag: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(name, _)| name == flag).map(|(_, value)| value.as_str())
    }

    fn value(&self, flag: &str) -> &str {
        self.all(flag).next().unwrap_or_default()
    }
}
