//! An agent that is gone, and the one that comes after it.

use std::{net::SocketAddr, process::Command, time::Duration};

use sluice_tests::{
    Mesh, NetnsState, PATIENCE, Pod, Process, Talk, agent_program, capture_events, eventually,
    refused,
};

const PORT: u16 = 9999;
/// How long a connection may stay unanswered before it counts as one that fails.
const SILENCE: Duration = Duration::from_secs(3);

/// Who dials whom in these tests, by pod address: within node `a`, out of it, into it.
fn ways(mesh: &Mesh) -> [(&Pod, &Pod); 4] {
    let Mesh { client, near, far, outsider, .. } = mesh;
    [(client, near), (client, far), (far, near), (outsider, near)]
}

async fn all_talk(mesh: &Mesh) -> anyhow::Result<()> {
    for (client, server) in ways(mesh) {
        let listener = server.listen(PORT)?;
        for to in server.ips() {
            Talk::start(client, SocketAddr::new(to, PORT), &listener).await?;
        }
    }
    Ok(())
}

async fn all_are_refused(mesh: &Mesh) -> anyhow::Result<()> {
    for (client, server) in ways(mesh) {
        let listener = server.listen(PORT)?;
        for to in server.ips() {
            refused(client, SocketAddr::new(to, PORT), &listener, SILENCE).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn without_its_agent_a_pod_reaches_nobody_and_nobody_reaches_it() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    all_talk(&mesh).await?;
    let [mut agent, _other] = mesh.start_agents(&[]).await?;
    all_talk(&mesh).await?;
    agent.kill9();
    all_are_refused(&mesh).await?;
    // What never belonged to the mesh is not held up.
    let listener = mesh.outsider.listen(PORT)?;
    let to = SocketAddr::new(mesh.outsider.ip(), PORT);
    Talk::start(&mesh.outsider, to, &listener).await?;
    Ok(())
}

#[tokio::test]
async fn an_agent_that_ended_in_order_leaves_its_pods_closed_too() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let [mut agent, _other] = mesh.start_agents(&[]).await?;
    agent.terminate(PATIENCE).await?;
    all_are_refused(&mesh).await
}

#[tokio::test]
async fn the_next_agent_takes_over_what_a_killed_one_left() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let [mut agent, _other] = mesh.start_agents(&[]).await?;
    all_talk(&mesh).await?;
    let steered = capture_events(&mesh.a, "steered_out")?;
    agent.kill9();
    let listener = mesh.far.listen(PORT)?;
    refused(&mesh.client, SocketAddr::new(mesh.far.ip(), PORT), &listener, SILENCE).await?;
    drop(listener);

    let _next = mesh.start_agent(&mesh.a, &[]).await?;
    all_talk(&mesh).await?;
    assert!(capture_events(&mesh.a, "steered_out")? > steered, "the maps are the same");
    assert!(capture_events(&mesh.a, "dropped_out")? > 0, "the refused connection was counted");
    Ok(())
}

#[tokio::test]
async fn a_pod_that_went_between_two_agents_is_let_go_by_the_second() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let before = NetnsState::of(&mesh.near)?;
    let [mut agent, _other] = mesh.start_agents(&[]).await?;
    assert_ne!(NetnsState::of(&mesh.near)?, before);
    agent.kill9();
    mesh.config.remove_pod(&mesh.near)?;
    let _next = mesh.start_agent(&mesh.a, &[]).await?;
    before.is_back(&mesh.near).await
}

fn uninstall(mesh: &Mesh) -> anyhow::Result<Process> {
    let mut command = Command::new(agent_program()?);
    command.arg("uninstall").arg("--bpffs").arg(mesh.a.bpffs());
    mesh.a.spawn("uninstall", command)
}

#[tokio::test]
async fn uninstalling_removes_every_trace_and_opens_the_pods_again() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let pods = [&mesh.client, &mesh.near, &mesh.outsider];
    let before = pods.map(NetnsState::of);
    let mut agent = mesh.start_agent(&mesh.a, &[]).await?;
    assert!(mesh.a.bpffs().join("v1").exists());
    agent.kill9();
    assert!(uninstall(&mesh)?.exit(PATIENCE).await?.success());
    for (pod, before) in pods.into_iter().zip(before) {
        before?.is_back(pod).await?;
    }
    assert!(!mesh.a.bpffs().exists(), "pins are left");
    all_talk(&mesh).await
}

#[tokio::test]
async fn uninstalling_under_a_running_agent_is_refused() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agent = mesh.start_agent(&mesh.a, &[]).await?;
    let mut uninstall = uninstall(&mesh)?;
    assert!(!uninstall.exit(PATIENCE).await?.success());
    let said = uninstall.output().tail(5);
    assert!(said.contains("another agent uses") && said.contains("(hint: "), "{said}");
    let listener = mesh.near.listen(PORT)?;
    let to = SocketAddr::new(mesh.near.ip(), PORT);
    let steered = capture_events(&mesh.a, "steered_out")?;
    Talk::start(&mesh.client, to, &listener).await?;
    eventually("the connection is counted", || async {
        Ok((capture_events(&mesh.a, "steered_out")? == steered + 1).then_some(()))
    })
    .await
}
