//! The CA of a cluster and the agents that get their identities there: who gets which, and what
//! an outage or a new root does to traffic.

use std::{collections::BTreeMap, io::ErrorKind, net::SocketAddr, sync::Arc};

use anyhow::{Context, ensure};
use http::StatusCode;
use serde_json::Value;
use sluice_tests::{
    Agent, Ca, Cluster, HboneClient, Kind, Mesh, Node, PATIENCE, Pod, Span, Talk, Token,
    agent_token, eventually, expect_refusal, idle_at, jwt, refused, wait_until_captured, within,
};
use tokio::{net::TcpListener, sync::watch};
use tonic::Code;

const NAMESPACE: &str = "spiffe://cluster.local/ns/default/sa";

fn opaque(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.ip(), Mesh::TCP_TARGET)
}

/// What `sluice status` says of the pod `name`.
fn pod_status(node: &Node, name: &str) -> anyhow::Result<Option<Value>> {
    let status = Agent::status(node)?;
    let pods = status["pods"].as_array().context("no pods")?;
    Ok(pods.iter().find(|pod| pod["name"] == format!("default/{name}")).cloned())
}

/// Waits until `sluice status` says that `name` is captured and has no certificate, for the reason
/// `why`.
async fn says_why(node: &Node, name: &str, why: &str) -> anyhow::Result<()> {
    let last = std::cell::RefCell::new(Value::Null);
    eventually("the status tells why", || async {
        let Some(pod) = pod_status(node, name)? else { return Ok(None) };
        let told = pod["uncertified"].as_str().is_some_and(|told| told.contains(why));
        let found = told && pod["error"].is_null();
        last.replace(pod);
        Ok(found.then_some(()))
    })
    .await
    .with_context(|| format!("not `{why}` but {}", last.borrow()))
}

/// Waits until the pod `name` is captured and has its certificate.
async fn wait_until_certified(node: &Node, name: &str) -> anyhow::Result<()> {
    eventually("the pod has its certificate", || async {
        let Some(pod) = pod_status(node, name)? else { return Ok(None) };
        Ok((pod["error"].is_null() && pod["uncertified"].is_null()).then_some(()))
    })
    .await
}

/// `client` dials `server`, which must reset it and see nothing.
async fn is_reset(client: &Pod, server: &Pod, listener: &TcpListener) -> anyhow::Result<()> {
    let refused = refused(client, opaque(server), listener, PATIENCE).await?;
    let why = refused.context("neither answered nor refused")?.kind();
    ensure!(why == ErrorKind::ConnectionReset, "{why}");
    Ok(())
}

fn serials(node: &Node) -> anyhow::Result<Vec<String>> {
    let status = Agent::status(node)?;
    let certificates = status["certificates"].as_array().context("no certificates")?;
    Ok(certificates.iter().map(|one| one["serial"].to_string()).collect())
}

async fn refusals(ca: &Ca, reason: &str) -> anyhow::Result<u64> {
    ca.metric(&format!("sluice_ca_requests_refused_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn agents_talk_with_identities_from_the_ca_and_no_node_has_its_key() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let ca = cluster.start_ca(cluster.ca_node("ca")?, &[]).await?;
    let _agents = cluster.start_agents(&ca, &[]).await?;
    let Mesh { client, near, far, a, .. } = &cluster.mesh;
    for server in [near, far] {
        let listener = server.listen(Mesh::TCP_TARGET)?;
        let talk = Talk::start(client, opaque(server), &listener).await?;
        assert_eq!(talk.seen_client()?.ip(), client.ip());
    }
    assert_eq!(ca.metric("sluice_ca_certificates_issued_total").await?, 3);
    let issued = ca.output().line(PATIENCE, |line| {
        line.contains("certificate issued") && line.contains(&format!("{NAMESPACE}/far"))
    });
    assert!(issued.await?.contains("sluice-system/sluice-agent (pod sluice-agent-node-b on"));
    let requests = Agent::counter(a, "sluice_certificate_requests_total{outcome=\"issued\"}")?;
    assert_eq!(requests, 2);

    let secret = cluster.api.object(cluster.secret_path()).context("no Secret")?;
    assert!(secret["data"]["roots.json"].is_string());
    assert!(!cluster.mesh.lab.directory().join("ca").exists(), "an agent made a CA of its own");
    Ok(())
}

#[tokio::test]
async fn a_stolen_agent_token_is_worth_nothing_on_another_node() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let ca = cluster.start_ca(cluster.ca_node("ca")?, &[]).await?;
    let Mesh { a, b, config, .. } = &cluster.mesh;
    let stolen = cluster.agent_token(a);
    cluster.hand_token(b, &stolen)?;
    let flags = cluster.flags(&ca, b);
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let agent = Agent::launch(b, config, cluster.mesh.agent_options(&flags))?;

    let why = format!(
        "sluice-system/sluice-agent (pod sluice-agent-node-a on node node-a) asked for \
         {NAMESPACE}/far, of which no pod of the mesh runs on its node"
    );
    let logged = ca
        .output()
        .line(PATIENCE, |line| line.contains("certificate refused") && line.contains(&why));
    logged.await?;
    assert!(refusals(&ca, "not_on_node").await? >= 1);
    assert_eq!(ca.metric("sluice_ca_certificates_issued_total").await?, 0);
    says_why(b, "far", &why).await?;

    // The agent of that node, by its own token, which it reads anew.
    cluster.hand_token(b, &cluster.agent_token(b))?;
    agent.ready(b).await?;
    wait_until_certified(b, "far").await
}

#[tokio::test]
async fn whoever_is_no_agent_gets_its_own_identity_or_none() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let ca = cluster.start_ca(cluster.ca_node("ca")?, &[]).await?;
    let client = format!("{NAMESPACE}/client");
    let far = format!("{NAMESPACE}/far");
    let right = || agent_token("node-a");
    let ordinary = || Token { account: "default/client".into(), ..right() };
    let tokens = [
        ("agent", right()),
        ("other-audience", Token { audience: "https://kubernetes.default.svc".into(), ..right() }),
        ("expired", Token { expired: true, ..right() }),
        ("unbound", Token { pod: None, node: None, ..right() }),
        ("nowhere", Token { node: None, ..right() }),
        ("ordinary", ordinary()),
        ("namesake", Token { account: "default/sluice-agent".into(), ..right() }),
    ];
    let mut texts: BTreeMap<_, _> =
        tokens.map(|(name, token)| (name, cluster.api.token(name, token))).into();
    texts.insert("forged", jwt("forged", &right()));
    texts.insert("made-up", "made-up".into());
    const IMPLAUSIBLE: &str = "implausible_token";
    let foreign = "spiffe://elsewhere/ns/default/sa/client";
    let attempts = [
        (None, &*client, Code::Unauthenticated, "no bearer token", "no_token"),
        (Some("forged"), &client, Code::Unauthenticated, "invalid bearer token", "token"),
        // The API server is not even asked.
        (Some("made-up"), &client, Code::Unauthenticated, "no service-account token", IMPLAUSIBLE),
        (Some("other-audience"), &client, Code::Unauthenticated, "another audience", IMPLAUSIBLE),
        (Some("expired"), &client, Code::Unauthenticated, "has expired", IMPLAUSIBLE),
        (Some("unbound"), &client, Code::Unauthenticated, "bound to no pod", "no_pod"),
        (Some("nowhere"), &client, Code::PermissionDenied, "on which node", "no_node"),
        (Some("ordinary"), &far, Code::PermissionDenied, "its own identity only", "other_identity"),
        (Some("namesake"), &client, Code::PermissionDenied, "own identity only", "other_identity"),
        (Some("agent"), &far, Code::PermissionDenied, "runs on its node", "not_on_node"),
        (Some("agent"), foreign, Code::PermissionDenied, "trust domain", "trust_domain"),
        (Some("agent"), "far", Code::InvalidArgument, "is not a workload identity", "request"),
    ];
    for (token, identity, code, why, reason) in attempts {
        let before = refusals(&ca, reason).await?;
        let text = token.map(|name| &*texts[name]);
        let answer = cluster.ask_ca(&ca, text, Some(identity)).await?;
        let what = || format!("{token:?} asked for {identity}");
        expect_refusal(answer, code, why).with_context(what)?;
        assert_eq!(refusals(&ca, reason).await?, before + 1, "{reason}");
    }
    assert_eq!(ca.metric("sluice_ca_certificates_issued_total").await?, 0);

    for (token, identity) in
        [("ordinary", Some(&*client)), ("ordinary", None), ("agent", Some(&*client))]
    {
        let issued = cluster.ask_ca(&ca, Some(&texts[token]), identity).await??;
        assert_eq!(issued.chain().len(), 2, "the certificate and its root");
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_that_has_just_been_bound_is_not_refused_for_an_older_view() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let ca = cluster.start_ca(cluster.ca_node("ca")?, &[]).await?;
    let token = cluster.agent_token(&cluster.mesh.a);
    let late = cluster.mesh.a.pod("late")?;
    let identity = format!("{NAMESPACE}/late");
    let answer = cluster.ask_ca(&ca, Some(&token), Some(&identity)).await?;
    expect_refusal(answer, Code::PermissionDenied, "runs on its node")?;
    cluster.api.pod(&late);
    cluster.ask_ca(&ca, Some(&token), Some(&identity)).await??;
    Ok(())
}

#[tokio::test]
async fn an_outage_of_the_ca_holds_up_new_identities_alone() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let ca = cluster.start_ca(cluster.ca_node("ca")?, &[]).await?;
    let _agents = cluster.start_agents(&ca, &[]).await?;
    let Mesh { client, far, a, config, .. } = &cluster.mesh;
    let listener = far.listen(Mesh::TCP_TARGET)?;
    let mut running = Talk::start(client, opaque(far), &listener).await?;

    let node = ca.kill();
    let late = a.pod("late")?;
    cluster.api.pod(&late);
    config.pod(&late)?;
    says_why(a, "late", "no certificate for spiffe://cluster.local/ns/default/sa/late").await?;
    let failed = "sluice_certificate_requests_total{outcome=\"failed\"}";
    ensure!(Agent::counter(a, failed)? >= 1, "no failed request was counted");
    running.exchange().await?;
    Talk::start(client, opaque(far), &listener).await?.exchange().await?;

    let _ca = cluster.start_ca(node, &[]).await?;
    wait_until_certified(a, "late").await?;
    Talk::start(&late, opaque(far), &listener).await?;
    running.exchange().await
}

#[tokio::test]
async fn a_pod_without_a_certificate_is_let_neither_in_nor_out() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let ca = cluster.start_ca(cluster.ca_node("ca")?, &[]).await?;
    let [agent, _b] = cluster.start_agents(&ca, &[]).await?;
    let Mesh { client, near, far, outsider, a, config, receiver, .. } = &cluster.mesh;
    let node = ca.kill();
    let late = a.pod("late")?;
    cluster.api.pod(&late);
    config.pod(&late)?;
    says_why(a, "late", "no certificate for").await?;

    // Out: to another node, to a pod of its own, to one outside the mesh.
    for server in [far, near, outsider] {
        let listener = server.listen(Mesh::TCP_TARGET)?;
        is_reset(&late, server, &listener).await?;
    }
    // In: from another node, from its own, and in plaintext, which it would take otherwise.
    let listener = late.listen(Mesh::TCP_TARGET)?;
    for from in [far, client, outsider] {
        is_reset(from, &late, &listener).await?;
    }
    for client in ["own", "mesh", "plaintext"] {
        let series = format!(
            "sluice_connections_refused_total{{reason=\"certificate_missing\",client=\"{client}\"}}"
        );
        ensure!(Agent::counter(a, &series)? >= 1, "{series}");
    }
    let metrics = Agent::metrics(a).await?;
    ensure!(metrics.contains("sluice_pods{state=\"uncertified\"} 1"), "{metrics}");
    let said = agent.process().output().line(PATIENCE, |line| {
        line.contains("outbound connection refused") && line.contains("no certificate for")
    });
    said.await?;
    let is_refusal = |kind: Kind| {
        move |span: &Span| {
            span.kind == kind && span.attribute("error.type") == "certificate_missing"
        }
    };
    for kind in [Kind::Client, Kind::Server] {
        receiver.wait_for(PATIENCE, |spans| spans.iter().any(is_refusal(kind))).await?;
    }

    let _ca = cluster.start_ca(node, &[]).await?;
    wait_until_certified(a, "late").await?;
    for from in [far, client, outsider] {
        Talk::start(from, opaque(&late), &listener).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_dead_ca_keeps_no_pod_from_being_captured_or_let_go() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let ca = cluster.start_ca(cluster.ca_node("ca")?, &[]).await?;
    let _agents = cluster.start_agents(&ca, &[]).await?;
    let Mesh { client, a, config, .. } = &cluster.mesh;
    // It takes connections and never says a word.
    ca.pause()?;
    let pods = ["late-1", "late-2", "late-3"].map(|name| a.pod(name));
    for pod in pods {
        let pod = pod?;
        cluster.api.pod(&pod);
        config.pod(&pod)?;
        wait_until_captured(a, &pod, true).await?;
        says_why(a, pod.name(), "there is no answer yet").await?;
    }
    config.remove_pod(client)?;
    wait_until_captured(a, client, false).await
}

#[tokio::test]
async fn two_replicas_that_start_at_once_share_one_root() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    // Both are told that there is no root, so both make one.
    cluster.api.gate(cluster.secret_path(), 2);
    let one = cluster.launch_ca(cluster.ca_node("ca-1")?, &[])?;
    let other = cluster.launch_ca(cluster.ca_node("ca-2")?, &[])?;
    tokio::try_join!(one.ready(), other.ready())?;
    assert!(cluster.api.conflicts() >= 1, "nobody came second");
    assert_eq!(cluster.roots()?.len(), 1);
    let token = cluster.agent_token(&cluster.mesh.a);
    let identity = format!("{NAMESPACE}/client");
    let mut roots = Vec::new();
    for ca in [&one, &other] {
        let issued = cluster.ask_ca(ca, Some(&token), Some(&identity)).await??;
        roots.push(issued.chain().last().cloned());
    }
    assert_eq!(roots[0], roots[1]);
    Ok(())
}

/// Connects to `far` again and again until told to stop, through the agents and by hand with a
/// certificate that was issued just before; how often that worked. Every connection must.
async fn traffic(
    cluster: Arc<Cluster>,
    ca: Arc<Ca>,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<usize> {
    let Mesh { client, far, a, outsider, .. } = &cluster.mesh;
    let (token, identity) = (cluster.agent_token(a), format!("{NAMESPACE}/client"));
    let mut count = 0;
    while !*stop.borrow() {
        let what = || format!("after {count} connections");
        Talk::start(client, opaque(far), &listener).await.with_context(what)?;
        // The agents' tunnel is one connection for as long as both live; this is a new one.
        let issued = cluster.ask_ca(&ca, Some(&token), Some(&identity)).await??;
        let mut tunnel = HboneClient::connect(outsider, far, Some(issued)).await?;
        let opened = tunnel.open(opaque(far)).await.with_context(what)?;
        ensure!(opened.0 == StatusCode::OK, "{} {}", opened.0, what());
        within(PATIENCE, "accept", listener.accept()).await??;
        count += 1;
    }
    Ok(count)
}

#[tokio::test]
async fn a_new_root_takes_over_while_traffic_goes_on() -> anyhow::Result<()> {
    /// Certificates of this life are renewed often enough to see both roots at work.
    const LIFETIME: &str = "20s";
    let cluster = Arc::new(Cluster::new()?);
    let flags = ["--rotation-overlap", "3s", "--certificate-lifetime", LIFETIME];
    let ca = Arc::new(cluster.start_ca(cluster.ca_node("ca")?, &flags).await?);
    let _agents = cluster.start_agents(&ca, &["--certificate-lifetime", LIFETIME]).await?;
    let Mesh { client, far, a, b, .. } = &cluster.mesh;
    let listener = far.listen(Mesh::TCP_TARGET)?;
    let mut running = Talk::start(client, opaque(far), &listener).await?;
    let (stop, stopped) = watch::channel(false);
    let traffic = tokio::spawn(traffic(cluster.clone(), ca.clone(), listener, stopped));

    let [old] = <[_; 1]>::try_from(cluster.roots()?).expect("one root");
    let said = cluster.run(&ca, "rotate").await?;
    assert!(said.contains("a new one to be published"), "{said}");
    let again = cluster.run(&ca, "rotate").await.err().context("two rotations at once")?;
    assert!(format!("{again:#}").contains("a rotation is under way"), "{again:#}");

    // The new one is published, and goes on last; what signs first.
    let new = eventually("the new root is published", || async {
        let roots = cluster.roots()?;
        ensure!(roots[0] == old, "the new root signs before its time");
        Ok(roots.get(1).cloned())
    })
    .await?;
    eventually("the new root signs", || async {
        Ok((cluster.roots()? == [new.clone(), old.clone()]).then_some(()))
    })
    .await?;

    // Both agents renew with it, one after the other, and twice: the mesh is through.
    for node in [a, b, a, b] {
        let before = serials(node)?;
        eventually("the certificates are renewed", || async {
            Ok(serials(node)?.iter().all(|serial| !before.contains(serial)).then_some(()))
        })
        .await?;
        running.exchange().await?;
    }
    stop.send_replace(true);
    let count = traffic.await??;
    println!("{count} connections, none failed");
    ensure!(count > 0, "no traffic");
    Ok(())
}

#[tokio::test]
async fn a_ca_that_lost_its_roots_goes_on_with_those_it_had() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let ca = cluster.start_ca(cluster.ca_node("ca")?, &[]).await?;
    let token = cluster.agent_token(&cluster.mesh.a);
    let identity = format!("{NAMESPACE}/client");
    let before = cluster.ask_ca(&ca, Some(&token), Some(&identity)).await??;
    cluster.api.remove(cluster.secret_path());
    let said = ca.output().line(PATIENCE, |line| line.contains("the Secret is gone"));
    said.await?;
    let after = cluster.ask_ca(&ca, Some(&token), Some(&identity)).await??;
    assert_eq!(before.chain().last(), after.chain().last(), "another root signs");
    assert!(cluster.api.object(cluster.secret_path()).is_none());
    Ok(())
}

#[tokio::test]
async fn a_ca_that_starts_without_the_secret_begins_no_other_mesh_unasked() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let ca = cluster.start_ca(cluster.ca_node("ca")?, &[]).await?;
    let token = cluster.agent_token(&cluster.mesh.a);
    let identity = format!("{NAMESPACE}/client");
    let before = cluster.roots()?;
    let node = ca.kill();
    cluster.api.remove(cluster.secret_path());

    let ca = cluster.launch_ca(node, &[])?;
    ca.output().line(PATIENCE, |line| line.contains("`sluice ca new-root`")).await?;
    assert!(cluster.api.object(cluster.secret_path()).is_none(), "it made a root");
    assert_eq!(cluster.roots()?, before);

    let said = cluster.run(&ca, "new-root").await?;
    assert!(said.contains("A new CA has begun"), "{said}");
    ca.ready().await?;
    // What agents have is still trusted.
    let roots = cluster.roots()?;
    assert_eq!(roots[1..], before);
    let issued = cluster.ask_ca(&ca, Some(&token), Some(&identity)).await??;
    assert_eq!(issued.chain().last(), roots.first());
    let again = cluster.run(&ca, "new-root").await.err().context("a new CA beside a sound one")?;
    assert!(format!("{again:#}").contains("`sluice ca rotate`"), "{again:#}");
    Ok(())
}

#[tokio::test]
async fn a_crowd_at_the_cas_door_keeps_no_agent_out() -> anyhow::Result<()> {
    /// More than the CA serves at a time.
    const CROWD: usize = 1100;
    let cluster = Cluster::new()?;
    let ca = cluster.start_ca(cluster.ca_node("ca")?, &[]).await?;
    let roots = cluster.roots()?;
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(idle_at(&ca, &cluster.mesh.outsider, &roots).await?);
    }
    let token = cluster.agent_token(&cluster.mesh.a);
    let identity = format!("{NAMESPACE}/client");
    cluster.ask_ca(&ca, Some(&token), Some(&identity)).await??;
    // Nor does who asks for nothing stay, however politely its pings are answered.
    for idle in crowd {
        within(PATIENCE, "the end of a connection that asks for nothing", idle.closed()).await?;
    }
    Ok(())
}
