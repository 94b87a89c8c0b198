//! The kubelet's probes, also of pods that insist on mutual TLS, and who does not pass for the
//! kubelet.

use std::{fs, io, net::SocketAddr, os::unix::fs::MetadataExt, process::Command, time::Duration};

use anyhow::Context;
use sluice_tests::{
    Agent, AgentOptions, Footprint, HostPod, HostProcess, Mesh, Node, PATIENCE, Pod, Span, Talk,
    agent_program, bpftool, capture_events, eventually,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// A port that no Service says anything about.
const PORT: u16 = 9999;
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                      metadata: {namespace: default, name: strict}\nspec: {mtls: {mode: STRICT}}\n";

/// A mesh under STRICT.
fn strict() -> anyhow::Result<Mesh> {
    let mesh = Mesh::new()?;
    mesh.config.write("policies", STRICT)?;
    Ok(mesh)
}

fn at(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.ip(), PORT)
}

/// A probe of a port, by whoever `client` connects for.
async fn passes(client: io::Result<TcpStream>, listener: &TcpListener) -> anyhow::Result<Talk> {
    Talk::over(client?, listener).await
}

/// The client is reset, and the server has seen nothing.
async fn is_reset(client: io::Result<TcpStream>, listener: &TcpListener) -> anyhow::Result<()> {
    let asked = async {
        let mut stream = client?;
        stream.write_all(b"are you well?").await?;
        stream.read_u8().await
    };
    let told = timeout(PATIENCE, asked).await?;
    assert_eq!(told.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
    let seen = timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(seen.is_err(), "the server saw a connection: {seen:?}");
    Ok(())
}

/// Waits until the agent knows the kubelet's cgroup, or knows none.
async fn is_known(node: &Node, kubelet: Option<&HostPod>) -> anyhow::Result<()> {
    let expected = kubelet.map(|kubelet| kubelet.cgroup().to_string_lossy());
    let what = format!("the kubelet is known to be in {expected:?}");
    let same = || async {
        Ok((Agent::status(node)?["kubelet_cgroup"].as_str() == expected.as_deref()).then_some(()))
    };
    eventually(&what, same).await
}

/// Nobody accepts for the application.
fn is_refused(client: io::Result<TcpStream>) {
    assert_eq!(client.map_err(|error| error.kind()).err(), Some(io::ErrorKind::ConnectionRefused));
}

/// Probes until the application answers for itself, where nobody listens.
async fn until_refused(kubelet: &HostPod, to: SocketAddr) -> anyhow::Result<()> {
    let refused = || async {
        Ok(match kubelet.connect(to).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Some(()),
            // The agent accepts, and finds out that nobody else does.
            _ => None,
        })
    };
    eventually("nobody accepts a probe", refused).await
}

/// The reason is in the log and, as one word, in the metrics.
async fn is_said(agent: &Agent, node: &Node, why: &str, word: &str) -> anyhow::Result<()> {
    let said = |line: &str| {
        line.contains("inbound connection refused")
            && line.contains("mutual TLS is STRICT by PeerAuthentication default/strict")
            && line.contains(why)
    };
    agent.process().output().line(PATIENCE, said).await?;
    let metrics = Agent::metrics(node).await?;
    let refused = "sluice_connections_refused_total{reason=\"mutual_tls_required\",client=";
    assert!(metrics.contains(&format!("{refused}\"{word}\"}} 1\n")), "{metrics}");
    assert!(metrics.contains("sluice_probe_connections_total 0\n"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn the_kubelet_reaches_the_application_itself_or_is_refused_by_the_kernel()
-> anyhow::Result<()> {
    for mesh in [strict()?, Mesh::new()?] {
        let kubelet = HostPod::on(&mesh.b, "kubelet", HostProcess::KUBELET)?;
        let _agent = mesh.start_agent(&mesh.b, &[]).await?;
        is_known(&mesh.b, Some(&kubelet)).await?;
        for (node, pod) in mesh.b.ips().into_iter().zip(mesh.far.ips()) {
            for port in [Mesh::TCP_TARGET, Mesh::HTTP_TARGET, PORT] {
                let to = SocketAddr::new(pod, port);
                is_refused(kubelet.connect(to).await);
                let listener = mesh.far.listen(port)?;
                let talk = passes(kubelet.connect(to).await, &listener).await?;
                assert_eq!(talk.seen_client()?.ip(), node);
            }
        }
        assert_eq!(capture_events(&mesh.b, "passed_in")?, 12);
        assert_eq!(capture_events(&mesh.b, "steered_in")?, 0, "the agent took one");
    }
    Ok(())
}

#[tokio::test]
async fn nobody_else_gets_past_the_agent_with_the_kubelet() -> anyhow::Result<()> {
    let mesh = strict()?;
    let kubelet = HostPod::on(&mesh.b, "kubelet", HostProcess::KUBELET)?;
    let agent = mesh.start_agent(&mesh.b, &[]).await?;
    is_known(&mesh.b, Some(&kubelet)).await?;
    let listener = mesh.far.listen(PORT)?;
    let to = at(&mesh.far);
    // Of another user, though in the kubelet's own cgroup.
    is_reset(kubelet.connect_as(65534, to).await, &listener).await?;
    is_said(&agent, &mesh.b, "of user 65534 of this node", "not_root").await?;
    let process = HostProcess { in_pod: true, ..HostProcess::KUBELET };
    let pod = HostPod::on(&mesh.b, "on-host", process)?;
    is_reset(pod.connect(to).await, &listener).await?;
    is_said(&agent, &mesh.b, &format!("of pod {}", pod.uid()), "pod").await?;
    is_reset(mesh.a.connect(to).await, &listener).await?;
    is_said(&agent, &mesh.b, "no socket of this node's own network", "elsewhere").await?;
    assert_eq!(capture_events(&mesh.b, "passed_in")?, 0);
    // Root of the node elsewhere gets in by the agent, which asks whose its socket is.
    drop(passes(mesh.b.connect(to).await, &listener).await?);
    assert_eq!(capture_events(&mesh.b, "passed_in")?, 0);
    drop(passes(kubelet.connect(to).await, &listener).await?);
    assert_eq!(capture_events(&mesh.b, "passed_in")?, 1);
    Ok(())
}

#[tokio::test]
async fn a_pod_may_call_itself_kubelet_and_is_none() -> anyhow::Result<()> {
    let mesh = strict()?;
    let process = HostProcess { in_pod: true, ..HostProcess::KUBELET };
    let pod = HostPod::on(&mesh.b, "on-host", process)?;
    let somebody = HostProcess { user: 65534, ..HostProcess::KUBELET };
    let _somebody = HostPod::on(&mesh.b, "somebody", somebody)?;
    let agent = mesh.start_agent(&mesh.b, &[]).await?;
    let why = |line: &str| line.contains("the kubelet is not known") && line.contains("is a pod's");
    agent.process().output().line(PATIENCE, why).await?;
    is_known(&mesh.b, None).await?;
    let listener = mesh.far.listen(PORT)?;
    is_reset(pod.connect(at(&mesh.far)).await, &listener).await
}

#[tokio::test]
async fn a_kubelet_that_is_started_anew_is_known_again() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let agent = mesh.start_agent(&mesh.b, &[]).await?;
    is_known(&mesh.b, None).await?;
    let start = || HostPod::on(&mesh.b, "kubelet", HostProcess::KUBELET);
    let mut kubelet = start()?;
    until_refused(&kubelet, at(&mesh.far)).await?;
    // The program that lets the kubelet pass is at work before its link is pinned.
    is_known(&mesh.b, Some(&kubelet)).await?;
    let before = Footprint::of(&mesh.b, &agent)?;
    for _ in 0..2 {
        // In a cgroup of the same name, which is another.
        kubelet.stop()?;
        kubelet = start()?;
        until_refused(&kubelet, at(&mesh.far)).await?;
        is_known(&mesh.b, Some(&kubelet)).await?;
    }
    before.is_back(&mesh.b, &agent).await
}

#[tokio::test]
async fn probes_go_on_between_two_agents_and_nothing_of_it_is_left() -> anyhow::Result<()> {
    let mesh = strict()?;
    let kubelet = HostPod::on(&mesh.b, "kubelet", HostProcess::KUBELET)?;
    let cgroup = fs::metadata(kubelet.cgroup())?.ino();
    let attached = || -> anyhow::Result<usize> {
        let links = bpftool::list(&["link", "show"])?;
        Ok(links.iter().filter(|link| link["cgroup_id"].as_u64() == Some(cgroup)).count())
    };
    let mut agent = mesh.start_agent(&mesh.b, &[]).await?;
    is_known(&mesh.b, Some(&kubelet)).await?;
    assert_eq!(attached()?, 1);
    agent.kill9();
    // A pod whose agent is gone is none the less well.
    is_refused(kubelet.connect(at(&mesh.far)).await);
    let listener = mesh.far.listen(PORT)?;
    drop(passes(kubelet.connect(at(&mesh.far)).await, &listener).await?);
    drop(listener);

    let mut next = mesh.start_agent(&mesh.b, &[]).await?;
    is_known(&mesh.b, Some(&kubelet)).await?;
    is_refused(kubelet.connect(at(&mesh.far)).await);
    assert_eq!(attached()?, 1);
    next.kill9();
    let mut uninstall = Command::new(agent_program()?);
    uninstall.arg("uninstall").arg("--bpffs").arg(mesh.b.bpffs());
    mesh.b.run(uninstall)?.success()?;
    assert!(!mesh.b.bpffs().exists(), "pins are left");
    assert_eq!(attached()?, 0);

    let mut last = mesh.start_agent(&mesh.b, &[]).await?;
    is_known(&mesh.b, Some(&kubelet)).await?;
    let link = bpftool::pin(&mesh.b, "links", "sluice_kubelet")?;
    last.kill9();
    kubelet.stop()?;
    let _without = mesh.start_agent(&mesh.b, &[]).await?;
    eventually("the former kubelet's link is gone", || async { Ok((!link.exists()).then_some(())) })
        .await
}

#[tokio::test]
async fn probes_of_every_kind_pass_over_both_families() -> anyhow::Result<()> {
    let mesh = strict()?;
    let _agent = mesh.start_agent(&mesh.b, &[]).await?;
    for ip in mesh.far.ips() {
        for port in [Mesh::TCP_TARGET, Mesh::HTTP_TARGET, PORT] {
            let listener = mesh.far.listen(port)?;
            let talk = passes(mesh.b.connect(SocketAddr::new(ip, port)).await, &listener).await?;
            // The application sees who asks.
            assert_eq!(talk.seen_client()?.ip(), talk.client.local_addr()?.ip());
        }
    }
    let metrics = Agent::metrics(&mesh.b).await?;
    assert!(metrics.contains("sluice_probe_connections_total 6\n"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn a_probe_of_a_port_where_nobody_listens_fails() -> anyhow::Result<()> {
    let mesh = strict()?;
    let _agent = mesh.start_agent(&mesh.b, &[]).await?;
    let elsewhere = mesh.far.listen(PORT + 1)?;
    is_reset(mesh.b.connect(at(&mesh.far)).await, &elsewhere).await
}

#[tokio::test]
async fn a_probe_leaves_no_span() -> anyhow::Result<()> {
    let mesh = strict()?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.far.listen(PORT)?;
    drop(passes(mesh.b.connect(at(&mesh.far)).await, &listener).await?);
    let http = mesh.far.listen(Mesh::HTTP_TARGET)?;
    let mut asking = mesh.b.connect(SocketAddr::new(mesh.far.ip(), Mesh::HTTP_TARGET)).await?;
    asking.write_all(b"GET /healthz HTTP/1.1\r\nHost: far\r\nConnection: close\r\n\r\n").await?;
    let (mut answering, _) = timeout(PATIENCE, http.accept()).await??;
    let mut asked = [0; 12];
    timeout(PATIENCE, answering.read_exact(&mut asked)).await??;
    assert_eq!(&asked, b"GET /healthz");
    drop((asking, answering));
    // What the mesh carried afterwards is told of, by both sides.
    drop(Talk::start(&mesh.client, at(&mesh.far), &listener).await?);
    let both = |spans: &[Span]| spans.len() >= 2;
    let spans = mesh.receiver.wait_for(PATIENCE, both).await?;
    let of_mesh = |span: &Span| !span.attribute("mesh.source.principal").is_empty();
    assert!(spans.iter().all(of_mesh), "{spans:?}");
    Ok(())
}

#[tokio::test]
async fn a_pod_on_the_nodes_network_is_not_the_kubelet() -> anyhow::Result<()> {
    let mesh = strict()?;
    let agent = mesh.start_agent(&mesh.b, &[]).await?;
    let listener = mesh.far.listen(PORT)?;
    let process = HostProcess { in_pod: true, ..HostProcess::default() };
    let pod = HostPod::on(&mesh.b, "on-host", process)?;
    is_reset(pod.connect(at(&mesh.far)).await, &listener).await?;
    let why = format!("of pod {}, which uses the node's network", pod.uid());
    is_said(&agent, &mesh.b, &why, "pod").await
}

#[tokio::test]
async fn another_user_of_the_node_is_not_the_kubelet() -> anyhow::Result<()> {
    let mesh = strict()?;
    let agent = mesh.start_agent(&mesh.b, &[]).await?;
    let listener = mesh.far.listen(PORT)?;
    let process = HostProcess { user: 65534, ..HostProcess::default() };
    let somebody = HostPod::on(&mesh.b, "somebody", process)?;
    is_reset(somebody.connect(at(&mesh.far)).await, &listener).await?;
    is_said(&agent, &mesh.b, "of user 65534 of this node", "not_root").await
}

#[tokio::test]
async fn root_of_another_node_is_not_the_kubelet() -> anyhow::Result<()> {
    let mesh = strict()?;
    let agent = mesh.start_agent(&mesh.b, &[]).await?;
    let listener = mesh.far.listen(PORT)?;
    is_reset(mesh.a.connect(at(&mesh.far)).await, &listener).await?;
    is_said(&agent, &mesh.b, "no socket of this node's own network", "elsewhere").await
}

#[tokio::test]
async fn the_nodes_address_alone_proves_nothing() -> anyhow::Result<()> {
    let mesh = strict()?;
    let agent = mesh.start_agent(&mesh.a, &[]).await?;
    let node = mesh.a.ips()[0];
    // As CNI plugins do it to what leaves a pod: it arrives with the node's address.
    for rule in [
        "add table ip lab",
        "add chain ip lab post { type nat hook postrouting priority 100; }",
        &format!("add rule ip lab post ip saddr {} snat to {node}", mesh.outsider.ip()),
    ] {
        let mut nft = Command::new("nft");
        nft.args(rule.split(' '));
        mesh.a.run(nft)?.success()?;
    }
    // First in a port that is not STRICT, to see whose address it is.
    let exception = STRICT.replace(
        "{mtls: {mode: STRICT}}",
        "{selector: {matchLabels: {app: near}}, mtls: {mode: STRICT}, \
         portLevelMtls: {7000: {mode: PERMISSIVE}}}",
    );
    let version = || anyhow::Ok(Agent::status(&mesh.a)?["configuration"]["version"].as_u64());
    let before = version()?;
    mesh.config.write("policies", &exception)?;
    let is_newer = || async { Ok((version()? > before).then_some(())) };
    eventually("the exception is in force", is_newer).await?;
    let open = mesh.near.listen(Mesh::TCP_TARGET)?;
    let to = SocketAddr::new(mesh.near.ip(), Mesh::TCP_TARGET);
    let outsider = Talk::start(&mesh.outsider, to, &open).await.context("an open port")?;
    assert_eq!(outsider.seen_client()?.ip(), node);
    let host = passes(mesh.a.connect(to).await, &open).await.context("an open port, the node")?;
    assert_eq!(host.seen_client()?.ip(), node);

    let listener = mesh.near.listen(PORT)?;
    let client = mesh.outsider.connect(at(&mesh.near)).await;
    is_reset(client, &listener).await.context("a STRICT port")?;
    is_said(&agent, &mesh.a, "no socket of this node's own network", "elsewhere").await?;
    let host = passes(mesh.a.connect(at(&mesh.near)).await, &listener).await;
    drop(host.context("a STRICT port, the node")?);
    Ok(())
}

#[tokio::test]
async fn where_the_cgroup_is_not_seen_the_process_is_asked() -> anyhow::Result<()> {
    let mesh = strict()?;
    let agent = mesh.start_agent(&mesh.b, &[]).await?;
    let listener = mesh.far.listen(PORT)?;
    let beside = HostProcess { out_of_sight: true, ..HostProcess::default() };
    let asks = format!("exec 3<>/dev/tcp/{}/{PORT}; cat <&3", mesh.far.ip());
    let asking = |host: &HostPod| {
        let mut bash = Command::new("bash");
        bash.args(["-c", &asks]);
        host.spawn(bash)
    };
    let pod = HostPod::on(&mesh.b, "hidden-pod", HostProcess { in_pod: true, ..beside })?;
    let mut refused = asking(&pod)?;
    assert!(!refused.exit(PATIENCE).await?.success());
    // By connect() already, where the reset is quick.
    let said = refused.output().lines();
    assert!(said.iter().any(|line| line.contains("reset by peer")), "{said:?}");
    is_said(&agent, &mesh.b, &format!("of pod {}", pod.uid()), "pod").await?;

    let kubelet = HostPod::on(&mesh.b, "hidden-kubelet", beside)?;
    let mut answered = asking(&kubelet)?;
    let (mut server, _) = timeout(PATIENCE, listener.accept()).await??;
    server.write_all(b"quite well").await?;
    drop(server);
    assert!(answered.exit(PATIENCE).await?.success());
    assert_eq!(answered.output().lines(), ["quite well"]);
    Ok(())
}

#[tokio::test]
async fn the_nodes_namespace_may_be_another_than_the_agents() -> anyhow::Result<()> {
    let mesh = strict()?;
    let other = mesh.a.netns().path();
    let flags = ["--node-netns", other.to_str().expect("it is text")];
    let agent = mesh.start_agent(&mesh.b, &flags).await?;
    let listener = mesh.far.listen(PORT)?;
    is_reset(mesh.b.connect(at(&mesh.far)).await, &listener).await?;
    is_said(&agent, &mesh.b, "no socket of this node's own network", "elsewhere").await?;
    // The cgroup is out of the agent's sight, not the process.
    drop(passes(mesh.a.connect(at(&mesh.far)).await, &listener).await?);
    Ok(())
}

#[tokio::test]
async fn a_namespace_that_is_none_is_named() -> anyhow::Result<()> {
    let mesh = strict()?;
    let flags = vec!["--node-netns".to_owned(), "/dev/null".to_owned()];
    let options = AgentOptions { flags, ..AgentOptions::default() };
    let mut agent = Agent::launch(&mesh.b, &mesh.config, options)?;
    assert!(!agent.process_mut().exit(PATIENCE).await?.success());
    let said = agent.process().output().tail(5);
    assert!(said.contains("could not enter the node's network namespace at /dev/null"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_new_policy_spares_the_kubelet_and_cuts_a_pod_on_the_nodes_network() -> anyhow::Result<()>
{
    let mesh = Mesh::new()?;
    let agent = mesh.start_agent(&mesh.b, &[]).await?;
    let listener = mesh.far.listen(PORT)?;
    let process = HostProcess { in_pod: true, ..HostProcess::default() };
    let pod = HostPod::on(&mesh.b, "on-host", process)?;
    // Permissive: everybody's plaintext is taken, and told of.
    let mut pods = passes(pod.connect(at(&mesh.far)).await, &listener).await?;
    let mut kubelets = passes(mesh.b.connect(at(&mesh.far)).await, &listener).await?;
    mesh.config.write("policies", STRICT)?;
    assert!(timeout(PATIENCE, pods.client.read_u8()).await?.is_err());
    let cut = |line: &str| line.contains("inbound connection cut") && line.contains(pod.uid());
    agent.process().output().line(PATIENCE, cut).await?;
    kubelets.exchange().await?;
    drop(kubelets);
    mesh.receiver.wait_for(PATIENCE, |spans| spans.len() == 2).await?;
    Ok(())
}
