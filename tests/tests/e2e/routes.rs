//! Pods with routes of their own making, and with many.

use std::{fmt::Write, fs, net::SocketAddr, process::Command};

use sluice_tests::{Mesh, Pod, Talk, capture_events, eventually};

const PORT: u16 = 9999;
/// More of a family than are followed one by one, which is 512; of an emulated processor not more is
/// asked than needed.
const MANY: u32 = 700;
/// So many that each of them is followed.
const SOME: u32 = 100;

/// Adds or deletes routes to single addresses of either family, by `eth0`.
fn change(mesh: &Mesh, what: &str, range: std::ops::Range<u32>) -> anyhow::Result<()> {
    for family in ["-4", "-6"] {
        let mut lines = String::new();
        for number in range.clone() {
            let [_, _, high, low] = number.to_be_bytes();
            match family {
                "-4" => writeln!(lines, "route {what} 172.16.{high}.{low} dev eth0")?,
                _ => writeln!(lines, "route {what} fd07::{number:x} dev eth0")?,
            }
        }
        let batch = mesh.lab.directory().join("routes");
        fs::write(&batch, lines)?;
        let mut ip = Command::new("ip");
        ip.args([family, "-batch"]).arg(&batch);
        mesh.client.run(ip)?.success()?;
    }
    Ok(())
}

/// How many of these routes capture's table has, of IPv4 and IPv6.
fn mirrored(pod: &Pod) -> anyhow::Result<[usize; 2]> {
    let count = |family: &str, prefix: &str| {
        let mut ip = Command::new("ip");
        ip.args([family, "route", "show", "table", "1337"]);
        let routes = pod.run(ip)?.success()?;
        anyhow::Ok(routes.lines().filter(|line| line.contains(prefix)).count())
    };
    Ok([count("-4", " 172.16.")?, count("-6", " fd07::")?])
}

/// Everything else goes where it went, and by the agent.
async fn is_captured(mesh: &Mesh) -> anyhow::Result<()> {
    let listener = mesh.far.listen(PORT)?;
    for (to, from) in mesh.far.ips().into_iter().zip(mesh.client.ips()) {
        let before = capture_events(&mesh.a, "steered_out")?;
        let talk = Talk::start(&mesh.client, SocketAddr::new(to, PORT), &listener).await?;
        assert_eq!(talk.seen_client()?.ip(), from);
        assert_eq!(capture_events(&mesh.a, "steered_out")?, before + 1, "{to}");
    }
    Ok(())
}

#[tokio::test]
async fn of_many_routes_the_default_alone_is_followed_and_of_some_each() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    change(&mesh, "add", 0..MANY)?;
    let _agents = mesh.start_agents(&[]).await?;
    assert_eq!(mirrored(&mesh.client)?, [0, 0]);
    is_captured(&mesh).await?;

    let are = |count: u32| {
        let expected = [count as usize; 2];
        let mesh = &mesh;
        eventually("capture's table follows", move || async move {
            Ok((mirrored(&mesh.client)? == expected).then_some(()))
        })
    };
    change(&mesh, "del", SOME..MANY)?;
    are(SOME).await?;
    is_captured(&mesh).await?;
    change(&mesh, "add", SOME..MANY)?;
    are(0).await?;
    change(&mesh, "del", 0..MANY)?;
    is_captured(&mesh).await
}
