//! Ways around capture that whoever sits in a pod, or reaches one, could try; and what applications do
//! that looks like one of them. See `docs/security.md`, which names these tests.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::{
    libc,
    time::{ClockId, clock_gettime},
};
use sluice_tests::{
    Agent, HboneClient, Mesh, Node, PATIENCE, Pod, Talk, Tcpdump, TestCa, bpftool, capture_events,
    eventually, refused, within,
};
use socket2::{Domain, Socket, Type};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const PORT: u16 = 9999;
/// How long a client that gets no answer waits for one; those here get theirs at once.
const SILENCE: Duration = Duration::from_secs(20);
/// The device that a pod gets beside `eth0`, and its addresses: the pod's, and its peer's.
const NET1: &str = "net1";
const OURS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 168, 5, 5)),
    IpAddr::V6(Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 5)),
];
const THEIRS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 168, 5, 9)),
    IpAddr::V6(Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 9)),
];

/// Runs a shell script in a pod.
fn shell(pod: &Pod, script: &str) -> anyhow::Result<String> {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    pod.run(command)?.success()
}

/// Joins two pods by a link of their own, whose addresses no mesh knows.
fn join(pod: &Pod, peer: &Pod) -> anyhow::Result<()> {
    let there = peer.netns().name();
    shell(pod, &format!("ip link add {NET1} type veth peer name {NET1} netns {there}"))?;
    for (pod, [v4, v6]) in [(pod, OURS), (peer, THEIRS)] {
        shell(
            pod,
            &format!(
                "ip address add {v4}/24 dev {NET1}; ip address add {v6}/64 dev {NET1} nodad; \
                 ip link set {NET1} up"
            ),
        )?;
    }
    Ok(())
}

/// Waits until capture has seen the pod's new interface, and sees it used.
async fn net1_is_captured(pod: &Pod) -> anyhow::Result<()> {
    let rule = || async {
        let rules = shell(pod, "ip rule; ip -6 rule")?;
        let routes = shell(pod, "ip route show table all; ip -6 route show table all")?;
        let both = rules.matches(NET1).count() == 2;
        let routed = OURS.iter().all(|own| routes.contains(&format!("src {own} metric")));
        Ok((both && routed).then_some(()))
    };
    eventually("the new interface is captured", rule).await
}

/// A socket of the pod that is bound to a device.
fn bound_to(pod: &Pod, device: &str, to: SocketAddr) -> anyhow::Result<Socket> {
    let socket = pod.socket(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind_device(Some(device.as_bytes())).context("SO_BINDTODEVICE")?;
    Ok(socket)
}

async fn connect(socket: Socket, to: SocketAddr) -> anyhow::Result<TcpStream> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => other.with_context(|| format!("connect to {to}"))?,
    }
    let stream = TcpStream::from_std(socket.into())?;
    within(PATIENCE, "the connection", stream.writable()).await??;
    stream.take_error()?.map_or(Ok(stream), Err).with_context(|| format!("connect to {to}"))
}

#[tokio::test]
async fn a_socket_that_is_bound_to_its_device_leaves_by_the_tunnel_all_the_same()
-> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.far.listen(Mesh::TCP_TARGET)?;
    let filter = format!("tcp and port {}", Mesh::TCP_TARGET);
    let wire = Tcpdump::on_node(&mesh.a, "plain", &filter).await?;
    for (to, from) in mesh.far.ips().into_iter().zip(mesh.client.ips()) {
        let to = SocketAddr::new(to, Mesh::TCP_TARGET);
        let before = capture_events(&mesh.a, "steered_out")?;
        let client = connect(bound_to(&mesh.client, "eth0", to)?, to).await?;
        let talk = Talk::over(client, &listener).await?;
        assert_eq!(talk.seen_client()?.ip(), from);
        assert_eq!(talk.seen_server()?, to);
        assert_eq!(capture_events(&mesh.a, "steered_out")?, before + 1, "{to} was not captured");
    }
    assert_eq!(wire.stop().await?.packets, 0, "nothing is in plaintext on the wire");
    Ok(())
}

#[tokio::test]
async fn an_interface_that_comes_later_is_captured_in_both_directions() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    join(&mesh.client, &mesh.outsider)?;
    net1_is_captured(&mesh.client).await?;
    let (peer, own) = (mesh.outsider.listen(PORT)?, mesh.client.listen(PORT)?);
    for (ours, theirs) in OURS.into_iter().zip(THEIRS) {
        for bound in [false, true] {
            let to = SocketAddr::new(theirs, PORT);
            let before = capture_events(&mesh.a, "steered_out")?;
            let client = if bound {
                connect(bound_to(&mesh.client, NET1, to)?, to).await?
            } else {
                mesh.client.connect(to).await?
            };
            let talk = Talk::over(client, &peer).await.with_context(|| format!("{to} {bound}"))?;
            assert_eq!(talk.seen_client()?.ip(), ours, "as it would be without capture");
            assert_eq!(capture_events(&mesh.a, "steered_out")?, before + 1, "{to} {bound}");
        }
        let to = SocketAddr::new(ours, PORT);
        let before = capture_events(&mesh.a, "steered_in")?;
        let talk = Talk::start(&mesh.outsider, to, &own).await?;
        assert_eq!(talk.seen_client()?.ip(), theirs);
        assert_eq!(capture_events(&mesh.a, "steered_in")?, before + 1, "{to} was not captured");
    }
    Ok(())
}

#[tokio::test]
async fn an_address_that_the_mesh_does_not_know_is_strict_as_well() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("policy", STRICT)?;
    join(&mesh.near, &mesh.outsider)?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.near.listen(PORT)?;
    let link_local = shell(&mesh.near, &format!("ip -6 -o address show dev {NET1} scope link"))?;
    let link_local = link_local.split_whitespace().find_map(|word| word.split_once("/64"));
    let (link_local, _) = link_local.context("no link-local address")?;
    let scope = shell(&mesh.outsider, &format!("ip -o link show {NET1}"))?;
    let scope = scope.split(':').next().unwrap_or_default().trim().parse()?;
    let link_local = SocketAddrV6::new(link_local.parse()?, PORT, 0, scope);
    let known = mesh.near.ips().map(|ip| SocketAddr::new(ip, PORT));
    let unknown = OURS.map(|ip| SocketAddr::new(ip, PORT));
    for to in known.into_iter().chain(unknown).chain([link_local.into()]) {
        let before = capture_events(&mesh.a, "steered_in")?;
        let told = refused(&mesh.outsider, to, &listener, SILENCE).await?;
        let kind = told.map(|error| error.kind());
        assert_eq!(kind, Some(io::ErrorKind::ConnectionReset), "{to}");
        // On a slow machine, a SYN is sent again.
        assert!(capture_events(&mesh.a, "steered_in")? > before, "{to} was not captured");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_pod_redirects_to_its_loopback_does_not_get_past_policy() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("policy", STRICT)?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.near.listen(PORT)?;
    let redirect = format!(
        "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet; nft add table ip own; \
         nft add chain ip own in '{{type nat hook prerouting priority dstnat;}}'; \
         nft add rule ip own in tcp dport {REDIRECTED} dnat to 127.0.0.1:{PORT}"
    );
    shell(&mesh.near, &redirect)?;
    let to = SocketAddr::new(mesh.near.ip(), REDIRECTED);
    let told = refused(&mesh.outsider, to, &listener, SILENCE).await?;
    assert_eq!(told.map(|error| error.kind()), Some(io::ErrorKind::ConnectionReset));
    Ok(())
}

const REDIRECTED: u16 = 9000;
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                      metadata: {namespace: default, name: strict}\nspec: {mtls: {mode: STRICT}}\n";

#[tokio::test]
async fn where_no_route_leads_captured_sockets_hear_so_at_once() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.client.listen(PORT)?;
    // A pod of IPv4 alone, as most are.
    shell(&mesh.client, "ip -6 address flush dev eth0 scope global; ip -6 route flush dev eth0")?;
    let gone = || async {
        let routes = shell(&mesh.client, "ip -6 route show table 1337")?;
        Ok((!routes.contains("default")).then_some(()))
    };
    eventually("the routes are gone", gone).await?;
    let to = SocketAddr::new(mesh.far.ipv6(), PORT);
    let error = mesh.client.connect(to).await.expect_err("there is no way");
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
    let seen = timeout(Duration::ZERO, listener.accept()).await;
    assert!(seen.is_err(), "an own listener was connected to");
    Ok(())
}

#[tokio::test]
async fn nobody_can_dial_the_agents_listeners() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let [agent, _b] = mesh.start_agents(&[]).await?;
    let listening = listeners(&mesh.near, agent.process().id())?;
    assert_eq!(listening.len(), 2, "{listening:?}");
    let ca = TestCa::of_agents(&mesh.lab.directory().join("ca"))?;
    let own = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for listener in listening {
        let IpAddr::V4(ip) = listener.ip().to_canonical() else { panic!("{listener}") };
        let mapped = ip.to_ipv6_mapped().into();
        for to in own.into_iter().chain(mesh.near.ips()).chain([ip.into(), mapped]) {
            let to = SocketAddr::new(to, listener.port());
            not_served(&mesh.near, to).await?;
        }
        for ip in mesh.near.ips() {
            not_served(&mesh.client, SocketAddr::new(ip, listener.port())).await?;
        }
        for to in own.into_iter().chain(mesh.near.ips()).chain([ip.into()]) {
            let to = SocketAddr::new(to, listener.port());
            let certificate = ca.sign(&[&mesh.far.principal()], OffsetDateTime::now_utc())?;
            let client = HboneClient::connect(&mesh.outsider, &mesh.near, Some(certificate));
            let mut peer = client.await?;
            let (status, ..) = peer.open(to).await?;
            assert!(!status.is_success(), "CONNECT {to}: {status}");
        }
    }
    let open = || async {
        let open = Agent::counter(&mesh.a, "sluice_connections_open")?;
        Ok((open == 0).then_some(()))
    };
    eventually("no connection is left", open).await
}

/// Where the agent listens in a pod.
fn listeners(pod: &Pod, agent: u32) -> anyhow::Result<Vec<SocketAddr>> {
    let listening = shell(pod, "ss -Hlntp")?;
    let of_agent = format!("pid={agent},");
    let ours = listening.lines().filter(|line| line.contains(&of_agent));
    let local = ours.map(|line| line.split_whitespace().nth(3).context("no local address"));
    local.map(|local| Ok(local?.parse()?)).collect()
}

/// Whoever dials there is let down at once: no byte comes back.
async fn not_served(pod: &Pod, to: SocketAddr) -> anyhow::Result<()> {
    let asked = async {
        let mut stream = pod.connect(to).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: you\r\n\r\n").await?;
        stream.read_u8().await
    };
    match timeout(SILENCE, asked).await {
        Ok(Err(_refused)) => Ok(()),
        Ok(Ok(_)) => bail!("{} was answered at {to}", pod.name()),
        Err(_) => bail!("{} hears nothing from {to}", pod.name()),
    }
}

/// What the agent would have written down before it dials `app` as `client`, `age` ago.
fn announce(node: &Node, client: SocketAddr, app: SocketAddr, age: Duration) -> anyhow::Result<()> {
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let ports = [client.port(), app.port()].map(u16::to_ne_bytes);
    let key = [&address(client.ip())[..], &address(app.ip()), ports.as_flattened()].concat();
    let at = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).saturating_sub(age);
    let at = u64::try_from(at.as_nanos())?.to_ne_bytes();
    let value = [at, 1_u64.to_ne_bytes()].concat();
    bpftool::update(node, "DIALS", &key, &value)
}

#[tokio::test]
async fn what_looks_like_a_dial_of_the_agents_is_none() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("policy", STRICT)?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.near.listen(PORT)?;
    // Left by an agent that was killed; and one that is on its way just now, which a kernel that
    // tells where a SYN came in (5.17) does not take the stranger's for.
    let ages: &[u64] = if kernel_since(5, 17)? { &[60, 0] } else { &[60] };
    for (number, age) in ages.iter().enumerate() {
        let to = SocketAddr::new(mesh.near.ip(), PORT);
        let from = SocketAddr::new(mesh.outsider.ip(), 20_000 + u16::try_from(number)?);
        announce(&mesh.a, from, to, Duration::from_secs(*age))?;
        let socket = mesh.outsider.socket(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&from.into())?;
        // The reset may be there before connect() is seen to be through.
        let asked = async { anyhow::Ok(connect(socket, to).await?.read_u8().await?) };
        let told = within(PATIENCE, "the refusal", asked).await?.expect_err("a stranger");
        let kind = told.downcast_ref::<io::Error>().map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::ConnectionReset), "{age} s old: {told:#}");
        let seen = timeout(Duration::from_millis(100), listener.accept()).await;
        assert!(seen.is_err(), "the application was reached by a dial {age} s old");
    }
    Ok(())
}

/// Whether this is Linux of that version or a newer one.
fn kernel_since(major: u32, minor: u32) -> anyhow::Result<bool> {
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let mut number = || numbers.next().context("no version").and_then(|number| Ok(number?));
    Ok((number()?, number()?) >= (major, minor))
}

#[tokio::test]
async fn an_application_that_listens_on_its_device_alone_is_reached() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    for to in mesh.near.ips().map(|ip| SocketAddr::new(ip, PORT)) {
        let socket = bound_to(&mesh.near, "eth0", to)?;
        socket.bind(&to.into())?;
        socket.listen(16)?;
        let listener = TcpListener::from_std(socket.into())?;
        Talk::start(&mesh.client, to, &listener).await?;
        Talk::start(&mesh.outsider, to, &listener).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_mark_of_the_applications_own_goes_on_with_its_connection() -> anyhow::Result<()> {
    /// As Tailscale and others mark what is to bypass their own routes.
    const MARK: u32 = 0x8_0000;
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.outsider.listen(PORT)?;
    // Without the mark there is no way out.
    let address = mesh.outsider.ip();
    let rules = format!(
        "ip rule add priority 100 fwmark {MARK:#x}/{MARK:#x} lookup main; \
         ip rule add priority 101 to {address} unreachable"
    );
    shell(&mesh.client, &rules)?;
    let to = SocketAddr::new(address, PORT);
    let before = capture_events(&mesh.a, "steered_out")?;
    let socket = mesh.client.socket(Domain::IPV4, Type::STREAM, None)?;
    socket.set_mark(MARK)?;
    let talk = Talk::over(connect(socket, to).await?, &listener).await?;
    assert_eq!(talk.seen_client()?.ip(), mesh.client.ip());
    assert_eq!(capture_events(&mesh.a, "steered_out")?, before + 1, "it was not captured");
    not_served(&mesh.client, to).await
}

#[tokio::test]
async fn rules_that_somebody_takes_away_are_there_again() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let rules = || {
        shell(
            &mesh.client,
            "ip rule; ip -6 rule; ip route show table 1337; cat /proc/sys/net/ipv4/tcp_fwmark_accept",
        )
    };
    let before = rules()?;
    let repairs = "sluice_capture_repairs_total";
    assert_eq!(Agent::counter(&mesh.a, repairs)?, 0);
    shell(
        &mesh.client,
        "ip rule del priority 10; ip rule del priority 12; ip -6 rule del priority 10; \
         ip route flush table 1337; echo 0 >/proc/sys/net/ipv4/tcp_fwmark_accept",
    )?;
    eventually("the rules are back", || async { Ok((rules()? == before).then_some(())) }).await?;
    let counted = || async { Ok((Agent::counter(&mesh.a, repairs)? > 0).then_some(())) };
    eventually("the repair is counted", counted).await?;
    let listener = mesh.far.listen(PORT)?;
    let to = SocketAddr::new(mesh.far.ip(), PORT);
    let captured = capture_events(&mesh.a, "steered_out")?;
    Talk::start(&mesh.client, to, &listener).await?;
    assert_eq!(capture_events(&mesh.a, "steered_out")?, captured + 1);
    Ok(())
}
