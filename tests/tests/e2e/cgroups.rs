//! Capture of a whole machine, however its cgroups are mounted.

use std::{fs, net::SocketAddr, process::Command};

use serde_json::Value;
use sluice_tests::{
    Agent, CgroupLayout, Lab, Mesh, NetnsState, Node, PATIENCE, Talk, agent_program, bpftool,
    capture_events, eventually,
};

const PORT: u16 = 9999;

#[tokio::test]
async fn a_machine_with_cgroup_version_1_alone_is_captured() -> anyhow::Result<()> {
    is_captured(CgroupLayout::Version1).await
}

#[tokio::test]
async fn a_machine_with_both_versions_is_captured() -> anyhow::Result<()> {
    is_captured(CgroupLayout::Hybrid).await
}

#[tokio::test]
async fn a_machine_with_cgroup_version_2_alone_is_captured() -> anyhow::Result<()> {
    is_captured(CgroupLayout::Unified).await
}

/// An agent that sees cgroups laid out like this captures its pods, all of them and nothing
/// else, and leaves nothing behind.
async fn is_captured(layout: CgroupLayout) -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let before = NetnsState::of(&mesh.client)?;
    let options = mesh.agent_options(&[]);
    let mut agent = Agent::start_on(layout, &mesh.a, &mesh.config, options).await?;
    let lines = agent.process().output().lines();
    let privately = lines.iter().any(|line| line.contains("cgroup2 is mounted nowhere"));
    assert_eq!(privately, layout.cgroup2().is_none(), "{lines:#?}");
    let mut other = mesh.start_agent(&mesh.b, &[]).await?;
    let link = bpftool::pin(&mesh.a, "links", "sluice_connect4")?;
    let link =
        bpftool::show(&["link", "show", "pinned", &link.to_string_lossy()])?["id"].to_string();

    for server in [&mesh.near, &mesh.far] {
        let listener = server.listen(PORT)?;
        for to in server.ips() {
            let steered = capture_events(&mesh.a, "steered_out")?;
            Talk::start(&mesh.client, SocketAddr::new(to, PORT), &listener).await?;
            assert_eq!(capture_events(&mesh.a, "steered_out")?, steered + 1, "{to}");
        }
        let marked = capture_events(&mesh.a, "marked")?;
        let listener = mesh.outsider.listen(PORT)?;
        let own = SocketAddr::new(mesh.outsider.ip(), PORT);
        Talk::start(&mesh.outsider, own, &listener).await?;
        assert_eq!(capture_events(&mesh.a, "marked")?, marked, "no other pod is marked");
    }

    agent.terminate(PATIENCE).await?;
    other.terminate(PATIENCE).await?;
    let mut uninstall = Command::new(agent_program()?);
    uninstall.arg("uninstall").arg("--bpffs").arg(mesh.a.bpffs());
    mesh.a.run(uninstall)?.success()?;
    before.is_back(&mesh.client).await?;
    assert!(!mesh.a.bpffs().exists(), "pins are left");
    eventually("the link to the root is gone", || async {
        Ok(bpftool::show(&["link", "show", "id", &link]).is_err().then_some(()))
    })
    .await?;
    let hierarchy = format!("name={}:", CgroupLayout::hierarchy(&mesh.a));
    eventually("the hierarchy of version 1 is gone", || async {
        Ok((!fs::read_to_string("/proc/self/cgroup")?.contains(&hierarchy)).then_some(()))
    })
    .await
}

/// What `sluice check` says of cgroup2 where cgroups are laid out like this.
fn checked(node: &Node, layout: CgroupLayout) -> anyhow::Result<Value> {
    let mut check = Command::new(agent_program()?);
    check.args(["check", "--output", "json", "--bpffs"]).arg(node.bpffs());
    let report: Value = serde_json::from_str(&node.run(layout.around(node, check))?.success()?)?;
    let mut findings = report["findings"].as_array().into_iter().flatten();
    Ok(findings.find(|finding| finding["name"] == "cgroup2").cloned().unwrap_or_default())
}

#[tokio::test]
async fn a_check_says_which_cgroups_there_are() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    for (layout, detail) in [
        (CgroupLayout::Version1, "mounted nowhere"),
        (CgroupLayout::Hybrid, "/sys/fs/cgroup/unified (hybrid"),
        (CgroupLayout::Unified, "/sys/fs/cgroup (unified)"),
    ] {
        let found = checked(&node, layout)?;
        let works = if layout.cgroup2().is_some() { "ok" } else { "falls_back" };
        assert_eq!(found["state"], works, "{layout:?}: {found}");
        assert!(found["detail"].as_str().unwrap_or_default().contains(detail), "{found}");
    }
    Ok(())
}
