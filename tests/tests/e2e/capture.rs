//! Capture: what an enrolled pod dials, and what dials it, goes through the agent unnoticed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::Context;
use serde_json::Value;
use sluice_tests::{
    Agent, Mesh, Node, PATIENCE, Pod, Talk, bpftool, capture_events, firewall_rules, refused,
};
use socket2::{Domain, SockRef, Type};
use tokio::{
    net::{TcpListener, UdpSocket},
    time::timeout,
};

const PORT: u16 = 9999;

/// Everything that capture has counted on a node so far.
fn all_events(node: &Node) -> anyhow::Result<BTreeMap<String, u64>> {
    let status = Agent::status(node)?;
    let counters = status["counters"].as_object().expect("counters are an object");
    // An agent that looks whether its programs run counts that as its own.
    let ours = counters.iter().filter(|(name, _)| {
        name.starts_with("sluice_capture_events_total") && !name.contains("\"own\"")
    });
    Ok(ours.map(|(name, count)| (name.clone(), count.as_u64().unwrap_or(0))).collect())
}

fn steered(node: &Node) -> anyhow::Result<[u64; 2]> {
    Ok([capture_events(node, "steered_out")?, capture_events(node, "steered_in")?])
}

/// How many SYNs of a pod were not the first of their connection.
fn syns_sent_again(pod: &Pod) -> anyhow::Result<u64> {
    // The file of the thread: another thread is in another namespace.
    let read = || fs::read_to_string("/proc/thread-self/net/netstat");
    let text = pod.netns().run(read)??;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut named = names.split(' ').zip(values.split(' '));
    let (_, value) = named.find(|(name, _)| *name == "TCPSynRetrans").context("not counted")?;
    Ok(value.parse()?)
}

#[tokio::test]
async fn a_pod_address_leads_to_its_pod_and_both_ends_see_each_other() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    for server in [&mesh.near, &mesh.far] {
        let listener = server.listen(PORT)?;
        for (to, from) in server.ips().into_iter().zip(mesh.client.ips()) {
            let to = SocketAddr::new(to, PORT);
            let [out, _] = steered(&mesh.a)?;
            let talk = Talk::start(&mesh.client, to, &listener).await?;
            assert_eq!(talk.seen_client()?.ip(), from, "the server sees the client itself");
            assert_eq!(talk.seen_server()?, to, "the client sees what it dialled");
            assert_eq!(steered(&mesh.a)?[0], out + 1, "{to} was not captured");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_service_address_leads_to_its_pod_and_stays_what_the_client_sees() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    for server in [&mesh.near, &mesh.far] {
        let listener = server.listen(Mesh::TCP_TARGET)?;
        let to = SocketAddr::new(mesh.service_ips(server)[0], Mesh::TCP);
        refused(&mesh.client, to, &listener, Duration::from_millis(200)).await?;
    }
    let _agents = mesh.start_agents(&[]).await?;
    for server in [&mesh.near, &mesh.far] {
        let listener = server.listen(Mesh::TCP_TARGET)?;
        for (to, from) in mesh.service_ips(server).into_iter().zip(mesh.client.ips()) {
            let to = SocketAddr::new(to, Mesh::TCP);
            // More than once: a service's endpoints take turns, of both families.
            for _ in 0..3 {
                let talk = Talk::start(&mesh.client, to, &listener).await?;
                assert_eq!(talk.seen_client()?.ip(), from, "the server sees the client itself");
                assert_eq!(talk.seen_server()?, to, "the client sees what it dialled");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_is_steered_out_of_one_node_and_into_the_other() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.far.listen(PORT)?;
    let ([out_a, in_a], [out_b, in_b]) = (steered(&mesh.a)?, steered(&mesh.b)?);
    let again = syns_sent_again(&mesh.client)?;
    Talk::start(&mesh.client, SocketAddr::new(mesh.far.ip(), PORT), &listener).await?;
    // A machine that stops for a second, as virtual ones do, sends a SYN again, and each is
    // steered.
    let again = syns_sent_again(&mesh.client)? - again;
    let ([now_out_a, now_in_a], [now_out_b, now_in_b]) = (steered(&mesh.a)?, steered(&mesh.b)?);
    let once = |before: u64| before + 1..=before + 1 + again;
    assert!(once(out_a).contains(&now_out_a), "{out_a} {now_out_a}, {again} again");
    // What arrives is the tunnel, and the first connection opened it.
    assert!(once(in_b).contains(&now_in_b), "{in_b} {now_in_b}, {again} again");
    assert_eq!([now_in_a, now_out_b], [in_a, out_b]);
    Ok(())
}

#[tokio::test]
async fn plaintext_from_outside_the_mesh_is_captured_and_delivered() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    for (node, server) in [(&mesh.a, &mesh.near), (&mesh.b, &mesh.far)] {
        let listener = server.listen(PORT)?;
        for (to, from) in server.ips().into_iter().zip(mesh.outsider.ips()) {
            let to = SocketAddr::new(to, PORT);
            let [out, into] = steered(node)?;
            let talk = Talk::start(&mesh.outsider, to, &listener).await?;
            assert_eq!(talk.seen_client()?.ip(), from, "the server sees the client itself");
            assert_eq!(talk.seen_server()?, to, "the client sees what it dialled");
            assert_eq!(steered(node)?, [out, into + 1]);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_of_the_mesh_reaches_what_is_outside_as_itself() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let router = listen_at_the_router(&mesh)?;
    let listener = mesh.outsider.listen(PORT)?;
    let outside = [(&listener, mesh.outsider.ips()), (&router, mesh.lab.fabric_ips())];
    for (listener, ips) in outside {
        for (to, from) in ips.into_iter().zip(mesh.client.ips()) {
            let to = SocketAddr::new(to, listener.local_addr()?.port());
            let [out, into] = steered(&mesh.a)?;
            let talk = Talk::start(&mesh.client, to, listener).await?;
            assert_eq!(talk.seen_client()?.ip(), from);
            assert_eq!(talk.seen_server()?, to);
            assert_eq!(steered(&mesh.a)?, [out + 1, into], "{to} was not captured");
        }
    }
    Ok(())
}

/// The router is outside the mesh and on no node.
fn listen_at_the_router(mesh: &Mesh) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT);
    let listener = mesh.lab.fabric().run(|| std::net::TcpListener::bind(address))??;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

#[tokio::test]
async fn an_application_that_dials_itself_is_left_alone() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.client.listen(PORT)?;
    let before = steered(&mesh.a)?;
    for own in mesh.client.ips() {
        let to = SocketAddr::new(own, PORT);
        let talk = Talk::start(&mesh.client, to, &listener).await?;
        // Through the agent the port would be another one.
        assert_eq!(talk.seen_client()?, talk.client.local_addr()?);
        assert_eq!(talk.seen_server()?, to);
    }
    assert_eq!(steered(&mesh.a)?, before);
    Ok(())
}

#[tokio::test]
async fn loopback_is_left_alone() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.client.listen(PORT)?;
    let before = all_events(&mesh.a)?;
    let (v4, v6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    for (dialled, reached) in [
        (IpAddr::from(v4), IpAddr::from(v4)),
        ([127, 0, 0, 2].into(), [127, 0, 0, 2].into()),
        (v4.to_ipv6_mapped().into(), v4.into()),
        (v6.into(), v6.into()),
        // To connect(), no address is this machine's.
        (Ipv4Addr::UNSPECIFIED.into(), v4.into()),
        (Ipv6Addr::UNSPECIFIED.into(), v6.into()),
    ] {
        let to = SocketAddr::new(dialled, PORT);
        let talk = Talk::start(&mesh.client, to, &listener).await?;
        assert_eq!(talk.seen_client()?.port(), talk.client.local_addr()?.port());
        assert_eq!(talk.seen_server()?, SocketAddr::new(reached, PORT));
    }
    assert_eq!(all_events(&mesh.a)?, before);
    Ok(())
}

#[tokio::test]
async fn datagrams_are_left_alone() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let before = [all_events(&mesh.a)?, all_events(&mesh.b)?];
    for (to, from) in mesh.far.ips().into_iter().zip(mesh.client.ips()) {
        let (receiver, sender) = (udp(&mesh.far, to)?, udp(&mesh.client, from)?);
        sender.connect(receiver.local_addr()?).await?;
        sender.send(b"datagram").await?;
        let mut received = [0; 16];
        let (length, seen) = timeout(PATIENCE, receiver.recv_from(&mut received)).await??;
        assert_eq!(&received[..length], b"datagram");
        assert_eq!(seen, sender.local_addr()?);
        assert_eq!(SockRef::from(&sender).mark()?, 0, "connected UDP has no mark");
    }
    assert_eq!([all_events(&mesh.a)?, all_events(&mesh.b)?], before);
    Ok(())
}

fn udp(pod: &Pod, ip: IpAddr) -> anyhow::Result<UdpSocket> {
    let address = SocketAddr::new(ip, 0);
    let socket = pod.socket(Domain::for_address(address), Type::DGRAM, None)?;
    socket.bind(&address.into())?;
    Ok(UdpSocket::from_std(socket.into())?)
}

#[tokio::test]
async fn a_pod_outside_the_mesh_is_not_captured() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let router = listen_at_the_router(&mesh)?;
    let before = all_events(&mesh.a)?;
    for (to, from) in mesh.lab.fabric_ips().into_iter().zip(mesh.outsider.ips()) {
        let to = SocketAddr::new(to, PORT);
        let talk = Talk::start(&mesh.outsider, to, &router).await?;
        assert_eq!(talk.seen_client()?, talk.client.local_addr()?);
        assert_eq!(talk.seen_client()?.ip(), from);
    }
    assert_eq!(all_events(&mesh.a)?, before);
    // The same from a pod of the mesh is counted.
    let to = SocketAddr::new(mesh.lab.fabric_ips()[0], PORT);
    Talk::start(&mesh.client, to, &router).await?;
    assert_ne!(all_events(&mesh.a)?, before);
    Ok(())
}

#[tokio::test]
async fn no_pod_has_a_firewall_rule() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.far.listen(PORT)?;
    Talk::start(&mesh.client, SocketAddr::new(mesh.far.ip(), PORT), &listener).await?;
    for pod in [&mesh.client, &mesh.near, &mesh.far, &mesh.outsider] {
        assert_eq!(firewall_rules(pod)?, Vec::<String>::new(), "{}", pod.name());
    }
    Ok(())
}

#[tokio::test]
async fn programs_run_at_connect_and_at_the_first_syn_and_nowhere_else() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let [agent, _] = mesh.start_agents(&[]).await?;
    let maps = bpftool::pinned_maps(&mesh.a)?;
    let held = programs_of(agent.process().id())?;
    let is_ours = |program: &&Value| {
        let mut uses = program["map_ids"].as_array().into_iter().flatten();
        held.contains(&program["id"]) || uses.any(|map| maps.contains(map))
    };
    let programs = bpftool::list(&["prog", "show"])?;
    let kinds: BTreeSet<_> =
        programs.iter().filter(is_ours).filter_map(|program| program["type"].as_str()).collect();
    assert_eq!(kinds, BTreeSet::from(["cgroup_sock_addr", "sk_lookup"]));

    let links = bpftool::list(&["link", "show"])?;
    for (pod, expected) in [(&mesh.client, 1), (&mesh.near, 1), (&mesh.outsider, 0)] {
        let inode = fs::metadata(pod.netns_path())?.ino();
        let attached: Vec<_> =
            links.iter().filter(|link| link["netns_ino"].as_u64() == Some(inode)).collect();
        assert_eq!(attached.len(), expected, "{}: {attached:?}", pod.name());
        assert!(attached.iter().all(|link| link["attach_type"] == "sk_lookup"), "{attached:?}");
        assert_eq!(packet_programs(pod)?, Vec::<Value>::new(), "{}", pod.name());
    }
    Ok(())
}

/// The ids of programs whose descriptors, or links' descriptors, a process holds.
fn programs_of(process: u32) -> anyhow::Result<Vec<Value>> {
    let mut programs = Vec::new();
    for entry in fs::read_dir(Path::new("/proc").join(process.to_string()).join("fdinfo"))? {
        // A descriptor that was closed since is no program that stays.
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        let ids = info.lines().filter_map(|line| line.strip_prefix("prog_id:"));
        programs.extend(ids.filter_map(|id| id.trim().parse::<u64>().ok()).map(Value::from));
    }
    Ok(programs)
}

/// Programs that run per packet on any interface of the pod: XDP, tc, flow dissectors.
fn packet_programs(pod: &Pod) -> anyhow::Result<Vec<Value>> {
    let mut command = Command::new("bpftool");
    command.args(["--json", "net", "show"]);
    let shown: Value = serde_json::from_str(&pod.run(command)?.success()?)?;
    let kinds = shown.as_array().into_iter().flatten().filter_map(Value::as_object);
    let lists = kinds.flat_map(|kinds| kinds.values()).filter_map(Value::as_array);
    Ok(lists.flatten().cloned().collect())
}

/// How many connections a client outside the mesh holds to one port: the agent dials in its name for
/// each of them, and of so many dials some would have a port of the client's own, if they could.
const HELD: usize = 150;

#[tokio::test]
async fn no_dial_in_a_clients_name_meets_a_connection_that_the_client_holds() -> anyhow::Result<()>
{
    let mesh = Mesh::new()?;
    let _agent = mesh.start_agent(&mesh.a, &["--trace-sampling", "0"]).await?;
    let listener = mesh.near.listen(Mesh::TCP_TARGET)?;
    let to = SocketAddr::new(mesh.near.ip(), Mesh::TCP_TARGET);
    let mut held = Vec::new();
    for number in 0..5 * HELD {
        let talk = Talk::start(&mesh.outsider, to, &listener).await;
        let talk = talk.with_context(|| format!("connection {number}"))?;
        if number < HELD {
            held.push(talk);
        }
    }
    Ok(())
}
