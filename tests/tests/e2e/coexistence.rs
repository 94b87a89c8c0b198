//! Beside others: other programs on the cgroup's connect(), and a second agent on the kernel.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use sluice_tests::{
    Attachment, Cgroup, CgroupProgram, Mesh, OnConnect, Pod, Talk, Tcpdump, capture_events, refused,
};

const PORT: u16 = 9999;
/// How long a connection may stay unanswered before it counts as one that fails.
const SILENCE: Duration = Duration::from_secs(3);
/// The other program comes before the agent's or after it; each is attached in its own way.
const ORDERS: [(bool, Attachment); 2] = [(true, Attachment::Program), (false, Attachment::Link)];

/// Attaches a program for each family to the cgroup of node `a`.
fn attach(
    mesh: &Mesh,
    how: Attachment,
    does: impl IntoIterator<Item = OnConnect>,
) -> anyhow::Result<Vec<CgroupProgram>> {
    let is_v6 = |does: &OnConnect| match does {
        OnConnect::Deny(to) | OnConnect::Redirect(to, _) => vec![to.is_ipv6()],
        OnConnect::Allow => vec![false, true],
    };
    let all = does.into_iter().flat_map(|does| is_v6(&does).into_iter().map(move |v6| (v6, does)));
    all.map(|(v6, does)| CgroupProgram::attach(mesh.a.cgroup(), how, v6, does)).collect()
}

/// Services that a load balancer in the socket layer resolves: one the mesh knows of, and one
/// it does not. Each with where it leads, which is a pod behind it.
fn resolved(mesh: &Mesh) -> Vec<(SocketAddr, SocketAddr)> {
    let unknown =
        [IpAddr::from([10, 96, 9, 9]), Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 9, 9).into()];
    let pod = mesh.far.ips().map(|ip| SocketAddr::new(ip, Mesh::TCP_TARGET));
    let services = [(unknown, PORT), (mesh.service_ips(&mesh.far), Mesh::TCP)];
    let dialled = |(ips, port): ([IpAddr; 2], u16)| ips.map(|ip| SocketAddr::new(ip, port));
    services.into_iter().flat_map(|service| dialled(service).into_iter().zip(pod)).collect()
}

#[tokio::test]
async fn what_a_load_balancer_in_the_socket_layer_resolved_is_captured_whichever_came_first()
-> anyhow::Result<()> {
    for (first, how) in ORDERS {
        let mesh = Mesh::new()?;
        let services = resolved(&mesh);
        let balancer = || {
            let redirect = |&(service, pod): &_| OnConnect::Redirect(service, pod);
            attach(&mesh, how, services.iter().map(redirect))
        };
        let before = if first { balancer()? } else { Vec::new() };
        let _agents = mesh.start_agents(&[]).await?;
        let _balancer = if first { before } else { balancer()? };

        let listener = mesh.far.listen(Mesh::TCP_TARGET)?;
        let recording = Tcpdump::on_node(&mesh.a, &format!("{how:?}"), "tcp").await?;
        for (service, pod) in &services {
            let out = capture_events(&mesh.a, "steered_out")?;
            let talk = Talk::start(&mesh.client, *service, &listener).await;
            let talk = talk.with_context(|| format!("the other comes first: {first}"))?;
            assert_eq!(talk.seen_server()?, *pod, "the other program resolved it");
            let own = mesh.client.ips();
            assert!(own.contains(&talk.seen_client()?.ip()), "{:?}", talk.seen_client());
            assert_eq!(capture_events(&mesh.a, "steered_out")?, out + 1, "{service}");
        }
        let recording = recording.stop().await?;
        assert!(recording.packets > 0 && !recording.contains("from the client"), "plaintext");
    }
    Ok(())
}

#[tokio::test]
async fn a_program_that_denies_keeps_its_word_and_others_pass() -> anyhow::Result<()> {
    for (first, how) in ORDERS {
        let mesh = Mesh::new()?;
        let denied = mesh.far.ips().map(|ip| SocketAddr::new(ip, PORT));
        let does = denied.map(OnConnect::Deny).into_iter().chain([OnConnect::Allow]);
        let others = || attach(&mesh, how, does.clone());
        let before = if first { others()? } else { Vec::new() };
        let _agents = mesh.start_agents(&[]).await?;
        let others = if first { before } else { others()? };

        let listener = mesh.far.listen(PORT)?;
        let allowed = mesh.far.listen(Mesh::TCP_TARGET)?;
        let steered = capture_events(&mesh.a, "steered_out")?;
        for to in denied {
            let refusal = mesh.client.connect(to).await.expect_err("it is denied");
            assert_eq!(refusal.kind(), ErrorKind::PermissionDenied, "{refusal}");
        }
        assert_eq!(capture_events(&mesh.a, "steered_out")?, steered, "nothing was sent");
        for ip in mesh.far.ips() {
            let to = SocketAddr::new(ip, Mesh::TCP_TARGET);
            Talk::start(&mesh.client, to, &allowed).await?;
        }
        assert_eq!(capture_events(&mesh.a, "steered_out")?, steered + 2);
        drop(others);
        for to in denied {
            Talk::start(&mesh.client, to, &listener).await?;
        }
        assert_eq!(capture_events(&mesh.a, "steered_out")?, steered + 4);
    }
    Ok(())
}

/// Both agents' programs see every connect() of `cgroup`.
async fn each_captures_its_own(mesh: Mesh, cgroup: &Path) -> anyhow::Result<()> {
    let cgroup = cgroup.to_string_lossy().into_owned();
    let [mut a, _b] = mesh.start_agents(&["--cgroup", &cgroup]).await?;
    let steered = || -> anyhow::Result<[u64; 2]> {
        Ok([capture_events(&mesh.a, "steered_out")?, capture_events(&mesh.b, "steered_out")?])
    };
    let talk = async |client: &Pod, server: &Pod| -> anyhow::Result<()> {
        let listener = server.listen(PORT)?;
        for (to, from) in server.ips().into_iter().zip(client.ips()) {
            let talk = Talk::start(client, SocketAddr::new(to, PORT), &listener).await?;
            assert_eq!(talk.seen_client()?.ip(), from);
        }
        Ok(())
    };
    for (client, server, captured) in [
        (&mesh.client, &mesh.far, [2, 0]),
        (&mesh.client, &mesh.near, [2, 0]),
        (&mesh.far, &mesh.client, [0, 2]),
        (&mesh.outsider, &mesh.far, [0, 0]),
    ] {
        let [by_a, by_b] = steered()?;
        talk(client, server).await?;
        assert_eq!(steered()?, [by_a + captured[0], by_b + captured[1]]);
    }
    // One of them gone closes its own pods and nobody else's.
    a.kill9();
    talk(&mesh.outsider, &mesh.far).await?;
    let listener = mesh.near.listen(PORT)?;
    let to = SocketAddr::new(mesh.near.ip(), PORT);
    refused(&mesh.client, to, &listener, SILENCE).await?;
    drop(listener);
    let _next = mesh.start_agent(&mesh.a, &["--cgroup", &cgroup]).await?;
    talk(&mesh.client, &mesh.far).await
}

#[tokio::test]
async fn two_agents_on_one_cgroup_capture_each_its_own_pods() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let cgroup = mesh.lab.cgroup().to_owned();
    each_captures_its_own(mesh, &cgroup).await
}

#[tokio::test]
async fn two_agents_on_the_whole_machine_capture_each_its_own_pods() -> anyhow::Result<()> {
    each_captures_its_own(Mesh::new()?, Cgroup::root()?).await
}
