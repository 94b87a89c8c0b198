//! What a capability in a pod's network namespace is good for against capture. Some of it leads past,
//! which is why the capability is to be dropped: see `docs/security.md`, which names these tests.

use std::{
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::Context;
use nix::libc;
use sluice_tests::{
    Mesh, Node, PATIENCE, Pod, PodOptions, Talk, Tcpdump, capture_events, eventually, refused,
    within,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

const PORT: u16 = 9999;
/// How long a client that gets no answer waits for one; those here get theirs at once.
const SILENCE: Duration = Duration::from_secs(20);
/// Of a network that is nobody's.
const FOREIGN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// The node's link to the first of its pods, which is the client.
const CLIENTS_LINK: &str = "pod10";
/// The gateway of every pod.
const GATEWAY: &str = "169.254.1.1";
/// More than the addresses and interfaces of a pod that capture knows.
const MANY: u8 = 70;
/// Of so many addresses, those that there is room for beside the pod's own of either family.
const KNOWN: u8 = 62;

fn script(text: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-ec", text]);
    command
}

fn in_pod(pod: &Pod, text: &str) -> anyhow::Result<String> {
    pod.run(script(text))?.success()
}

/// Many commands of `ip` at once: on a slow machine a program starts slowly.
fn ip_batch(pod: &Pod, lines: &str) -> anyhow::Result<()> {
    in_pod(pod, &format!("ip -batch - <<'END'\n{lines}END\n")).map(drop)
}

fn on_node(node: &Node, text: &str) -> anyhow::Result<String> {
    node.run(script(text))?.success()
}

fn at(ip: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(ip.into(), PORT)
}

/// A pod that no mesh knows, without a network until it is given one: what is in a container of
/// another.
fn inner(mesh: &Mesh) -> anyhow::Result<Pod> {
    let inner = mesh.a.pod_with("inner", PodOptions { meshed: false, ..PodOptions::default() })?;
    in_pod(&inner, "ip link del eth0")?;
    Ok(inner)
}

/// `from` talks to the pod of the other node as somebody with the address `seen`, and in plaintext.
async fn gets_past(mesh: &Mesh, from: &Pod, seen: IpAddr) -> anyhow::Result<()> {
    let listener = mesh.far.listen(PORT)?;
    let wire = Tcpdump::on_node(&mesh.a, "plain", &format!("tcp and port {PORT}")).await?;
    let before = capture_events(&mesh.a, "steered_out")?;
    let talk = Talk::start(from, at(mesh.far.ip()), &listener).await?;
    assert_eq!(talk.seen_client()?.ip(), seen);
    assert_eq!(capture_events(&mesh.a, "steered_out")?, before, "it was captured");
    assert!(wire.stop().await?.contains("from the client"), "nothing is readable on the wire");
    Ok(())
}

#[tokio::test]
async fn raw_and_packet_sockets_leave_and_arrive_past_capture() -> anyhow::Result<()> {
    const SECRET: &[u8] = b"neither connected nor captured";
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let tcp = Some(Protocol::TCP);
    let every_packet = Protocol::from(i32::from(u16::try_from(libc::ETH_P_ALL)?.to_be()));
    let sender = mesh.client.socket(Domain::IPV4, Type::RAW, tcp)?;
    let receivers = [
        mesh.far.socket(Domain::IPV4, Type::RAW, tcp)?,
        mesh.far.socket(Domain::PACKET, Type::RAW, Some(every_packet))?,
    ];
    let before = capture_events(&mesh.a, "steered_out")?;
    // A segment of a connection that there is not; its checksum is for the kernel's TCP to look at.
    let [source, port] = [40_000, PORT].map(u16::to_be_bytes);
    let (acknowledges_and_pushes, header_length) = (0x18, 5 << 4);
    let head = [source, port].concat();
    let rest = [0, 0, 0, 1, 0, 0, 0, 1, header_length, acknowledges_and_pushes, 1, 0, 0, 0, 0, 0];
    sender.send_to(&[&head, &rest[..], SECRET].concat(), &at(mesh.far.ip()).into())?;
    for receiver in &receivers {
        eventually("the segment arrives", || async { has_got(receiver, SECRET) }).await?;
    }
    assert_eq!(capture_events(&mesh.a, "steered_out")?, before, "it was captured");
    Ok(())
}

/// Whether a packet with `text` is among those that wait in the socket.
fn has_got(mut socket: &Socket, text: &[u8]) -> anyhow::Result<Option<()>> {
    let mut packet = [0; 2048];
    loop {
        match socket.read(&mut packet) {
            Ok(length) if packet[..length].ends_with(text) => return Ok(Some(())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("recv"),
        }
    }
}

#[tokio::test]
async fn a_mark_that_is_taken_off_later_sends_packets_that_nobody_knows() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.far.listen(PORT)?;
    let Talk { mut client, server } =
        Talk::start(&mesh.client, at(mesh.far.ip()), &listener).await?;
    let filter = format!("tcp and src port {}", client.local_addr()?.port());
    let wire = Tcpdump::in_pod(&mesh.client, "eth0", &filter).await?;
    SockRef::from(&client).set_mark(0)?;
    client.write_all(b"unmarked").await?;
    // Whoever has the address knows of no such connection, and says so.
    let told = within(PATIENCE, "the reset", client.read_u8()).await?;
    assert_eq!(told.expect_err("nobody answers").kind(), io::ErrorKind::ConnectionReset);
    assert!(wire.stop().await?.contains("unmarked"), "it did not leave");
    let heard = server.try_read(&mut [0]).expect_err("the server's application got a byte");
    assert_eq!(heard.kind(), io::ErrorKind::WouldBlock);
    Ok(())
}

#[tokio::test]
async fn who_takes_foreign_addresses_for_its_own_is_refused() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    // Arriving: every address of the network is the pod's, by a route (AnyIP).
    let listener = mesh.near.listen(PORT)?;
    in_pod(&mesh.near, &format!("ip route add local {FOREIGN}/32 dev lo"))?;
    on_node(&mesh.a, &format!("ip route add {FOREIGN} via {}", mesh.near.ip()))?;
    let unknown = || capture_events(&mesh.a, "unknown_address");
    let before = unknown()?;
    let told = refused(&mesh.outsider, at(FOREIGN), &listener, SILENCE).await?;
    assert_eq!(told.map(|error| error.kind()), Some(io::ErrorKind::ConnectionRefused));
    assert_eq!(unknown()?, before + 1);
    // Leaving: from an address that the pod has not.
    let socket = mesh.client.socket(Domain::IPV4, Type::STREAM, None)?;
    socket.set_ip_transparent_v4(true)?;
    socket.bind(&SocketAddr::new(FOREIGN.into(), 0).into())?;
    let wire = Tcpdump::in_pod(&mesh.client, "eth0", &format!("src {FOREIGN}")).await?;
    let listener = mesh.far.listen(PORT)?;
    let begun = socket.connect(&at(mesh.far.ip()).into()).expect_err("it takes time");
    assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
    // The refusal goes where the address is, which is not here.
    let counted = || async { Ok((unknown()? > before + 1).then_some(())) };
    eventually("it is refused", counted).await?;
    assert!(timeout(Duration::ZERO, listener.accept()).await.is_err(), "it got through");
    assert_eq!(wire.stop().await?.packets, 0, "it left");
    Ok(())
}

/// Connects; returns why not.
async fn connect(socket: &Socket, to: SocketAddr) -> anyhow::Result<Option<io::ErrorKind>> {
    match socket.connect(&to.into()) {
        Ok(()) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Ok(Some(error.kind())),
    }
    eventually("the connection comes to something", || async {
        match socket.take_error()? {
            Some(error) => Ok(Some(Some(error.kind()))),
            None => Ok(socket.peer_addr().is_ok().then_some(None)),
        }
    })
    .await
}

#[tokio::test]
async fn addresses_and_interfaces_beyond_what_capture_knows_are_refused() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let address = |number| Ipv4Addr::new(10, 99, 1, number);
    let addresses = (0..MANY).map(|n| format!("address add {}/32 dev eth0\n", address(n)));
    ip_batch(&mesh.near, &addresses.collect::<String>())?;
    on_node(&mesh.a, &format!("ip route add 10.99.1.0/24 via {}", mesh.near.ip()))?;
    let listener = mesh.near.listen(PORT)?;
    // Refused too until capture has heard of it.
    let is_known = |number| {
        let (outsider, listener) = (&mesh.outsider, &listener);
        eventually("the address is known", move || async move {
            Ok(Talk::start(outsider, at(address(number)), listener).await.ok())
        })
    };
    is_known(KNOWN - 1).await?;
    // The next has the place of one that went. Whoever saw that one go has seen the last one, too.
    in_pod(&mesh.near, &format!("ip address del {}/32 dev eth0", address(0)))?;
    is_known(KNOWN).await?;
    let told = refused(&mesh.outsider, at(address(MANY - 1)), &listener, SILENCE).await?;
    assert_eq!(told.map(|error| error.kind()), Some(io::ErrorKind::ConnectionRefused));

    let links = (0..MANY / 2).map(|n| {
        format!("link add a{n} type veth peer name b{n}\nlink set a{n} up\nlink set b{n} up\n")
    });
    ip_batch(&mesh.client, &links.collect::<String>())?;
    let (first, last) = ("a0".to_owned(), format!("b{}", MANY / 2 - 1));
    let bound = async |device: &str| {
        let socket = mesh.client.socket(Domain::IPV4, Type::STREAM, None)?;
        socket.bind_device(Some(device.as_bytes()))?;
        connect(&socket, at(mesh.far.ip())).await
    };
    let seen = || async { Ok(in_pod(&mesh.client, "ip rule")?.contains(&last).then_some(())) };
    eventually("capture has seen the last interface", seen).await?;
    assert_ne!(bound(&first).await?, Some(io::ErrorKind::PermissionDenied));
    assert_eq!(bound(&last).await?, Some(io::ErrorKind::PermissionDenied));
    Ok(())
}

#[tokio::test]
async fn rules_of_the_pods_before_captures_lead_past_it() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    in_pod(&mesh.client, "ip rule add priority 5 lookup main")?;
    gets_past(&mesh, &mesh.client, mesh.client.ip()).await
}

#[tokio::test]
async fn an_interface_that_takes_whole_packets_leads_past_capture() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let inner = inner(&mesh)?;
    let (there, ip) = (inner.netns().name(), inner.ip());
    in_pod(&mesh.client, &format!("ip link add link eth0 name out netns {there} type macvlan"))?;
    in_pod(
        &inner,
        &format!(
            "ip address add {ip}/32 dev out; ip link set out up; \
             ip route add {GATEWAY} dev out; ip route add default via {GATEWAY}"
        ),
    )?;
    on_node(&mesh.a, &format!("ip route replace {ip} dev {CLIENTS_LINK}"))?;
    gets_past(&mesh, &inner, ip).await
}

#[tokio::test]
async fn what_is_forwarded_through_a_pod_is_not_captured() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let inner = inner(&mesh)?;
    let there = inner.netns().name();
    in_pod(
        &mesh.client,
        &format!(
            "ip link add inside type veth peer name outside netns {there}; \
             ip address add 10.99.2.1/24 dev inside; ip link set inside up; \
             echo 1 >/proc/sys/net/ipv4/ip_forward; nft add table ip own; \
             nft add chain ip own out '{{type nat hook postrouting priority srcnat;}}'; \
             nft add rule ip own out oifname eth0 masquerade"
        ),
    )?;
    in_pod(
        &inner,
        "ip address add 10.99.2.2/24 dev outside; ip link set outside up; \
         ip route add default via 10.99.2.1",
    )?;
    gets_past(&mesh, &inner, mesh.client.ip()).await
}
