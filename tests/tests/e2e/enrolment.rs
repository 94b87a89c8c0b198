//! Pods that come into the mesh and leave it while their agent runs.

use std::{collections::BTreeMap, io::ErrorKind, net::SocketAddr, process::Command};

use sluice_tests::{
    Agent, Mesh, NetnsState, Node, PATIENCE, Pod, PodOptions, Talk, Tcpdump, capture_events,
    eventually, is_captured, wait_until_captured,
};
use tokio::{io::AsyncReadExt, time::timeout};

const PORT: u16 = 9999;

/// How many SYNs of `client` are steered out of its pod when it dials `server`.
async fn steered(node: &Node, client: &Pod, server: &Pod) -> anyhow::Result<u64> {
    let before = capture_events(node, "steered_out")?;
    let listener = server.listen(PORT)?;
    let talk = Talk::start(client, SocketAddr::new(server.ip(), PORT), &listener).await?;
    assert_eq!(talk.seen_client()?.ip(), client.ip());
    Ok(capture_events(node, "steered_out")? - before)
}

fn without_label(pod: &Pod) -> BTreeMap<&str, &str> {
    let mut labels = pod.labels();
    labels.remove("istio.io/dataplane-mode");
    labels
}

fn namespace(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

#[tokio::test]
async fn a_pod_whose_label_is_taken_back_is_as_it_was_before() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let before = NetnsState::of(&mesh.far)?;
    let _agents = mesh.start_agents(&[]).await?;
    assert_ne!(NetnsState::of(&mesh.far)?, before, "enrolment can be seen");
    let mut labels = mesh.far.labels();
    labels.insert("istio.io/dataplane-mode", "none");
    mesh.config.pod_with(&mesh.far, labels)?;
    wait_until_captured(&mesh.b, &mesh.far, false).await?;
    before.is_back(&mesh.far).await
}

#[tokio::test]
async fn a_pod_that_is_deleted_is_let_go() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let before = NetnsState::of(&mesh.near)?;
    let _agents = mesh.start_agents(&[]).await?;
    assert_ne!(NetnsState::of(&mesh.near)?, before, "enrolment can be seen");
    mesh.config.remove_pod(&mesh.near)?;
    wait_until_captured(&mesh.a, &mesh.near, false).await?;
    before.is_back(&mesh.near).await
}

#[tokio::test]
async fn a_setting_the_pod_had_before_is_kept_when_it_leaves() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let mut sysctl = Command::new("sysctl");
    sysctl.args(["-w", "net.ipv4.tcp_fwmark_accept=1"]);
    mesh.near.run(sysctl)?.success()?;
    let before = NetnsState::of(&mesh.near)?;
    let _agents = mesh.start_agents(&[]).await?;
    mesh.config.remove_pod(&mesh.near)?;
    wait_until_captured(&mesh.a, &mesh.near, false).await?;
    before.is_back(&mesh.near).await
}

#[tokio::test]
async fn traffic_of_a_pod_that_left_flows_in_plaintext() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.far.listen(PORT)?;
    let to = SocketAddr::new(mesh.far.ip(), PORT);
    let recording = Tcpdump::on_node(&mesh.a, "in-the-mesh", "tcp").await?;
    Talk::start(&mesh.client, to, &listener).await?;
    let recording = recording.stop().await?;
    assert!(recording.packets > 0 && !recording.contains("from the client"));

    mesh.config.remove_pod(&mesh.far)?;
    wait_until_captured(&mesh.b, &mesh.far, false).await?;
    eventually("the client's agent knows", || async {
        let version = Agent::status(&mesh.a)?["configuration"]["version"].as_u64();
        Ok((version >= Some(2)).then_some(()))
    })
    .await?;
    let recording = Tcpdump::on_node(&mesh.a, "after-it", "tcp").await?;
    let talk = Talk::start(&mesh.client, to, &listener).await?;
    assert_eq!(talk.seen_client()?.ip(), mesh.client.ip());
    let recording = recording.stop().await?;
    assert!(recording.contains("from the client"), "{} packets", recording.packets);
    Ok(())
}

#[tokio::test]
async fn a_pod_that_comes_later_is_captured_without_a_restart() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let late = mesh.a.pod("late")?;
    assert_eq!(steered(&mesh.a, &late, &mesh.far).await?, 0);
    mesh.config.pod(&late)?;
    wait_until_captured(&mesh.a, &late, true).await?;
    assert_eq!(steered(&mesh.a, &late, &mesh.far).await?, 1);
    assert_eq!(steered(&mesh.a, &mesh.client, &late).await?, 1);
    Ok(())
}

#[tokio::test]
async fn connections_from_before_enrolment_go_on_as_they_were() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let listeners = [mesh.near.listen(PORT)?, mesh.far.listen(PORT)?, mesh.client.listen(PORT)?];
    let ways = [
        (&mesh.client, &mesh.near, &listeners[0]),
        (&mesh.client, &mesh.far, &listeners[1]),
        (&mesh.outsider, &mesh.client, &listeners[2]),
    ];
    let mut old = Vec::new();
    for (client, server, listener) in ways {
        for ip in server.ips() {
            old.push(Talk::start(client, SocketAddr::new(ip, PORT), listener).await?);
        }
    }
    let _agents = mesh.start_agents(&[]).await?;
    let events = || -> anyhow::Result<[u64; 2]> {
        Ok([capture_events(&mesh.a, "steered_out")?, capture_events(&mesh.a, "steered_in")?])
    };
    let before = events()?;
    for talk in &mut old {
        talk.exchange().await?;
    }
    assert_eq!(events()?, before, "nothing old is captured");
    for (client, server, listener) in ways {
        for ip in server.ips() {
            Talk::start(client, SocketAddr::new(ip, PORT), listener).await?;
        }
    }
    assert_eq!(events()?, [before[0] + 4, before[1] + 2], "everything new is");

    mesh.config.remove_pod(&mesh.client)?;
    wait_until_captured(&mesh.a, &mesh.client, false).await?;
    for talk in &mut old {
        talk.exchange().await?;
        assert_eq!(talk.seen_client()?, talk.client.local_addr()?, "nobody is in between");
    }
    Ok(())
}

#[tokio::test]
async fn captured_connections_of_a_pod_that_leaves_are_reset_at_both_ends() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let mut captured = Vec::new();
    for (client, server) in [
        (&mesh.client, &mesh.far),
        (&mesh.far, &mesh.client),
        (&mesh.client, &mesh.near),
        (&mesh.outsider, &mesh.client),
    ] {
        let listener = server.listen(PORT)?;
        captured.push(Talk::start(client, SocketAddr::new(server.ip(), PORT), &listener).await?);
    }
    mesh.config.remove_pod(&mesh.client)?;
    for Talk { client, server } in &mut captured {
        for end in [client, server] {
            let read = timeout(PATIENCE, end.read_u8()).await?;
            let why = read.expect_err("nobody sent a byte").kind();
            assert_eq!(why, ErrorKind::ConnectionReset, "cut, not ended in order");
        }
    }
    Ok(())
}

#[tokio::test]
async fn labelling_a_second_namespace_brings_its_pods_in() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let options = PodOptions { namespace: "second".into(), ..PodOptions::default() };
    let second = mesh.a.pod_with("second-pod", options)?;
    mesh.config.pod_with(&second, without_label(&second))?;
    mesh.config.write("namespace-second", &namespace("second", ""))?;
    let _agents = mesh.start_agents(&[]).await?;
    assert!(!is_captured(&mesh.a, &second)?);
    assert_eq!(steered(&mesh.a, &second, &mesh.far).await?, 0);

    let labelled = namespace("second", "istio.io/dataplane-mode: ambient");
    mesh.config.write("namespace-second", &labelled)?;
    wait_until_captured(&mesh.a, &second, true).await?;
    assert_eq!(steered(&mesh.a, &second, &mesh.far).await?, 1);

    mesh.config.write("namespace-second", &namespace("second", ""))?;
    wait_until_captured(&mesh.a, &second, false).await?;
    assert_eq!(steered(&mesh.a, &second, &mesh.far).await?, 0);
    Ok(())
}

/// A connection to the router, as a process of the pod or node makes it.
fn dial_the_router(mesh: &Mesh, family: usize) -> Command {
    let mut shell = Command::new("bash");
    let ip = mesh.lab.fabric_ips()[family];
    shell.args(["-c", &format!("exec 3<>/dev/tcp/{ip}/4318")]);
    shell
}

#[tokio::test]
async fn pods_that_are_not_enrolled_may_be_denied_and_the_node_never_is() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let agent = mesh.start_agent(&mesh.a, &[]).await?;
    for family in [0, 1] {
        mesh.outsider.run(dial_the_router(&mesh, family))?.success()?;
        mesh.a.run(dial_the_router(&mesh, family))?.success()?;
    }
    drop(agent);

    let _agent = mesh.start_agent(&mesh.a, &["--unknown-pods", "deny"]).await?;
    for family in [0, 1] {
        let denied = mesh.outsider.run(dial_the_router(&mesh, family))?;
        assert!(!denied.status.success());
        assert!(denied.stderr.contains("Operation not permitted"), "{}", denied.stderr);
        mesh.a.run(dial_the_router(&mesh, family))?.success()?;
        mesh.client.run(dial_the_router(&mesh, family))?.success()?;
    }
    assert_eq!(capture_events(&mesh.a, "denied")?, 2);
    // Within the pod nothing is denied.
    let listener = mesh.outsider.listen(PORT)?;
    for own in [[127, 0, 0, 1], [0, 0, 0, 0]] {
        Talk::start(&mesh.outsider, SocketAddr::from((own, PORT)), &listener).await?;
    }
    Ok(())
}
