//! Sockets the agent opens inside a pod's netns.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_common::{Announcement, Dial, MARK};
use aya::{maps::MapError, sys::SyscallError};
use nix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::{
    maps::{DialMaps, address},
    netns::Netns,
    sockets::ready_for_traffic,
};

/// Below those that Linux takes for clients, unless told otherwise (32,768 to 60,999). A client outside
/// the mesh has its own end of a connection in the pod's network namespace too: a dial in its name from
/// the same port would meet that, and neither would be answered.
const PORTS: RangeInclusive<u16> = 1_024..=32_767;
/// Ports tried before a dial fails: one in a thousand does when 93 % of them are in use.
const PORTS_TRIED: usize = 100;
/// Only add an element that is not there.
const BPF_NOEXIST: u64 = 1;

/// Dials from inside one pod. Cloning is cheap.
#[derive(Clone)]
pub struct PodDialer(Arc<Inner>);

struct Inner {
    netns: Arc<Netns>,
    maps: Mutex<DialMaps>,
    /// Whether the kernel tells which SYNs came by `lo`.
    knows_ingress: bool,
}

/// Where the SYN of a dial to the application must come in for it to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ingress {
    /// On `lo`: the socket is bound to that, and nobody else's SYN comes in there.
    Loopback,
    /// Anywhere.
    Any,
}

impl PodDialer {
    pub(super) fn new(netns: Arc<Netns>, maps: DialMaps, knows_ingress: bool) -> Self {
        Self(Arc::new(Inner { netns, maps: Mutex::new(maps), knows_ingress }))
    }

    /// Connects to the pod's own application as `client`: the application sees the real
    /// client's address, with a port of its own.
    ///
    /// # Errors
    /// As `connect()` has them; [`io::ErrorKind::AddrNotAvailable`] when nearly all ports are
    /// in use between this client and this port of the application, about 31,000.
    pub async fn to_app(&self, client: IpAddr, app: SocketAddr) -> io::Result<TcpStream> {
        // Addresses of the pod itself, and those that mean nothing without an interface, are
        // routed to the interface that has them, whatever the socket is bound to.
        let leads_elsewhere =
            client == app.ip() || is_link_local(app.ip()) || is_link_local(client);
        if self.0.knows_ingress && !leads_elsewhere {
            match self.to_app_by(Ingress::Loopback, client, app).await {
                // Nobody listens there, or a socket that is bound to a device.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                done => return done,
            }
        }
        self.to_app_by(Ingress::Any, client, app).await
    }

    async fn to_app_by(
        &self,
        ingress: Ingress,
        client: IpAddr,
        app: SocketAddr,
    ) -> io::Result<TcpStream> {
        for _ in 0..PORTS_TRIED {
            let from = SocketAddr::new(client, rand::random_range(PORTS));
            match self.to_app_from(ingress, from, app).await {
                Err(error) if is_taken(&error) => {}
                done => return done,
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!("{PORTS_TRIED} ports of {client} are all connected to {app} already"),
        ))
    }

    async fn to_app_from(
        &self,
        ingress: Ingress,
        from: SocketAddr,
        app: SocketAddr,
    ) -> io::Result<TcpStream> {
        let socket = self.0.netns.run(|| {
            let socket = tcp_socket(app)?;
            match app {
                SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
                SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
            }
            // The client's address is not here: marked, its packets stay on `lo`.
            socket.set_mark(MARK)?;
            if ingress == Ingress::Loopback {
                // Not only do its packets leave by `lo`, the kernel also says so of them: without
                // this it would name the interface that has the application's address.
                socket.bind_device(Some(b"lo"))?;
            }
            // The port must be known before the SYN leaves, so it cannot be left to connect();
            // left to bind(), it would be taken from all of the pod's ports until a minute
            // after the connection. This way only the whole four-tuple has to be free, and
            // connect() takes one that waits that minute out (RFC 6191).
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
            Ok(socket)
        })?;
        let dial = Dial {
            client: address(from.ip()),
            app: address(app.ip()),
            client_port: from.port(),
            app_port: app.port(),
        };
        let _announced = Announced::new(&self.0, dial, ingress)?;
        self.connect(socket, app).await
    }

    /// Connects to somewhere else from the pod's own address `client`. With what the application
    /// had `mark`ed its socket, rules of the pod's that go by marks hold as they would for it.
    ///
    /// # Errors
    /// As `connect()` has them.
    pub async fn from_pod(
        &self,
        client: IpAddr,
        to: SocketAddr,
        mark: u32,
    ) -> io::Result<TcpStream> {
        let socket = self.0.netns.run(|| {
            let socket = tcp_socket(to)?;
            if mark != 0 {
                socket.set_mark(mark)?;
            }
            if client.is_ipv4() == to.is_ipv4() {
                // connect() picks the port, by the whole four-tuple: many more than 28,000
                // connections can share the address.
                nix::sys::socket::setsockopt(
                    &socket,
                    nix::sys::socket::sockopt::IpBindAddressNoPort,
                    &true,
                )?;
                socket.bind(&SocketAddr::new(client, 0).into())?;
            }
            Ok(socket)
        })?;
        self.connect(socket, to).await
    }

    async fn connect(&self, socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
        // The connect program leaves sockets alone that are registered here.
        self.0.maps().own.insert(socket.cookie()?, 0, 0).map_err(io::Error::other)?;
        let socket = TcpSocket::from_std_stream(socket.into());
        socket.connect(to).await
    }
}

impl fmt::Debug for PodDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PodDialer").field(&self.0.netns.inode()).finish()
    }
}

impl Inner {
    /// Held for one system call at a time.
    fn maps(&self) -> MutexGuard<'_, DialMaps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the steer program that a SYN is the application's, until dropped.
struct Announced<'a> {
    to: &'a Inner,
    dial: Dial,
}

impl<'a> Announced<'a> {
    fn new(to: &'a Inner, dial: Dial, ingress: Ingress) -> io::Result<Self> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let announcement = Announcement {
            at: Duration::from(now).as_nanos().try_into().unwrap_or(u64::MAX),
            on_loopback: (ingress == Ingress::Loopback).into(),
        };
        to.maps().dials.insert(dial, announcement, BPF_NOEXIST).map_err(|error| match error {
            // Another dial is at the same port, and must not lose its announcement to this one.
            MapError::SyscallError(SyscallError { io_error, .. }) => io_error,
            error => io::Error::other(error),
        })?;
        Ok(Self { to, dial })
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.to.maps().dials.remove(&self.dial) {
            tracing::debug!(%error, "could not withdraw a dial");
        }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Whether the port is the trouble, in bind(), in `DIALS` or in connect().
fn is_taken(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable, AlreadyExists};
    matches!(error.kind(), AddrInUse | AlreadyExists | AddrNotAvailable)
}

fn tcp_socket(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    ready_for_traffic(&socket)?;
    Ok(socket)
}
