//! Who has to speak mutual TLS, by PeerAuthentication.

use std::{io, net::SocketAddr, time::Duration};

use sluice_tests::{
    Agent, Kind, Line, Mesh, Node, PATIENCE, Pod, PodOptions, Span, Talk, Tcpdump, eventually,
    refused,
};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

/// A port that no Service says anything about.
const UNDECLARED: u16 = 9999;
const PORTS: [u16; 3] = [Mesh::TCP_TARGET, Mesh::HTTP_TARGET, UNDECLARED];
/// How long a client that gets no answer goes on waiting for one; those here get theirs at once.
const SILENCE: Duration = Duration::from_secs(20);

/// A PeerAuthentication.
fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n"
    )
}

const STRICT: &str = "{mtls: {mode: STRICT}}";
const PERMISSIVE: &str = "{mtls: {mode: PERMISSIVE}}";

/// The version of the snapshot in force.
fn version(node: &Node) -> anyhow::Result<Option<u64>> {
    Ok(Agent::status(node)?["configuration"]["version"].as_u64())
}

/// Writes the policies into the one file of them, and waits until the agents of `nodes` obey.
async fn change(mesh: &Mesh, nodes: &[&Node], policies: &[String]) -> anyhow::Result<()> {
    let before: Vec<_> = nodes.iter().map(|node| version(node)).collect::<Result<_, _>>()?;
    mesh.config.write("policies", &policies.join("---\n"))?;
    for (node, before) in nodes.iter().zip(before) {
        let is_newer = || async { Ok((version(node)? > before).then_some(())) };
        eventually("the policies are in force", is_newer).await?;
    }
    Ok(())
}

/// Plaintext from outside the mesh is reset on each of the ports, and the server sees nothing.
async fn refuses_plaintext(mesh: &Mesh, server: &Pod, ports: &[u16]) -> anyhow::Result<()> {
    for port in ports {
        let listener = server.listen(*port)?;
        for ip in server.ips() {
            let to = SocketAddr::new(ip, *port);
            let told = refused(&mesh.outsider, to, &listener, SILENCE).await?;
            let kind = told.map(|error| error.kind());
            assert_eq!(kind, Some(io::ErrorKind::ConnectionReset), "{to}");
        }
    }
    Ok(())
}

/// Plaintext from outside the mesh gets through to each of the ports.
async fn takes_plaintext(mesh: &Mesh, server: &Pod, ports: &[u16]) -> anyhow::Result<()> {
    for port in ports {
        talk(&mesh.outsider, server, *port).await?;
    }
    Ok(())
}

/// One connection of opaque bytes.
async fn talk(client: &Pod, server: &Pod, port: u16) -> anyhow::Result<Talk> {
    let listener = server.listen(port)?;
    Talk::start(client, SocketAddr::new(server.ip(), port), &listener).await
}

/// Ports that may carry anything: on the third the agent itself answers what is not HTTP.
const OPAQUE: [u16; 2] = [Mesh::TCP_TARGET, UNDECLARED];

#[tokio::test]
async fn without_a_policy_both_are_let_in() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    takes_plaintext(&mesh, &mesh.far, &OPAQUE).await?;
    talk(&mesh.client, &mesh.far, UNDECLARED).await?;
    let pods = &Agent::status(&mesh.b)?["pods"];
    assert_eq!(pods[0]["mutual_tls"], "PERMISSIVE", "{pods}");
    Ok(())
}

#[tokio::test]
async fn strict_refuses_plaintext_before_a_byte_reaches_the_application() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("policies", &policy("default", "strict", STRICT))?;
    let _agents = mesh.start_agents(&[]).await?;
    refuses_plaintext(&mesh, &mesh.far, &PORTS).await?;
    // And where both are on one node.
    refuses_plaintext(&mesh, &mesh.near, &PORTS).await
}

#[tokio::test]
async fn strict_lets_in_whom_the_mesh_carries() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("policies", &policy("istio-system", "strict", STRICT))?;
    let agents = mesh.start_agents(&[]).await?;
    for server in [&mesh.far, &mesh.near] {
        talk(&mesh.client, server, Mesh::TCP_TARGET).await?;
        talk(&mesh.client, server, UNDECLARED).await?;
    }
    drop(agents);
    let _agents = mesh.start_agents(&["--same-node=tunnel"]).await?;
    talk(&mesh.client, &mesh.near, UNDECLARED).await?;
    Ok(())
}

#[tokio::test]
async fn one_port_may_be_left_out_of_strict() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let spec = format!(
        "{{selector: {{matchLabels: {{app: far}}}}, mtls: {{mode: STRICT}}, \
         portLevelMtls: {{{UNDECLARED}: {{mode: PERMISSIVE}}}}}}"
    );
    mesh.config.write("policies", &policy("default", "far", &spec))?;
    let _agents = mesh.start_agents(&[]).await?;
    takes_plaintext(&mesh, &mesh.far, &[UNDECLARED]).await?;
    refuses_plaintext(&mesh, &mesh.far, &[Mesh::TCP_TARGET, Mesh::HTTP_TARGET]).await?;
    // The selector names nobody else.
    takes_plaintext(&mesh, &mesh.near, &OPAQUE).await
}

#[tokio::test]
async fn a_namespaces_policy_goes_before_the_meshs_and_a_workloads_before_both()
-> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let shop = PodOptions { namespace: "shop".into(), ..PodOptions::default() };
    let in_shop = mesh.a.pod_with("till", shop)?;
    mesh.config.pod(&in_shop)?;
    let the_mesh = policy("root", "strict", STRICT);
    mesh.config.write("policies", &the_mesh)?;
    let flags = ["--root-namespace", "root"];
    let _agent = mesh.start_agent(&mesh.a, &flags).await?;
    refuses_plaintext(&mesh, &mesh.near, &[UNDECLARED]).await?;
    refuses_plaintext(&mesh, &in_shop, &[UNDECLARED]).await?;

    let namespace = policy("default", "permissive", PERMISSIVE);
    change(&mesh, &[&mesh.a], &[the_mesh.clone(), namespace.clone()]).await?;
    takes_plaintext(&mesh, &mesh.near, &[UNDECLARED]).await?;
    refuses_plaintext(&mesh, &in_shop, &[UNDECLARED]).await?;

    let workload = "{selector: {matchLabels: {app: near}}, mtls: {mode: STRICT}}";
    let workload = policy("default", "near", workload);
    change(&mesh, &[&mesh.a], &[the_mesh, namespace, workload]).await?;
    refuses_plaintext(&mesh, &mesh.near, &[UNDECLARED]).await
}

#[tokio::test]
async fn a_workload_without_mutual_tls_is_dialled_in_plaintext() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("policies", &policy("default", "disabled", "{mtls: {mode: DISABLE}}"))?;
    let _agents = mesh.start_agents(&[]).await?;
    let recording = Tcpdump::on_node(&mesh.b, "crossing", "tcp").await?;
    let mut talked = talk(&mesh.client, &mesh.far, UNDECLARED).await?;
    assert_eq!(talked.seen_client()?.ip(), mesh.client.ip());
    talked.exchange().await?;
    drop(talked);
    assert!(recording.stop().await?.contains("from the client"));
    takes_plaintext(&mesh, &mesh.far, &OPAQUE).await?;
    let both = |spans: &[Span]| {
        [Kind::Client, Kind::Server].iter().all(|kind| {
            let mut ours = spans.iter().filter(|span| span.kind == *kind);
            ours.any(|span| span.attribute("mesh.connection.security_policy") == "none")
        })
    };
    mesh.receiver.wait_for(PATIENCE, both).await?;

    // With mutual TLS back on, the same pods speak it.
    change(&mesh, &[&mesh.a, &mesh.b], &[policy("default", "disabled", STRICT)]).await?;
    talk(&mesh.client, &mesh.far, UNDECLARED).await?;
    Ok(())
}

/// Whether the connection ended from the other side.
async fn ends(stream: &mut TcpStream) -> anyhow::Result<bool> {
    let read = timeout(PATIENCE, stream.read_u8()).await?;
    Ok(read.is_err())
}

#[tokio::test]
async fn a_new_policy_closes_plaintext_connections_and_no_others() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let agents = mesh.start_agents(&[]).await?;
    let mut carried = talk(&mesh.client, &mesh.far, Mesh::TCP_TARGET).await?;
    let mut opaque = talk(&mesh.outsider, &mesh.far, Mesh::TCP_TARGET).await?;
    // Nobody has spoken yet, so that it is not known what it is.
    let listener = mesh.far.listen(UNDECLARED)?;
    let to = SocketAddr::new(mesh.far.ip(), UNDECLARED);
    let mut silent = mesh.outsider.connect(to).await?;
    timeout(PATIENCE, listener.accept()).await??;
    // A request that waits for its answer.
    let listener = mesh.far.listen(Mesh::HTTP_TARGET)?;
    let to = SocketAddr::new(mesh.far.ip(), Mesh::HTTP_TARGET);
    let mut http = Line::new(mesh.outsider.connect(to).await?);
    http.say("GET / HTTP/1.1\r\nHost: far\r\n\r\n").await?;
    let (_asked, _) = timeout(PATIENCE, listener.accept()).await??;

    mesh.config.write("policies", &policy("default", "strict", STRICT))?;
    assert!(ends(&mut opaque.client).await?);
    assert!(ends(&mut opaque.server).await?);
    assert!(ends(&mut silent).await?);
    assert!(ends(&mut http.into_stream()).await?);
    carried.exchange().await?;
    let cut = |line: &str| line.contains("inbound connection cut") && line.contains("STRICT");
    agents[1].process().output().line(PATIENCE, cut).await?;
    Ok(())
}

#[tokio::test]
async fn a_mistake_leaves_the_last_good_policy_in_force() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("policies", &policy("default", "strict", STRICT))?;
    let _agents = mesh.start_agents(&[]).await?;
    mesh.config.write("policies", &policy("default", "strict", "{mtls: {mode: PERMISIVE}}"))?;
    let error = eventually("the mistake is reported", || async {
        let status = Agent::status(&mesh.b)?;
        Ok(status["configuration"]["error"].as_str().map(str::to_owned))
    })
    .await?;
    let expected = "policies.yaml:4:21: spec.mtls.mode `PERMISIVE` is no mode (hint: did you mean \
                    `PERMISSIVE`?)";
    assert!(error.contains(expected), "{error}");
    refuses_plaintext(&mesh, &mesh.far, &[UNDECLARED]).await?;
    change(&mesh, &[&mesh.b], &[policy("default", "strict", PERMISSIVE)]).await?;
    takes_plaintext(&mesh, &mesh.far, &[UNDECLARED]).await
}

#[tokio::test]
async fn a_refusal_says_why_in_log_span_metrics_and_status() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("policies", &policy("default", "strict", STRICT))?;
    let agents = mesh.start_agents(&[]).await?;
    refuses_plaintext(&mesh, &mesh.far, &[UNDECLARED]).await?;
    let why = "plaintext to default/far port 9999 is refused: mutual TLS is STRICT by \
               PeerAuthentication default/strict, and the client is not this node's kubelet: no \
               socket of this node's own network is at the client's end (hint: ";
    let told = |line: &str| line.contains("inbound connection refused") && line.contains(why);
    agents[1].process().output().line(PATIENCE, told).await?;
    // One for each address of the pod.
    let of_server = |span: &&Span| span.kind == Kind::Server && span.service == "far";
    let spans = mesh
        .receiver
        .wait_for(PATIENCE, |spans| spans.iter().filter(of_server).count() == 2)
        .await?;
    for span in spans.iter().filter(of_server) {
        assert!(span.error.as_ref().is_some_and(|error| error.starts_with(why)), "{span:?}");
        assert_eq!(span.attribute("error.type"), "mutual_tls_required");
        assert_eq!(span.attribute("mesh.connection.close_reason"), "mutual_tls_required");
        assert_eq!(span.attribute("mesh.connection.received_bytes"), "0");
    }
    let metrics = Agent::metrics(&mesh.b).await?;
    let counted = "sluice_connections_refused_total{reason=\"mutual_tls_required\",\
                   client=\"elsewhere\"} 2";
    assert!(metrics.contains(counted), "{metrics}");
    let denied = |line: &&str| {
        line.starts_with("istio_tcp_connections_closed_total")
            && line.contains("response_flags=\"DENY\"")
            && line.contains("destination_workload=\"far\"")
    };
    assert!(metrics.lines().any(|line| denied(&line)), "{metrics}");
    let pods = &Agent::status(&mesh.b)?["pods"];
    assert_eq!(pods[0]["mutual_tls"], "STRICT by PeerAuthentication default/strict", "{pods}");
    Ok(())
}
