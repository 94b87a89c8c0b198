//! NetworkPolicies mean in the mesh what they meant before, on one node as well: what a CNI drops
//! between two pods does not get through by way of the agent.

use std::{collections::BTreeMap, net::SocketAddr, process::Command, time::Duration};

use anyhow::bail;
use serde_json::json;
use sluice_tests::{
    Agent, AgentOptions, Kind, KubeApi, KubeKind, Mesh, PATIENCE, Pod, Span, Talk, agent_program,
    eventually, refused, wait_until_captured, within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PORT: u16 = 9999;
/// How long a client whose packets are dropped goes on trying here.
const SILENCE: Duration = Duration::from_secs(1);

/// A NetworkPolicy that selects the pods of an app.
fn policy(app: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: default, name: {app}}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Ingress]}}\n"
    )
}

/// What a CNI makes of a policy that lets nobody reach `pod`: rules of the node, which see what is
/// on its way from one pod to another.
fn let_nobody_reach(mesh: &Mesh, pod: &Pod) -> anyhow::Result<()> {
    let [v4, v6] = pod.ips();
    for rule in [
        "add table inet cni".to_owned(),
        "add chain inet cni forward { type filter hook forward priority 0; }".to_owned(),
        format!("add rule inet cni forward ip daddr {v4} drop"),
        format!("add rule inet cni forward ip6 daddr {v6} drop"),
    ] {
        nft(mesh, &rule)?;
    }
    Ok(())
}

/// Lets what the node has seen before go on whatever rules come later, as a CNI does. Only from here
/// on does the kernel note what it sees.
fn let_the_known_go_on(mesh: &Mesh) -> anyhow::Result<()> {
    nft(
        mesh,
        "add table inet cni; \
         add chain inet cni forward { type filter hook forward priority 0; }; \
         add rule inet cni forward ct state established,related accept",
    )
}

fn nft(mesh: &Mesh, rules: &str) -> anyhow::Result<()> {
    let mut nft = Command::new("nft");
    nft.arg(rules);
    mesh.a.run(nft)?.success().map(drop)
}

/// Nobody reaches `near` from the client of its own node, by any of its addresses.
async fn nobody_gets_through(mesh: &Mesh) -> anyhow::Result<()> {
    let listener = mesh.near.listen(PORT)?;
    for ip in mesh.near.ips() {
        refused(&mesh.client, SocketAddr::new(ip, PORT), &listener, SILENCE).await?;
    }
    let listener = mesh.near.listen(Mesh::TCP_TARGET)?;
    for ip in mesh.service_ips(&mesh.near) {
        refused(&mesh.client, SocketAddr::new(ip, Mesh::TCP), &listener, SILENCE).await?;
    }
    Ok(())
}

async fn talk(mesh: &Mesh) -> anyhow::Result<Talk> {
    let listener = mesh.near.listen(PORT)?;
    Talk::start(&mesh.client, SocketAddr::new(mesh.near.ip(), PORT), &listener).await
}

/// Talks once, and returns what the client's span says of it: handed over or not.
async fn is_handed_over(mesh: &Mesh) -> anyhow::Result<bool> {
    let ours = |span: &&Span| span.kind == Kind::Client && span.service == "client";
    let before = mesh.receiver.spans().iter().filter(ours).count();
    drop(talk(mesh).await?);
    let told = |spans: &[Span]| spans.iter().filter(ours).count() > before;
    let spans = mesh.receiver.wait_for(PATIENCE, told).await?;
    let span = spans.iter().filter(ours).nth(before).expect("it was waited for");
    assert_eq!(span.attribute("mesh.connection.security_policy"), "mutual_tls");
    Ok(span.attribute("mesh.same_node") == "true")
}

#[tokio::test]
async fn whom_a_policy_keeps_out_is_kept_out_in_the_mesh_too() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("policy", &policy("near"))?;
    let_nobody_reach(&mesh, &mesh.near)?;
    // As it was before anybody joined.
    let listener = mesh.near.listen(PORT)?;
    let to = SocketAddr::new(mesh.near.ip(), PORT);
    refused(&mesh.client, to, &listener, SILENCE).await?;
    drop(listener);
    for flags in [&[][..], &["--same-node=tunnel"]] {
        let _agent = mesh.start_agent(&mesh.a, flags).await?;
        nobody_gets_through(&mesh).await?;
    }
    // Whoever wants it otherwise has to say so.
    let _agent = mesh.start_agent(&mesh.a, &["--same-node=handover"]).await?;
    talk(&mesh).await?;
    Ok(())
}

#[tokio::test]
async fn whom_a_new_policy_keeps_out_finds_no_connection_of_before() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&["--same-node=tunnel"]).await?;
    let_the_known_go_on(&mesh)?;
    for server in [&mesh.near, &mesh.far] {
        let to = SocketAddr::new(server.ip(), PORT);
        let listener = server.listen(PORT)?;
        // Goes on, as what a CNI has let through does.
        let mut before = Talk::start(&mesh.client, to, &listener).await?;
        nft(&mesh, &format!("add rule inet cni forward ip daddr {} drop", server.ip()))?;
        mesh.config.write("policy", &policy(server.app()))?;
        let known = || async {
            let seen = refused(&mesh.client, to, &listener, SILENCE).await;
            Ok(seen.is_ok().then_some(()))
        };
        eventually("nobody new gets through", known).await?;
        before.exchange().await?;
    }
    Ok(())
}

#[tokio::test]
async fn pods_are_handed_over_until_a_policy_selects_one_of_them() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("policy", &policy("far"))?;
    let _agent = mesh.start_agent(&mesh.a, &[]).await?;
    assert!(is_handed_over(&mesh).await?);
    for app in ["near", "client"] {
        mesh.config.write("policy", &policy(app))?;
        while is_handed_over(&mesh).await? {}
        mesh.config.write("policy", &policy("far"))?;
        while !is_handed_over(&mesh).await? {}
    }
    // One that the agent cannot read may select anybody.
    let cilium = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: one}\n";
    mesh.config.write("policy", cilium)?;
    while is_handed_over(&mesh).await? {}
    Ok(())
}

#[tokio::test]
async fn a_request_that_is_handed_over_goes_by_the_connection_that_was_opened_for_it()
-> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("policy", &policy("near"))?;
    let _agent = mesh.start_agent(&mesh.a, &["--same-node=handover"]).await?;
    let listener = mesh.near.listen(PORT)?;
    let mut client = mesh.client.connect(SocketAddr::new(mesh.near.ip(), PORT)).await?;
    // Of a server that nobody has declared to speak HTTP.
    let (mut server, _) = within(PATIENCE, "the connection", listener.accept()).await??;
    client.write_all(b"GET / HTTP/1.1\r\nhost: near\r\n\r\n").await?;
    tokio::select! {
        heard = within(PATIENCE, "the request", server.read_u8()) => assert_eq!(heard??, b'G'),
        _ = listener.accept() => bail!("the server was dialled twice"),
    }
    Ok(())
}

#[tokio::test]
async fn the_api_server_tells_of_policies_and_of_kinds_that_only_the_cni_understands()
-> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let mut api = KubeApi::new(&mesh.lab)?;
    api.namespace("default", &BTreeMap::new());
    for pod in [&mesh.client, &mesh.near] {
        api.pod(pod);
        pod.listen(0)?;
    }
    api.start()?;
    let start = async || {
        let options = mesh.agent_options(&[]);
        let options = AgentOptions { kubeconfig: Some(api.kubeconfig()), ..options };
        let agent = Agent::start(&mesh.a, &mesh.config, options).await?;
        for pod in [&mesh.client, &mesh.near] {
            wait_until_captured(&mesh.a, pod, true).await?;
        }
        anyhow::Ok(agent)
    };
    let agent = start().await?;
    while !is_handed_over(&mesh).await? {}
    let metadata = json!({"name": "near", "namespace": "default"});
    // Every pod of the namespace.
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"]});
    api.apply(KubeKind::NetworkPolicy, json!({"metadata": metadata, "spec": spec}));
    while is_handed_over(&mesh).await? {}
    api.delete(KubeKind::NetworkPolicy, "default", "near");
    while !is_handed_over(&mesh).await? {}
    drop(agent);

    api.install_group("crd.projectcalico.org");
    let agent = start().await?;
    assert!(!is_handed_over(&mesh).await?);
    let told = |line: &str| line.contains("crd.projectcalico.org");
    agent.process().output().line(PATIENCE, told).await?;
    assert!(!is_handed_over(&mesh).await?);
    Ok(())
}

#[tokio::test]
async fn status_says_why_pods_are_tunnelled_and_whom_policies_cut_off() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let port =
        policy("near").replace("policyTypes", "ingress: [{ports: [{port: 80}]}], policyTypes");
    mesh.config.write("policy", &port)?;
    let _agent = mesh.start_agent(&mesh.a, &[]).await?;
    let status = Agent::status(&mesh.a)?;
    assert!(status["same_node"].is_null(), "{status}");
    for pod in status["pods"].as_array().into_iter().flatten() {
        let says =
            |field: &str, what: &str| pod[field].as_str().is_some_and(|it| it.contains(what));
        let is_near = pod["name"] == "default/near";
        assert_eq!(says("same_node", "NetworkPolicy default/near selects it"), is_near, "{pod}");
        assert_eq!(says("cut", "NetworkPolicy default/near lets clients"), is_near, "{pod}");
    }
    let text = status_text(&mesh)?;
    assert!(text.contains("on this node tunnel: ") && text.contains("warning: "), "{text}");

    let cilium = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: one}\n";
    mesh.config.write("policy", cilium)?;
    let why = "between pods of this node tunnel: the cluster has policies that only its CNI";
    let told = || async { Ok(status_text(&mesh)?.contains(why).then_some(())) };
    eventually("the status says why", told).await
}

fn status_text(mesh: &Mesh) -> anyhow::Result<String> {
    let mut command = Command::new(agent_program()?);
    command.arg("status");
    mesh.a.run(command)?.success()
}
