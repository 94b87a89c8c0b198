//! Every kind of socket an application may dial with: capture takes them all, and what arrives
//! is what was sent.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    process::Command,
};

use anyhow::{Context, ensure};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::IpBindAddressNoPort},
};
use sluice_tests::{
    Agent, Mesh, Node, PATIENCE, Pod, Port, Service, Talk, capture_events, eventually,
    fast_open_connect, fast_open_listener, within,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const PORT: u16 = 9999;
/// Below where Linux takes ports from by itself.
const FIXED: u16 = 20_000;

/// A mesh with agents, and how to tell that a connection of the client was captured.
struct Captured {
    mesh: Mesh,
    _agents: [Agent; 2],
}

impl Captured {
    async fn start() -> anyhow::Result<Self> {
        let mesh = Mesh::new()?;
        let _agents = mesh.start_agents(&[]).await?;
        Ok(Self { mesh, _agents })
    }

    /// Talks over what `connect` connects to `to`, which must be captured once. Whatever it is,
    /// the server sees the client's address and the client what it dialled.
    async fn talk<F>(&self, to: SocketAddr, at: &TcpListener, connect: F) -> anyhow::Result<Talk>
    where
        F: AsyncFnOnce(&Pod, SocketAddr) -> anyhow::Result<TcpStream>,
    {
        let Mesh { client, a, .. } = &self.mesh;
        let before = capture_events(a, "steered_out")?;
        let talk = async { Talk::over(connect(client, to).await?, at).await };
        let talk = talk.await.with_context(|| format!("cannot talk to {to}"))?;
        ensure!(capture_events(a, "steered_out")? == before + 1, "{to} was not captured");
        let canonical = SocketAddr::new(to.ip().to_canonical(), to.port());
        assert_eq!(talk.seen_server()?, canonical);
        assert_eq!(talk.seen_client()?.ip(), own(client, canonical));
        Ok(talk)
    }
}

/// The pod's address of the family of `to`.
fn own(pod: &Pod, to: SocketAddr) -> IpAddr {
    let [v4, v6] = pod.ips();
    if to.is_ipv4() { v4 } else { v6 }
}

/// The addresses under which `server` can be dialled at the target of the opaque service.
fn addresses(mesh: &Mesh, server: &Pod) -> [SocketAddr; 4] {
    let [pod4, pod6] = server.ips().map(|ip| SocketAddr::new(ip, Mesh::TCP_TARGET));
    let [service4, service6] = mesh.service_ips(server).map(|ip| SocketAddr::new(ip, Mesh::TCP));
    [pod4, pod6, service4, service6]
}

fn tcp(pod: &Pod, to: SocketAddr) -> anyhow::Result<Socket> {
    pod.socket(Domain::for_address(to), Type::STREAM, None)
}

/// connect() of a non-blocking socket, and the wait until it is through.
async fn connected(socket: Socket, to: SocketAddr) -> anyhow::Result<TcpStream> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => other.with_context(|| format!("connect to {to}"))?,
    }
    let stream = TcpStream::from_std(socket.into())?;
    within(PATIENCE, "the connection", stream.writable()).await??;
    match stream.take_error()? {
        Some(error) => Err(error).with_context(|| format!("connect to {to}")),
        None => Ok(stream),
    }
}

#[tokio::test]
async fn ipv6_sockets_reach_ipv4_addresses() -> anyhow::Result<()> {
    let captured = Captured::start().await?;
    let mesh = &captured.mesh;
    for server in [&mesh.near, &mesh.far] {
        let listener = server.listen(Mesh::TCP_TARGET)?;
        for to in addresses(mesh, server) {
            let IpAddr::V4(ip) = to.ip() else { continue };
            let mapped = SocketAddr::new(ip.to_ipv6_mapped().into(), to.port());
            let connect = async |client: &Pod, to| connected(tcp(client, to)?, to).await;
            captured.talk(mapped, &listener, connect).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_non_blocking_connect_is_in_progress_and_then_done() -> anyhow::Result<()> {
    let captured = Captured::start().await?;
    let mesh = &captured.mesh;
    for server in [&mesh.near, &mesh.far] {
        let listener = server.listen(Mesh::TCP_TARGET)?;
        for to in addresses(mesh, server) {
            let connect = async |client: &Pod, to: SocketAddr| {
                let socket = tcp(client, to)?;
                let in_progress = socket.connect(&to.into()).map_err(|e| e.raw_os_error());
                assert_eq!(in_progress, Err(Some(libc::EINPROGRESS)));
                let stream = TcpStream::from_std(socket.into())?;
                within(PATIENCE, "the connection", stream.writable()).await??;
                assert!(stream.take_error()?.is_none());
                Ok(stream)
            };
            captured.talk(to, &listener, connect).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_socket_bound_to_its_pods_address_first_is_captured_all_the_same() -> anyhow::Result<()> {
    let captured = Captured::start().await?;
    let mesh = &captured.mesh;
    let mut fixed = FIXED..;
    for server in [&mesh.near, &mesh.far] {
        let listener = server.listen(Mesh::TCP_TARGET)?;
        for to in addresses(mesh, server) {
            // Never one twice: the kernel keeps it for a minute.
            let fixed = fixed.next().context("a port")?;
            for (port, late) in [(0, false), (0, true), (fixed, false)] {
                let connect = async |client: &Pod, to: SocketAddr| {
                    let socket = tcp(client, to)?;
                    if late {
                        setsockopt(&socket.as_fd(), IpBindAddressNoPort, &true)?;
                    }
                    socket.bind(&SocketAddr::new(own(client, to), port).into())?;
                    connected(socket, to).await
                };
                let talk = captured.talk(to, &listener, connect).await?;
                let from = talk.client.local_addr()?;
                assert_eq!(from.ip(), own(&mesh.client, to));
                assert!(port == 0 || from.port() == port);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_socket_bound_to_its_pods_address_reaches_loopback_past_capture() -> anyhow::Result<()> {
    let Captured { mesh, _agents } = Captured::start().await?;
    let listener = mesh.client.listen(PORT)?;
    let before = capture_events(&mesh.a, "marked")?;
    let to = SocketAddr::from(([127, 0, 0, 1], PORT));
    let socket = tcp(&mesh.client, to)?;
    socket.bind(&SocketAddr::new(mesh.client.ip(), 0).into())?;
    let talk = Talk::over(connected(socket, to).await?, &listener).await?;
    assert_eq!(talk.seen_client()?, talk.client.local_addr()?);
    assert_eq!(capture_events(&mesh.a, "marked")?, before);
    Ok(())
}

/// Sets `net.ipv4.tcp_fastopen` of both families: 1 and 2 are for clients and servers. With 4
/// clients send data without a cookie; with 0x200 servers take it, and with 0x400 on any
/// listener.
fn allow_fast_open(pod: &Pod, how: u32) -> anyhow::Result<()> {
    Ok(pod.netns().run(|| fs::write("/proc/sys/net/ipv4/tcp_fastopen", how.to_string()))??)
}

/// A listener that takes data with a SYN.
fn listen_fast(pod: &Pod, port: u16) -> anyhow::Result<TcpListener> {
    let listener = pod.listen(port)?.into_std()?;
    let listener = Socket::from(listener);
    fast_open_listener(&listener)?;
    // Again, for the option to take effect.
    listener.listen(1024)?;
    Ok(TcpListener::from_std(listener.into())?)
}

/// The first bytes arrive once, and then the connection is as any other.
async fn arrives_once(
    client: TcpStream,
    listener: &TcpListener,
    first: &str,
) -> anyhow::Result<Talk> {
    let (mut server, _) = within(PATIENCE, "accept", listener.accept()).await??;
    let mut received = vec![0; first.len()];
    within(PATIENCE, "the first bytes", server.read_exact(&mut received)).await??;
    assert_eq!(received, first.as_bytes());
    let mut talk = Talk { client, server };
    talk.exchange().await?;
    talk.client.shutdown().await?;
    let end = within(PATIENCE, "the end", talk.server.read(&mut received)).await??;
    assert_eq!(end, 0, "nothing came twice");
    Ok(talk)
}

/// Fast Open by connect() and by sending, to both servers, each more than once: a connection may
/// use the cookie that the one before was given.
async fn fast_open_works(mesh: &Mesh) -> anyhow::Result<()> {
    const FIRST: &str = "the first bytes";
    let Mesh { client, near, far, a, .. } = mesh;
    for server in [near, far] {
        let listener = listen_fast(server, PORT)?;
        for to in server.ips().map(|ip| SocketAddr::new(ip, PORT)) {
            for by_sending in [false, true, false, true] {
                let before = capture_events(a, "steered_out")?;
                let stream = if by_sending {
                    send_first(tcp(client, to)?, to, FIRST).await?
                } else {
                    let socket = tcp(client, to)?;
                    fast_open_connect(&socket)?;
                    let mut stream = connected(socket, to).await?;
                    stream.write_all(FIRST.as_bytes()).await?;
                    stream
                };
                let talk = arrives_once(stream, &listener, FIRST).await;
                let talk = talk.with_context(|| format!("{to}, by sending: {by_sending}"))?;
                assert_eq!(talk.seen_client()?.ip(), own(client, to));
                assert_eq!(capture_events(a, "steered_out")?, before + 1, "{to}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn tcp_fast_open_is_captured_and_its_first_bytes_arrive_once() -> anyhow::Result<()> {
    let Captured { mesh, _agents } = Captured::start().await?;
    for how in [0x3, 0x7] {
        for pod in [&mesh.client, &mesh.near, &mesh.far] {
            allow_fast_open(pod, how)?;
        }
        fast_open_works(&mesh).await.with_context(|| format!("tcp_fastopen={how}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn tcp_fast_open_works_in_pods_where_every_listener_takes_it() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    // Before enrolment: the agent's listeners are such ones.
    for pod in [&mesh.client, &mesh.near, &mesh.far] {
        allow_fast_open(pod, 0x607)?;
    }
    let _agents = mesh.start_agents(&[]).await?;
    fast_open_works(&mesh).await
}

/// Connects by sending, as `MSG_FASTOPEN` has it.
async fn send_first(socket: Socket, to: SocketAddr, first: &str) -> anyhow::Result<TcpStream> {
    let sent = socket.send_to_with_flags(first.as_bytes(), &to.into(), libc::MSG_FASTOPEN);
    let sent = match sent {
        // Without a cookie only the SYN is under way.
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => 0,
        other => other.context("send with MSG_FASTOPEN")?,
    };
    let mut stream = TcpStream::from_std(socket.into())?;
    within(PATIENCE, "the connection", stream.writable()).await??;
    stream.write_all(&first.as_bytes()[sent..]).await?;
    Ok(stream)
}

/// A socket of `pod` that speaks MPTCP; `None` where the kernel has none, which is said.
fn mptcp(pod: &Pod, address: SocketAddr) -> anyhow::Result<Option<Socket>> {
    // Kernels differ in what they start with. One without MPTCP has no such file.
    let _ = pod.netns().run(|| fs::write("/proc/sys/net/mptcp/enabled", "1"))?;
    let domain = Domain::for_address(address);
    match pod.socket(domain, Type::STREAM, Some(Protocol::MPTCP)) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) => {
            let kernel = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            let lacking = [libc::EPROTONOSUPPORT, libc::ENOPROTOOPT, libc::EINVAL];
            ensure!(kernel.is_some_and(|errno| lacking.contains(&errno)), error);
            println!("not possible here: no MPTCP sockets for {}: {error:#}", address.ip());
            Ok(None)
        }
    }
}

/// A listener in `pod` at `address` that takes MPTCP, as Go programs have it by default.
fn listen_mptcp(pod: &Pod, address: SocketAddr) -> anyhow::Result<Option<TcpListener>> {
    let Some(socket) = mptcp(pod, address)? else { return Ok(None) };
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(Some(TcpListener::from_std(socket.into())?))
}

#[tokio::test]
async fn mptcp_is_captured_and_goes_on_as_tcp() -> anyhow::Result<()> {
    let captured = Captured::start().await?;
    let mesh = &captured.mesh;
    for server in [&mesh.near, &mesh.far] {
        for to in server.ips().map(|ip| SocketAddr::new(ip, PORT)) {
            let Some(listener) = listen_mptcp(server, to)? else { continue };
            let with_tcp = async |client: &Pod, to| connected(tcp(client, to)?, to).await;
            captured.talk(to, &listener, with_tcp).await?;
            let with_mptcp = async |client: &Pod, to| {
                let socket = mptcp(client, to)?.context("the server has MPTCP")?;
                connected(socket, to).await
            };
            captured.talk(to, &listener, with_mptcp).await?;
            // From outside the mesh, too.
            let socket = mptcp(&mesh.outsider, to)?.context("the server has MPTCP")?;
            let into = |node: &Node| capture_events(node, "steered_in");
            let node = if server.node() == mesh.a.name() { &mesh.a } else { &mesh.b };
            let before = into(node)?;
            let talk = Talk::over(connected(socket, to).await?, &listener).await?;
            assert_eq!(talk.seen_client()?.ip(), own(&mesh.outsider, to));
            assert_eq!(into(node)?, before + 1);
        }
    }
    Ok(())
}

/// One request of a client whose socket is marked so; the status of its answer.
async fn ask_marked(client: &Pod, mark: u32, to: SocketAddr) -> anyhow::Result<String> {
    let socket = client.socket(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_mark(mark)?;
    let mut stream = connected(socket, to).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    within(PATIENCE, "the answer", stream.read_to_string(&mut answer)).await??;
    Ok(answer.split(' ').nth(1).context("no status")?.to_owned())
}

#[tokio::test]
async fn requests_of_a_client_without_the_mark_take_no_connection_of_one_with_it()
-> anyhow::Result<()> {
    /// What is to bypass a pod's own routes; without it there is no way out.
    const MARK: u32 = 0x8_0000;
    let Captured { mesh, _agents } = Captured::start().await?;
    let Mesh { client, outsider, config, .. } = &mesh;
    let (ip, to) = (IpAddr::from([10, 96, 0, 9]), outsider.ip());
    config.service(&Service {
        name: "shop",
        namespace: "default",
        ips: vec![ip],
        ports: vec![Port { name: "http", port: 80, target: PORT }],
        endpoints: vec![outsider],
    })?;
    let knows = || async {
        let version = Agent::status(&mesh.a)?["configuration"]["version"].as_u64();
        Ok((version >= Some(2)).then_some(()))
    };
    eventually("the client's agent knows", knows).await?;
    let mut rules = Command::new("sh");
    rules.arg("-ec").arg(format!(
        "ip rule add priority 100 fwmark {MARK:#x}/{MARK:#x} lookup main; \
         ip rule add priority 101 to {to} unreachable"
    ));
    client.run(rules)?.success()?;
    let listener = outsider.listen(PORT)?;
    let serve = async {
        loop {
            let (mut stream, _) = listener.accept().await?;
            let mut heard = Vec::new();
            // Open until its client closes it, so that there is one that could be used again.
            while let Ok(byte) = stream.read_u8().await {
                heard.push(byte);
                if heard.ends_with(b"\r\n\r\n") {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?;
                }
            }
        }
    };
    let asked = async {
        let to = SocketAddr::new(ip, 80);
        assert_eq!(ask_marked(client, MARK, to).await?, "200");
        assert_eq!(ask_marked(client, 0, to).await?, "503");
        anyhow::Ok(())
    };
    tokio::select! {
        done = asked => done,
        failed = serve => failed,
    }
}
