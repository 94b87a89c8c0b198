//! What an agent pinned is taken away by somebody else, as a job that cleans up /sys/fs/bpf does.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use anyhow::ensure;
use sluice_tests::{
    Agent, Mesh, Node, PATIENCE, Talk, bpftool, capture_events, eventually, refused,
};

use crate::upgrade::{agent_at_other_ports, wait_for_line};

const PORT: u16 = 9999;
const REPAIRS: &str = "sluice_capture_repairs_total";

/// The names of all that is pinned.
fn pinned(node: &Node) -> anyhow::Result<Vec<PathBuf>> {
    let kinds = ["maps", "links", "pods"].map(|kind| bpftool::pins(node, kind));
    Ok(kinds.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
}

/// Takes all of it away, the directories too.
fn take_away(node: &Node) -> anyhow::Result<()> {
    for version in fs::read_dir(node.bpffs())? {
        fs::remove_dir_all(version?.path())?;
    }
    Ok(())
}

/// Waits until all that was `there` is pinned again.
async fn are_there_again(node: &Node, there: &[PathBuf]) -> anyhow::Result<()> {
    let again = || async {
        // One directory after the other is made.
        Ok(pinned(node).is_ok_and(|pinned| pinned == there).then_some(()))
    };
    eventually("everything is pinned again", again).await
}

/// A connection out of the pod `client` to `far`, and that it was captured at both ends.
async fn is_captured(mesh: &Mesh) -> anyhow::Result<()> {
    let events = || -> anyhow::Result<_> {
        let out = capture_events(&mesh.a, "steered_out")?;
        Ok((out, capture_events(&mesh.b, "steered_in")?))
    };
    let (out, _) = events()?;
    let listener = mesh.far.listen(PORT)?;
    for ip in mesh.far.ips() {
        Talk::start(&mesh.client, SocketAddr::new(ip, PORT), &listener).await?;
    }
    let captured = events()?.0 - out;
    ensure!(captured == mesh.far.ips().len() as u64, "{captured} were captured");
    Ok(())
}

#[tokio::test]
async fn a_pod_stays_captured_when_the_pins_are_taken_away() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let [mut agent, _other] = mesh.start_agents(&[]).await?;
    let there = pinned(&mesh.a)?;
    take_away(&mesh.a)?;
    is_captured(&mesh).await?;
    are_there_again(&mesh.a, &there).await?;
    is_captured(&mesh).await?;
    let counted = || async { Ok((Agent::counter(&mesh.a, REPAIRS)? > 0).then_some(())) };
    eventually("the repairs are counted", counted).await?;

    // And what is pinned is what captures: it does without the agent, and the next one goes on.
    agent.kill9();
    let listener = mesh.far.listen(PORT)?;
    for ip in mesh.far.ips() {
        let to = SocketAddr::new(ip, PORT);
        refused(&mesh.client, to, &listener, Duration::from_secs(3)).await?;
    }
    drop(listener);
    let _next = mesh.start_agent(&mesh.a, &[]).await?;
    is_captured(&mesh).await
}

#[tokio::test]
async fn who_stands_by_when_the_pins_are_taken_away_takes_over_all_the_same() -> anyhow::Result<()>
{
    let mesh = Mesh::new()?;
    let _other = mesh.start_agent(&mesh.b, &[]).await?;
    let mut first = agent_at_other_ports(&mesh, &mesh.a, &[]).await?;
    let mut second = mesh.start_agent(&mesh.a, &[]).await?;
    let there = pinned(&mesh.a)?;
    take_away(&mesh.a)?;
    are_there_again(&mesh.a, &there).await?;
    assert!(!second.process().output().has_ended());
    first.terminate(PATIENCE).await?;
    wait_for_line(&second, "agent started").await?;
    is_captured(&mesh).await?;
    second.terminate(PATIENCE).await
}

#[tokio::test]
async fn what_is_detached_from_the_cgroup_is_attached_again() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    for program in ["sluice_connect4", "sluice_connect6"] {
        let repaired = Agent::counter(&mesh.a, REPAIRS)?;
        let pin = bpftool::pin(&mesh.a, "links", program)?;
        let mut detach = Command::new("bpftool");
        detach.args(["link", "detach", "pinned"]).arg(pin);
        ensure!(detach.status()?.success(), "bpftool could not detach {program}");
        let counted = || async { Ok((Agent::counter(&mesh.a, REPAIRS)? > repaired).then_some(())) };
        eventually("it is attached again", counted).await?;
        is_captured(&mesh).await?;
    }
    Ok(())
}
