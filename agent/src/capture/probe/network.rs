//! What capture does inside a pod, done in a network namespace that no pod has.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use agent_common::{MARK, OwnAddress, outbound_slot};
use aya::{
    Ebpf,
    maps::{HashMap, Map, MapError, SockMap},
};
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkFlags, LinkMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::{ebpf::Object, report::Area};
use crate::capture::{
    error::{CaptureError, Step},
    maps::address,
    netlink::Netlink,
    netns::Netns,
    network::{self, Network},
    routing::{self, Plan},
    settings::Settings,
    sock_diag,
    sockets::{BACKLOG, canonical, transparent_listener},
};

/// The slot of the pod that is tried with, in maps that are nobody else's.
pub(super) const POD: u32 = 0;
/// Its address, and one it dials: both for documentation only (RFC 5737).
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const DIALLED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 80);
/// How long a connection within the namespace may take; it needs no time.
const PATIENCE: Duration = Duration::from_secs(10);

const ROUTING: &str = "a kernel with CONFIG_IP_MULTIPLE_TABLES, and CONFIG_IPV6_MULTIPLE_TABLES \
                       where IPv6 is on";
const SYSCTL: &str = "a /proc/sys that can be written to, or CAP_SYS_ADMIN and a seccomp profile \
                      that let the agent mount a procfs of its own";

/// Tries it step by step, and in the end with a connection that goes the whole way.
pub(super) fn probe(
    area: &mut Area<'_>,
    netns: Result<Netns, CaptureError>,
    object: Option<Object>,
) {
    let entered = netns.and_then(|netns| {
        netns.run(loopback_up).step("enter a network namespace and set up `lo`")?;
        Ok(netns)
    });
    let netns = area.need(
        "namespaces",
        entered,
        |_| "can be entered".into(),
        "a kernel with CONFIG_NET_NS; no security module that forbids setns()",
    );
    let Some(netns) = netns else {
        return area.unknown("sockets and routes", "no network namespace to try them in");
    };
    let inside = |what: &str, work: fn() -> io::Result<()>| netns.run(work).step(what);

    let sockets = inside("listen and dial with addresses that are not here", || {
        transparent_listener().and_then(|_| client()).map(drop)
    });
    let there = |(): &()| "listen and dial with any address".into();
    area.need("transparent sockets", sockets, there, "CAP_NET_ADMIN in the pod's user namespace");
    node_sockets(area, &inside("ask for a socket by its four-tuple", own_socket_is_found));
    let routed = inside("route by mark", divert);
    area.need("policy routing", routed, |()| "by mark".into(), ROUTING);
    let settings = inside("set network settings", || {
        Settings::ON.restore()?;
        match Settings::read()?.off().next() {
            None => Ok(()),
            Some(name) => {
                Err(io::Error::other(format!("/proc/sys/{name} is not there, or stays off")))
            }
        }
    });
    let there = |(): &()| "tcp_fwmark_accept and fwmark_reflect".into();
    area.need("answers keep the mark", settings, there, SYSCTL);
    match object {
        Some(object) => {
            let arrived = netns.run(|| arrives(object)).step("steer a connection");
            let there = |(): &()| "a marked connection arrives with its destination".into();
            area.need("steering", arrived, there, "mend what is named above");
        }
        None => area.unknown("steering", "there are no programs to steer with"),
    }
    if netns.run(|| Ok(network::has_v6())).is_ok_and(|v6| v6) {
        area.ok("IPv6", "captured as IPv4 is");
    } else {
        area.falls_back("IPv6", "off in new namespaces: IPv4 alone is captured");
    }
    let setting = |path: &str| netns.run(|| fs::read_to_string(path));
    defaults(area, setting);
}

/// How the kubelet's connections are told from others.
fn node_sockets(area: &mut Area<'_>, asked: &Result<(), CaptureError>) {
    const NAME: &str = "sock_diag";
    match asked {
        Ok(()) => area.ok(NAME, "tells the kubelet's probes from other plaintext"),
        Err(error) => area.falls_back(
            NAME,
            format!(
                "{error}: probes of pods that insist on mutual TLS are refused (hint: a kernel \
                 with CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG; `modprobe tcp_diag`)"
            ),
        ),
    }
}

/// Asks for one end of a connection within the namespace.
fn own_socket_is_found() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
    match sock_diag::find(client.local_addr()?, client.peer_addr()?)? {
        Some(found) if found.is_open => Ok(()),
        other => Err(io::Error::other(format!("an open socket was answered with {other:?}"))),
    }
}

/// What pods that do not choose get, and how capture is with it.
fn defaults(area: &mut Area<'_>, setting: impl Fn(&str) -> io::Result<String>) {
    let number = |path| setting(path).ok().and_then(|text| text.trim().parse::<i32>().ok());
    match number("/proc/sys/net/core/somaxconn") {
        Some(most) if most < BACKLOG => area.falls_back(
            "backlog",
            format!(
                "{most} connections of a pod wait to be accepted, not {BACKLOG}: more at once \
                 are slowed down (hint: net.core.somaxconn in the pod)"
            ),
        ),
        Some(_) => area.ok("backlog", format!("{BACKLOG} connections of a pod at once")),
        None => area.falls_back("backlog", "not known how long: no net.core.somaxconn"),
    }
    match number("/proc/sys/net/mptcp/enabled") {
        Some(on) if on != 0 => area.falls_back(
            "Multipath TCP",
            "on: captured as TCP, so that its connections use one path",
        ),
        _ => area.ok("Multipath TCP", "off: nothing to capture"),
    }
    // The first bit is the client's side.
    match number("/proc/sys/net/ipv4/tcp_fastopen") {
        Some(on) if on & 1 != 0 => area.falls_back(
            "TCP Fast Open",
            "on: captured with an ordinary handshake, data follows it",
        ),
        _ => area.ok("TCP Fast Open", "off: nothing to capture"),
    }
}

/// A new namespace's `lo` is down, a pod's is up.
fn loopback_up() -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = routing::LOOPBACK;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    Netlink::open()?.request(RouteNetlinkMessage::SetLink(link), 0)
}

/// Diverts what is marked, in a namespace from which a route leads somewhere.
fn divert() -> io::Result<()> {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![RouteAttribute::Oif(routing::LOOPBACK)];
    Netlink::open()?.request(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE)?;
    let network = Network::read()?;
    Plan::of(&network, &[]).carry_out(&network).map(drop)
}

/// A socket as a captured pod's: marked, and with the pod's address.
fn client() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_mark(MARK)?;
    socket.bind(&SocketAddr::new(CLIENT.into(), 0).into())?;
    Ok(socket)
}

/// Connects to an address that is nowhere, and finds the connection at the listener.
fn arrives(Object { mut ebpf, .. }: Object) -> io::Result<()> {
    let listener = transparent_listener()?;
    announce(&mut ebpf, &listener).map_err(io::Error::other)?;
    client()?.connect_timeout(&DIALLED.into(), PATIENCE)?;
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout)?;
    let (accepted, _) = listener.accept()?;
    match accepted.local_addr()?.as_socket().map(canonical) {
        Some(DIALLED) => Ok(()),
        other => Err(io::Error::other(format!("dialled {DIALLED}, arrived as {other:?}"))),
    }
}

/// Tells the steer program of the pod and its listener.
fn announce(ebpf: &mut Ebpf, listener: &Socket) -> Result<(), MapError> {
    fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut Map {
        ebpf.map_mut(name).expect("agent-ebpf defines it")
    }
    let client = OwnAddress { address: address(CLIENT.into()), slot: POD };
    HashMap::<_, OwnAddress, u8>::try_from(map(ebpf, "OWN_ADDRESSES"))?.insert(client, 0, 0)?;
    SockMap::try_from(map(ebpf, "LISTENERS"))?.set(outbound_slot(POD), listener, 0)
}
