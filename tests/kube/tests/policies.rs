//! NetworkPolicies mean in the mesh what they meant before, where an engine that others use enforces
//! them: between pods of one node and across nodes.

use std::{collections::BTreeMap, process::Command, thread};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sluice_kube::{Mesh, NODES, NodeName, PolicyEngine, Tenant, Workload, text};

/// The port by which the mesh reaches its pods, which policies have to allow.
const HBONE: u16 = 15008;
const PORT: u16 = 8080;
/// Where the CA answers agents, and whoever asks for its metrics.
const CA: u16 = 15012;
const METRICS: u16 = 15020;
/// The node of the servers, and the other one.
const HERE: NodeName = NODES[0];
const THERE: NodeName = NODES[1];

/// Who asks, the role by which policies know it, and where it is.
const CLIENTS: [(&str, &str, NodeName); 5] = [
    ("friend-here", "friend", HERE),
    ("friend-there", "friend", THERE),
    ("stranger-here", "stranger", HERE),
    ("stranger-there", "stranger", THERE),
    // May itself dial nobody but `open`.
    ("captive", "captive", HERE),
];
const FRIENDS: &[&str] = &["friend-here", "friend-there"];
const FREE: &[&str] = &["friend-here", "friend-there", "stranger-here", "stranger-there"];
const ALL: &[&str] = &["friend-here", "friend-there", "stranger-here", "stranger-there", "captive"];
const NOBODY: &[&str] = &[];

/// One server.
struct Case {
    name: &'static str,
    /// What its policy allows; `None`: it has none.
    ingress: Option<Value>,
    before: &'static [&'static str],
    within: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    let friends = json!([{"podSelector": {"matchLabels": {"role": "friend"}}}]);
    let ports = |ports: &[u16]| -> Value {
        ports.iter().map(|port| json!({"protocol": "TCP", "port": port})).collect()
    };
    let same = |name, ingress, who| Case { name, ingress, before: who, within: who };
    vec![
        same("open", None, ALL),
        same("closed", Some(json!([])), NOBODY),
        same("friends", Some(json!([{"from": friends}])), FRIENDS),
        same("port", Some(json!([{"ports": ports(&[PORT, HBONE])}])), FREE),
        same("other-port", Some(json!([{"ports": ports(&[PORT + 1])}])), NOBODY),
        same(
            "friends-port",
            Some(json!([{"from": friends, "ports": ports(&[PORT, HBONE])}])),
            FRIENDS,
        ),
        // What has to be changed before the label is set.
        Case {
            name: "port-alone",
            ingress: Some(json!([{"ports": ports(&[PORT])}])),
            before: FREE,
            within: NOBODY,
        },
    ]
}

fn policy(name: &str, spec: &Value) -> Value {
    let metadata = json!({"name": name});
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": spec,
    })
}

fn closing(server: &str, ingress: &Value) -> Value {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": server}},
        "policyTypes": ["Ingress"],
        "ingress": ingress,
    });
    policy(server, &spec)
}

/// Deploys servers, clients and policies, and waits until all pods run. Returns the servers'
/// addresses.
fn deploy(tenant: &Tenant, cases: &[Case]) -> anyhow::Result<BTreeMap<String, String>> {
    let quick = json!({"readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1}});
    let servers = cases.iter().map(|case| Workload::new(case.name, &["order"], PORT).on(HERE));
    let clients = CLIENTS.iter().map(|(name, role, node)| {
        Workload::new(name, &["order"], PORT).on(*node).labels(json!({"role": role}))
    });
    tenant.deploy(servers.chain(clients).map(|workload| workload.container(quick.clone())))?;
    for case in cases {
        if let Some(ingress) = &case.ingress {
            tenant.apply(&closing(case.name, ingress))?;
        }
    }
    tenant.apply(&policy(
        "captive",
        &json!({
            "podSelector": {"matchLabels": {"role": "captive"}},
            "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "open"}}}]}],
        }),
    ))?;
    for name in cases.iter().map(|case| case.name).chain(CLIENTS.map(|(name, ..)| name)) {
        tenant.await_deployment(name)?;
    }
    let pods: Value = serde_json::from_str(&tenant.kubectl(["get", "pods", "--output=json"])?)?;
    let pods = pods["items"].as_array().context("not a list")?.iter();
    pods.map(|pod| {
        Ok((text(pod, "/metadata/labels/app")?.to_owned(), text(pod, "/status/podIP")?.to_owned()))
    })
    .collect()
}

/// Whether `client` is served at `address`. By the address, since a policy may keep it from asking
/// for names.
fn is_served(tenant: &Tenant, client: &str, address: &str) -> anyhow::Result<bool> {
    let mut kubectl = tenant.bed().command("kubectl");
    kubectl.args(["--namespace", tenant.namespace(), "exec", &format!("deployment/{client}")]);
    let url = format!("http://{address}:{PORT}/api/order");
    kubectl.args(["--", "/sluice-sample", "client", "--url", &url]);
    let output = Command::output(&mut kubectl).with_context(|| format!("{kubectl:?}"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // The client's own words are there whether or not it was served.
    ensure!(said.contains(" ms: "), "nothing was tried: {said}");
    Ok(output.status.success())
}

/// Who is served by whom: by server, every client that is.
fn table(
    tenant: &Tenant,
    addresses: &BTreeMap<String, String>,
    servers: &[&'static str],
) -> anyhow::Result<BTreeMap<&'static str, Vec<&'static str>>> {
    let asked = thread::scope(|scope| {
        let ask = |client: &'static str| {
            let ask = move || -> anyhow::Result<Vec<&'static str>> {
                let mut serving = Vec::new();
                for server in servers {
                    let address = addresses.get(*server).context("a server without address")?;
                    if is_served(tenant, client, address)? {
                        serving.push(*server);
                    }
                }
                Ok(serving)
            };
            (client, scope.spawn(ask))
        };
        let asking: Vec<_> = CLIENTS.map(|(client, ..)| ask(client)).into();
        asking
            .into_iter()
            .map(|(client, it)| (client, it.join().expect("no panic")))
            .collect::<Vec<_>>()
    });
    let mut table: BTreeMap<_, Vec<_>> =
        servers.iter().map(|server| (*server, Vec::new())).collect();
    for (client, serving) in asked {
        for server in serving? {
            table.entry(server).or_default().push(client);
        }
    }
    Ok(table)
}

/// Waits until exactly those are served who should be.
fn holds(
    when: &str,
    tenant: &Tenant,
    addresses: &BTreeMap<String, String>,
    expected: &BTreeMap<&'static str, Vec<&'static str>>,
) -> anyhow::Result<()> {
    let servers: Vec<_> = expected.keys().copied().collect();
    let table = tenant.eventually(when, || {
        let table = table(tenant, addresses, &servers)?;
        ensure!(table == *expected, "{table:#?} instead of {expected:#?}");
        Ok(table)
    })?;
    for (server, clients) in table {
        println!("{when}: {server:<14} {}", clients.join(", "));
    }
    Ok(())
}

/// Whether a process in the network of the one pod of `app` reaches a port of somebody.
fn reaches(tenant: &Tenant, app: &str, to: &str, port: u16) -> anyhow::Result<bool> {
    let pods = ["get", "pods", &format!("--selector=app={app}"), "--output=json"];
    let pods: Value = serde_json::from_str(&tenant.kubectl(pods)?)?;
    let process = tenant.bed().process_of(HERE, text(&pods["items"][0], "/metadata/uid")?)?;
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &process.to_string(), "--net", "timeout", "10", "bash", "-c"]);
    nsenter.arg(format!("exec 3<>/dev/tcp/{to}/{port}"));
    Ok(nsenter.output().with_context(|| format!("{nsenter:?}"))?.status.success())
}

/// The policy of the chart's own: certificates are the agents' to ask for, metrics are anybody's.
fn nobody_but_an_agent_reaches_the_ca(mesh: &Mesh, tenant: &Tenant) -> anyhow::Result<()> {
    let ca = ["get", "pods", "--selector=app.kubernetes.io/component=ca", "--output=json"];
    let ca: Value = serde_json::from_str(&mesh.kubectl(ca)?)?;
    for pod in ca["items"].as_array().context("not a list")? {
        let address = text(pod, "/status/podIP")?;
        ensure!(!reaches(tenant, "stranger-here", address, CA)?, "the CA lets strangers ask");
        ensure!(reaches(tenant, "stranger-here", address, METRICS)?, "its metrics are shut");
    }
    Ok(())
}

/// Waits until the owner of the one pod that policies cut off was told so, and nobody else's.
fn owners_are_told(tenant: &Tenant) -> anyhow::Result<()> {
    let told = tenant.eventually("the Event", || {
        let events = ["get", "events", "--field-selector=reason=PortNotAllowed", "--output=json"];
        let events: Value = serde_json::from_str(&tenant.kubectl(events)?)?;
        let told = events["items"].as_array().context("not a list")?.clone();
        ensure!(told.len() >= 2, "so far {told:?}");
        Ok(told)
    })?;
    for event in told {
        let (pod, why) = (text(&event, "/involvedObject/name")?, text(&event, "/message")?);
        println!("{pod}: {why}");
        let is_cut = ["port-alone-", "other-port-"].iter().any(|name| pod.starts_with(name));
        ensure!(is_cut && why.contains("15008"), "{pod}: {why}");
    }
    Ok(())
}

#[test]
fn whoever_is_allowed_is_served_within_the_mesh_too_and_nobody_else() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let tenant = Tenant::new("policies")?;
    let cases = cases();
    let addresses = deploy(&tenant, &cases)?;
    let _engine = PolicyEngine::start(tenant.bed())?;
    let before = cases.iter().map(|case| (case.name, case.before.to_vec())).collect();
    holds("before", &tenant, &addresses, &before)?;
    nobody_but_an_agent_reaches_the_ca(&mesh, &tenant)?;

    let label = "istio.io/dataplane-mode=ambient";
    tenant.kubectl(["label", "namespace", tenant.namespace(), label])?;
    tenant.eventually("every pod is captured", || {
        let captured = NODES.map(|node| mesh.captured(node, tenant.namespace()).map(|it| it.len()));
        let count: usize = captured.into_iter().sum::<anyhow::Result<_>>()?;
        ensure!(count == addresses.len(), "{count} of {}", addresses.len());
        Ok(())
    })?;
    let within = cases.iter().map(|case| (case.name, case.within.to_vec())).collect();
    holds("within", &tenant, &addresses, &within)?;
    owners_are_told(&tenant)?;

    // A policy that comes when there are connections already, which the engine leaves alone.
    tenant.apply(&closing("open", &json!([])))?;
    let closed = [("open", NOBODY.to_vec())].into();
    holds("closed later", &tenant, &addresses, &closed)
}
