//! The mesh on a real cluster, as its chart installs it.

mod shop;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use shop::Shop;
use sluice_kube::{Mesh, NODES, Pose, Tenant, Wire, Workload, health_asked_by, holds, text};
use sluice_tests::{Kind, Netns, Span, ask_ca, expect_refusal, trace_tree};
use socket2::{Domain, Socket, Type};

#[test]
fn a_label_captures_running_pods_and_without_it_they_are_what_they_were() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let shop = Shop::open("label")?;
    let restarts = |shop: &Shop| -> anyhow::Result<BTreeMap<String, Value>> {
        let pods = shop.pods()?.into_iter();
        pods.map(|(name, pod)| {
            Ok((name, pod["status"]["containerStatuses"][0]["restartCount"].clone()))
        })
        .collect()
    };
    let before = restarts(&shop)?;
    let secret = format!("of-{}", shop.tenant.namespace());
    let crosses = |when: &str| -> anyhow::Result<Vec<u8>> {
        let wire = Wire::record(shop.tenant.bed(), &format!("{secret}-{when}"))?;
        let url = format!("http://order-service:8080/api/order?{secret}");
        let seen = shop.order(&url)?;
        // The one who asked is the pod, whatever is in between.
        ensure!(seen["client"].as_str().unwrap_or("").contains(&shop.address("client")?), "{seen}");
        wire.stop()
    };
    ensure!(holds(&crosses("before")?, &secret), "the search finds nothing that is there");

    shop.join()?;
    shop.await_captured(&mesh)?;
    ensure!(!holds(&crosses("within")?, &secret), "plaintext between the nodes");

    shop.leave()?;
    shop.await_released(&mesh)?;
    ensure!(holds(&crosses("after")?, &secret), "a pod without the label is still captured");
    assert_eq!(restarts(&shop)?, before);
    Ok(())
}

#[test]
fn new_pods_are_captured_before_their_first_packet() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let shop = Shop::open("new")?;
    shop.join()?;
    shop.strict()?;
    shop.await_captured(&mesh)?;
    // Each asks once, the first thing it does, and whoever is not captured is refused.
    let customers = |name: &str, labels: Value| {
        json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name},
            "spec": {
                "parallelism": 6,
                "completions": 6,
                "backoffLimit": 0,
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "restartPolicy": "Never",
                        "topologySpreadConstraints": [{
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "DoNotSchedule",
                            "labelSelector": {"matchLabels": labels},
                        }],
                        "containers": [{
                            "name": "customer",
                            "image": sluice_kube::image("sluice-sample"),
                            "imagePullPolicy": "Never",
                            "args": ["client", "--url", "http://order-service:8080/api/order"],
                        }],
                    },
                },
            },
        })
    };
    let tenant = &shop.tenant;
    tenant.apply(&customers("captured", json!({"customer": "captured"})))?;
    let done = ["wait", "--for=condition=Complete", "--timeout=120s", "job/captured"];
    tenant.kubectl(done).or_else(|error| {
        let said = tenant.kubectl(["get", "pods", "--output=wide"])?;
        Err(error.context(said))
    })?;
    let labels = json!({"customer": "outside", "istio.io/dataplane-mode": "none"});
    tenant.apply(&customers("outside", labels))?;
    tenant.kubectl(["wait", "--for=condition=Failed", "--timeout=120s", "job/outside"])?;
    Ok(())
}

#[test]
fn an_order_is_one_trace_with_the_resources_of_its_pods() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let receiver = shop::receiver()?;
    let shop = Shop::open("trace")?;
    shop.join()?;
    shop.await_captured(&mesh)?;
    shop.tenant.eventually("an order is taken", || shop.order("http://frontend:8080/order"))?;
    let namespace = shop.tenant.namespace();
    let here = |span: &&Span| {
        span.resource.get("k8s.namespace.name").is_some_and(|name| name == namespace)
    };
    // The agents' spans of three hops, and as many of the application's.
    let whole = |spans: &[Span]| -> Option<Vec<Span>> {
        spans.iter().filter(here).find_map(|one| {
            let trace = spans.iter().filter(|span| span.trace_id == one.trace_id);
            let trace: Vec<_> = trace.cloned().collect();
            (trace.len() == 12 && trace.iter().filter(here).count() == 6).then_some(trace)
        })
    };
    let spans = receiver.wait_for(|spans| whole(spans).is_some())?;
    let whole = whole(&spans).context("it was there")?;
    let agents: Vec<_> = whole.iter().filter(here).collect();
    ensure!(agents.iter().all(|span| span.is_agents()));
    println!("{}", trace_tree(&whole));
    let roots = whole
        .iter()
        .filter(|span| !whole.iter().any(|other| Some(&other.span_id) == span.parent_id.as_ref()));
    assert_eq!(roots.count(), 1, "{}", trace_tree(&whole));

    let pods = shop.pods()?;
    for span in agents {
        let resource = |name: &str| span.resource.get(name).map_or("", String::as_str);
        let pod = pods.get(resource("k8s.pod.name")).with_context(|| format!("{span:?}"))?;
        assert_eq!(resource("k8s.pod.uid"), text(pod, "/metadata/uid")?);
        assert_eq!(resource("k8s.node.name"), text(pod, "/spec/nodeName")?);
        assert_eq!(resource("k8s.deployment.name"), text(pod, "/metadata/labels/app")?);
        let account = text(pod, "/spec/serviceAccountName")?;
        let principal = match span.kind {
            Kind::Client => span.attribute("mesh.source.principal"),
            _ => span.attribute("mesh.destination.principal"),
        };
        assert_eq!(principal, format!("spiffe://cluster.local/ns/{namespace}/sa/{account}"));
    }
    Ok(())
}

#[test]
fn under_strict_probes_pass_and_nobody_else_without_an_identity() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let shop = Shop::open("strict")?;
    shop.join()?;
    shop.strict()?;
    shop.await_captured(&mesh)?;
    let probe = |probe: Value| {
        let mut probe = probe;
        probe["periodSeconds"] = 1.into();
        probe["failureThreshold"] = 1.into();
        probe
    };
    let order = Workload::new("probed", &["order"], 8080).on(NODES[1]).container(json!({
        "startupProbe": probe(json!({"tcpSocket": {"port": 8080}, "failureThreshold": 60})),
        "readinessProbe": probe(json!({"httpGet": {"port": 8080, "path": "/health"}})),
        "livenessProbe": probe(json!({"grpc": {"port": 8080}})),
    }));
    shop.deploy([order])?;
    shop.await_captured(&mesh)?;
    shop.order("http://probed:8080/api/order")?;

    // Nobody listens on the port that is probed: that the agent would accept must not count.
    let deaf = Workload::new("deaf", &["order"], 8080).on(NODES[1]).container(json!({
        "readinessProbe": probe(json!({"tcpSocket": {"port": 8081}})),
    }));
    shop.begin([deaf])?;
    shop.tenant.eventually("the kubelet says that a port is closed", || {
        let events = shop.tenant.kubectl(["get", "events", "--field-selector=reason=Unhealthy"])?;
        let refused = |line: &str| line.contains("pod/deaf-") && line.contains("refused");
        ensure!(events.lines().any(refused), "{events}");
        Ok(())
    })?;
    assert_eq!(shop.pod("deaf")?["status"]["containerStatuses"][0]["ready"], false);
    shop.await_captured(&mesh)?;
    for node in NODES {
        let status = mesh.status(node)?;
        ensure!(status["kubelet_cgroup"].is_string(), "{node}: {status}");
    }

    let none = json!({"istio.io/dataplane-mode": "none"});
    shop.deploy([Workload::new("outsider", &["echo"], 9000).on(NODES[0]).labels(none)])?;
    // Beside the kubelet, in its network namespace and as root, and yet a pod.
    let host = json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"});
    let root =
        json!({"securityContext": {"runAsUser": 0}, "args": ["echo", "--listen", "[::]:9100"]});
    shop.deploy([Workload::new("neighbour", &[], 9100).on(NODES[1]).pod(host).container(root)])?;
    for stranger in ["outsider", "neighbour"] {
        let answer = shop.ask(stranger, "http://probed:8080/api/order")?;
        ensure!(
            !answer.placed && answer.said.contains("does not answer"),
            "{stranger}: {answer:?}"
        );
    }
    // Minutes of probes would have been some restarts by now.
    let pod = shop.pod("probed")?;
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(pod["status"]["containerStatuses"][0]["ready"], true);
    Ok(())
}

#[test]
fn a_token_of_an_agent_is_worth_nothing_for_the_pods_of_another_node() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let shop = Shop::open("token")?;
    let agent = mesh.agent(NODES[0])?;
    let token = mesh.kubectl([
        "create",
        "token",
        "sluice",
        "--audience=sluice-ca",
        "--bound-object-kind=Pod",
        "--bound-object-name",
        text(&agent, "/metadata/name")?,
    ])?;
    let roots: Value = serde_json::from_str(&mesh.kubectl([
        "get",
        "configmap",
        "sluice-ca-roots",
        "--output=json",
    ])?)?;
    let roots = text(&roots, "/data/root-cert.pem")?.as_bytes();
    let roots: Vec<_> = CertificateDer::pem_slice_iter(roots).collect::<Result<_, _>>()?;
    let ca = ["get", "pods", "--selector=app.kubernetes.io/component=ca", "--output=json"];
    let ca: Value = serde_json::from_str(&mesh.kubectl(ca)?)?;
    let address = SocketAddr::new(text(&ca, "/items/0/status/podIP")?.parse()?, 15012);
    let control = Netns::of_process(shop.tenant.bed().control());
    let namespace = shop.tenant.namespace().to_owned();
    let ask = |account: &str, token: String| {
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        let name = ServerName::try_from("sluice-ca.sluice-system.svc").expect("a name");
        let (control, roots) = (&control, roots.clone());
        shop::wait(async move {
            ask_ca(control, address, name, roots, Some(token.trim()), Some(&identity)).await
        })
    };
    // The order service runs on the second node, the client on the first.
    let own = ask("client", token.clone())?;
    ensure!(own.is_ok(), "an agent gets nothing for a pod of its own node: {own:?}");
    let denied = tonic::Code::PermissionDenied;
    expect_refusal(ask("order-service", token.clone())?, denied, "node-1")?;
    expect_refusal(ask("nobody", token)?, denied, "node-1")?;
    // Whoever is no agent has one identity, its own.
    let own = shop.tenant.kubectl(["create", "token", "client", "--audience=sluice-ca"])?;
    ensure!(ask("order-service", own)?.is_err(), "a service account alone got another's identity");
    Ok(())
}

#[test]
fn nobody_but_the_agent_itself_reaches_its_status() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let shop = Shop::open("admin")?;
    shop.join()?;
    shop.await_captured(&mesh)?;
    for node in NODES {
        let agent = mesh.agent(node)?;
        let address = text(&agent, "/status/podIP")?;
        for client in ["client", "order-service"] {
            // Its health is for everybody; that answers, if not to orders.
            let health = shop.ask(client, &format!("http://{address}:15021/healthz/ready"))?;
            ensure!(health.said.contains("405"), "{health:?}");
            let status = shop.ask(client, &format!("http://{address}:15000/status"))?;
            ensure!(status.said.contains("does not answer"), "{status:?}");
        }
    }
    Ok(())
}

/// Asks the order service at `to` for its health from inside `netns`, with `source` as the own
/// address: what a process there could do that has every right within its network namespace.
fn health(netns: &Netns, source: IpAddr, to: SocketAddr) -> anyhow::Result<String> {
    let patience = Some(Duration::from_secs(5));
    let socket = netns.run(|| Socket::new(Domain::IPV4, Type::STREAM, None))??;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(patience)?;
    // With a trace that is recorded, so that each time leaves spans.
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    write!(stream, "GET /health HTTP/1.0\r\ntraceparent: {trace}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.0 200"), "{answer:?}");
    Ok(answer)
}

#[test]
fn who_rules_its_own_network_namespace_speaks_as_nobody_else() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let receiver = shop::receiver()?;
    let shop = Shop::open("impostor")?;
    shop.join()?;
    shop.strict()?;
    shop.await_captured(&mesh)?;
    let bed = shop.tenant.bed();
    let [first, _] = NODES;
    let of = |name: &str| -> anyhow::Result<(IpAddr, String)> {
        let pod = shop.pod(name)?;
        Ok((text(&pod, "/status/podIP")?.parse()?, text(&pod, "/metadata/uid")?.to_owned()))
    };
    let ((own, uid), (other, _), (server, _)) =
        (of("client")?, of("user-service")?, of("order-service")?);
    let process = bed.process_of(first, &uid)?;
    let netns = Netns::of_process(process);
    let ip = |arguments: &str| -> anyhow::Result<()> {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &process.to_string(), "--net", "ip"]);
        let status = nsenter.args(arguments.split(' ')).status()?;
        ensure!(status.success(), "ip {arguments}");
        Ok(())
    };
    let to = SocketAddr::new(server, 8080);
    health(&netns, own, to).context("the pod itself is not served")?;

    // With its neighbour's address it is nobody: not served, or as who it is.
    ip(&format!("address add {other}/32 dev lo"))?;
    match health(&netns, other, to) {
        Ok(_) => println!("with another pod's address: served"),
        Err(error) => println!("with another pod's address: {error:#}"),
    }
    ip(&format!("address delete {other}/32 dev lo"))?;

    // Without capture's rules it is outside the mesh, and whoever is STRICT lets nobody in from there;
    // until they are there again, which may be before it has dialled.
    for family in ["-4", "-6"] {
        ip(&format!("{family} rule flush"))?;
        for (number, table) in [(0, "local"), (32766, "main"), (32767, "default")] {
            // IPv6 has no table of that name.
            if family == "-4" || table != "default" {
                ip(&format!("{family} rule add pref {number} lookup {table}"))?;
            }
        }
    }
    match health(&netns, own, to) {
        Ok(_) => println!("around capture: its rules were there again"),
        Err(error) => println!("around capture: {error:#}"),
    }

    // Whoever it said to be, it was known as itself, whenever it was served.
    let here = |span: &&Span| {
        span.kind == Kind::Server
            && span.resource.get("k8s.namespace.name").is_some_and(|n| n == shop.tenant.namespace())
            && span.resource.get("k8s.deployment.name").is_some_and(|n| n == "order-service")
    };
    let spans = receiver.wait_for(|spans| spans.iter().any(|span| here(&span)))?;
    for span in spans.iter().filter(here) {
        let source = span.attribute("mesh.source.principal");
        ensure!(!source.ends_with("/sa/user-service"), "taken for somebody else: {span:?}");
        let served = span.attributes.contains_key("http.response.status_code");
        let policy = span.attribute("mesh.connection.security_policy");
        ensure!(!served || policy == "mutual_tls", "served in plaintext: {span:?}");
    }
    Ok(())
}

#[test]
fn who_names_its_cgroup_like_another_pods_is_not_believed() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let receiver = shop::receiver()?;
    let shop = Shop::open("pose")?;
    shop.join()?;
    shop.strict()?;
    shop.await_captured(&mesh)?;
    let bed = shop.tenant.bed();
    let [first, second] = NODES;
    // As root, and in the network of the order service's node, as the kubelet is.
    let host = json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"});
    let root =
        json!({"securityContext": {"runAsUser": 0}, "args": ["echo", "--listen", "[::]:9101"]});
    shop.deploy([Workload::new("neighbour", &[], 9101).on(second).pod(host).container(root)])?;
    let uid = |name: &str| -> anyhow::Result<String> {
        Ok(text(&shop.pod(name)?, "/metadata/uid")?.to_owned())
    };
    let to = SocketAddr::new(shop.address("order-service")?.parse()?, 8080);
    let of = |name: &str| anyhow::Ok(format!("kubepods/besteffort/pod{}/{:064}", uid(name)?, 0));

    // A pod of the mesh is known as itself.
    let trace_id = "5ea1ab1e916cd43dd8448eb211c80319";
    let trace = format!("00-{trace_id}-b7ad6b7169203331-01");
    let pose = Pose::of_pod(bed, first, &uid("client")?, &of("user-service")?)?;
    pose.health(to, &trace)?;
    let here =
        |span: &&Span| span.is_agents() && span.kind == Kind::Server && span.trace_id == trace_id;
    let spans = receiver.wait_for(|spans| spans.iter().any(|span| here(&span)))?;
    let span = spans.iter().find(here).context("it was there")?;
    let namespace = shop.tenant.namespace();
    let client = format!("spiffe://cluster.local/ns/{namespace}/sa/client");
    println!("as another pod: taken for {}", span.attribute("mesh.source.principal"));
    assert_eq!(span.attribute("mesh.source.principal"), client);

    // One outside the mesh is neither a pod of it nor the node itself, which would be served.
    health_asked_by(bed, second, to, &trace).context("the node itself is not served")?;
    for path in [of("client")?, "system.slice/kubelet.service".to_owned()] {
        let pose = Pose::of_pod(bed, second, &uid("neighbour")?, &path)?;
        let error = pose.health(to, &trace).err().with_context(|| format!("served as {path}"))?;
        println!("as {path}: {error:#}");
    }
    Ok(())
}

#[test]
fn a_pod_may_require_that_the_container_runtime_knows_the_agent() -> anyhow::Result<()> {
    let tenant = Tenant::new("required")?;
    let requiring = |name: &str, plugin: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "annotations": {
                    "required-plugins.noderesource.dev/pod": format!("[ {plugin} ]"),
                },
            },
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "echo",
                    "image": sluice_kube::image("sluice-sample"),
                    "imagePullPolicy": "Never",
                    "args": ["echo"],
                }],
            },
        })
    };
    tenant.apply(&requiring("with", "sluice"))?;
    tenant.apply(&requiring("without", "nobody"))?;
    tenant.kubectl(["wait", "--for=condition=Ready", "--timeout=120s", "pod/with"])?;
    tenant.eventually("the container runtime refuses", || {
        let events = tenant.kubectl(["get", "events", "--field-selector=reason=Failed"])?;
        let told = |line: &str| line.contains("pod/without") && line.contains("\"nobody\"");
        ensure!(events.lines().any(told), "{events}");
        Ok(())
    })
}
