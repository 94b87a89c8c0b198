//! What whoever reaches a port can make the agent hold, and say.

use std::{net::SocketAddr, process::Command};

use sluice_tests::{Cluster, Mesh, PATIENCE, Pod, ask, eventually};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

async fn crowd(pod: &Pod, to: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let mut crowd = Vec::with_capacity(count);
    for _ in 0..count {
        crowd.push(pod.connect(to).await?);
    }
    Ok(crowd)
}

#[tokio::test]
async fn a_crowd_at_the_admin_servers_costs_little_and_keeps_nobody_out() -> anyhow::Result<()> {
    const CROWD: usize = 2000;
    let mesh = Mesh::new()?;
    let agent = mesh.start_agent(&mesh.b, &[]).await?;
    let before = agent.process().open_files()?;
    let [ip, _] = mesh.b.ips();
    for (port, path) in [(15020, "/stats/prometheus"), (15021, "/healthz/ready")] {
        let mut crowd = crowd(&mesh.outsider, SocketAddr::new(ip, port), CROWD).await?;
        let answer = ask(mesh.b.netns(), ([127, 0, 0, 1], port).into(), path, PATIENCE).await?;
        assert_eq!(answer.status, 200, "{path}");
        // All of it has been accepted by now, and most of it has been told to go.
        for stream in &mut crowd[..CROWD / 2] {
            let end = timeout(PATIENCE, stream.read(&mut [0])).await?;
            assert_eq!(end.unwrap_or(0), 0);
        }
        // The other half has been, or is about to be.
        let held = eventually("most of the crowd has gone", || async {
            let held = agent.process().open_files()?.saturating_sub(before);
            Ok((held < 100).then_some(held))
        });
        println!("{CROWD} connections to :{port}: {} files more", held.await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_flood_of_failures_is_a_few_lines_and_their_number() -> anyhow::Result<()> {
    const FLOOD: usize = 300;
    const FAILED: &str = "outbound connection failed";
    let mesh = Mesh::new()?;
    let [agent, _other] = mesh.start_agents(&[]).await?;
    // Nobody listens there.
    let nobody = SocketAddr::new(mesh.near.ip(), 4);
    for _ in 0..FLOOD {
        if let Ok(mut stream) = mesh.client.connect(nobody).await {
            let end = timeout(PATIENCE, stream.read(&mut [0])).await?;
            assert_eq!(end.unwrap_or(0), 0);
        }
    }
    let output = agent.process().output();
    let closing = output.line(PATIENCE, |line| line.contains(FAILED) && line.contains(": and "));
    let closing = closing.await?;
    let lines = output.tail(usize::MAX);
    let said = lines.lines().filter(|line| line.contains(FAILED)).count();
    println!("{said} lines for {FLOOD} failures, the last of them: {closing}");
    assert!(said < 100, "{said} lines for {FLOOD} failures");
    Ok(())
}

#[tokio::test]
async fn every_address_is_listened_on_where_no_interface_has_ipv6() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.ca_node("ca")?;
    let mut sysctl = Command::new("sysctl");
    let off = ["net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.lo.disable_ipv6=1"];
    node.run({
        sysctl.arg("-w").args(off);
        sysctl
    })?
    .success()?;
    // It is ready by its health server, and counts by its metrics server.
    let ca = cluster.start_ca(node, &[]).await?;
    assert_eq!(ca.metric("sluice_ca_certificates_issued_total").await?, 0);
    let token = cluster.agent_token(&cluster.mesh.a);
    eventually("the CA issues", || async {
        let identity = cluster.mesh.client.principal();
        let answer = cluster.ask_ca(&ca, Some(&token), Some(&identity)).await?;
        Ok(answer.ok())
    })
    .await?;
    Ok(())
}
