//! Pods that go without a word: what the agent held for them is given back.

use std::net::SocketAddr;

use sluice_tests::{
    Footprint, Mesh, PATIENCE, Pod, Talk, capture_events, eventually, wait_until_captured,
};

const PORT: u16 = 9999;

/// A connection in each direction between `pod` and the other node, and one from its own.
async fn talks(mesh: &Mesh, pod: &Pod) -> anyhow::Result<[Talk; 3]> {
    let (own, far) = (pod.listen(PORT)?, mesh.far.listen(PORT)?);
    let at = |pod: &Pod| SocketAddr::new(pod.ip(), PORT);
    Ok([
        Talk::start(pod, at(&mesh.far), &far).await?,
        Talk::start(&mesh.far, at(pod), &own).await?,
        Talk::start(&mesh.client, at(pod), &own).await?,
    ])
}

/// One connection through both agents, and its span: whatever an agent opens when it first needs
/// it is open then.
async fn warm_up(mesh: &Mesh) -> anyhow::Result<()> {
    let listener = mesh.far.listen(PORT)?;
    drop(Talk::start(&mesh.client, SocketAddr::new(mesh.far.ip(), PORT), &listener).await?);
    mesh.receiver.wait_for(PATIENCE, |spans| spans.len() >= 2).await?;
    Ok(())
}

#[tokio::test]
async fn pods_that_die_with_connections_open_leave_nothing_behind() -> anyhow::Result<()> {
    const ROUNDS: usize = 3;
    const PODS: usize = 4;
    let mesh = Mesh::new()?;
    let [agent, _other] = mesh.start_agents(&[]).await?;
    warm_up(&mesh).await?;
    let before = Footprint::of(&mesh.a, &agent)?;
    let mut former: Vec<Pod> = Vec::new();
    for round in 0..ROUNDS {
        let mut pods = Vec::new();
        for number in 0..PODS {
            let name = format!("pod-{round}-{number}");
            pods.push(match former.get(number) {
                // The addresses of the dead serve the living.
                Some(former) => mesh.a.pod_in_place_of(former, &name)?,
                None => mesh.a.pod(&name)?,
            });
        }
        for pod in &pods {
            mesh.config.pod(pod)?;
        }
        let mut open = Vec::new();
        for pod in &pods {
            wait_until_captured(&mesh.a, pod, true).await?;
            open.extend(talks(&mesh, pod).await?);
        }
        assert_ne!(Footprint::of(&mesh.a, &agent)?, before, "enrolment can be seen");
        for pod in &pods {
            mesh.a.remove_pod(pod)?;
        }
        drop(open);
        for pod in &pods {
            mesh.config.remove_pod(pod)?;
        }
        for pod in &pods {
            wait_until_captured(&mesh.a, pod, false).await?;
        }
        former = pods;
    }
    before.is_back(&mesh.a, &agent).await
}

#[tokio::test]
async fn a_pod_that_died_between_two_agents_leaves_nothing_behind() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let [mut agent, _other] = mesh.start_agents(&[]).await?;
    warm_up(&mesh).await?;
    let before = Footprint::of(&mesh.a, &agent)?;
    let pod = mesh.a.pod("short-lived")?;
    mesh.config.pod(&pod)?;
    wait_until_captured(&mesh.a, &pod, true).await?;
    drop(talks(&mesh, &pod).await?);
    agent.kill9();
    mesh.a.remove_pod(&pod)?;
    mesh.config.remove_pod(&pod)?;
    let next = mesh.start_agent(&mesh.a, &[]).await?;
    before.is_back(&mesh.a, &next).await
}

#[tokio::test]
async fn a_sandbox_that_is_made_again_under_the_same_path_is_captured_again() -> anyhow::Result<()>
{
    let mesh = Mesh::new()?;
    let [agent, _other] = mesh.start_agents(&[]).await?;
    warm_up(&mesh).await?;
    drop(talks(&mesh, &mesh.near).await?);
    let before = Footprint::of(&mesh.a, &agent)?;
    mesh.a.remove_pod(&mesh.near)?;
    let again = mesh.a.pod_in_place_of(&mesh.near, mesh.near.name())?;
    let listener = mesh.far.listen(PORT)?;
    let to = SocketAddr::new(mesh.far.ip(), PORT);
    eventually("the new sandbox is captured", || async {
        let steered = capture_events(&mesh.a, "steered_out")?;
        Talk::start(&again, to, &listener).await?;
        Ok((capture_events(&mesh.a, "steered_out")? > steered).then_some(()))
    })
    .await?;
    drop(listener);
    drop(talks(&mesh, &again).await?);
    before.is_back(&mesh.a, &agent).await
}
