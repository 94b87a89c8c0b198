//! Sockets the agent opens inside a pod's netns.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use agent_common::{Dial, MARK};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::{
    maps::{DialMaps, address},
    netns::Netns,
};

/// Dials from inside one pod. Cloning is cheap.
#[derive(Clone)]
pub struct PodDialer(Arc<Inner>);

struct Inner {
    netns: Arc<Netns>,
    maps: Mutex<DialMaps>,
}

impl PodDialer {
    pub(super) fn new(netns: Arc<Netns>, maps: DialMaps) -> Self {
        Self(Arc::new(Inner { netns, maps: Mutex::new(maps) }))
    }

    /// Connects to the pod's own application as `client`: the application sees the real
    /// client's address.
    ///
    /// # Errors
    /// As `connect()` has them; also when the client's address has no free port left.
    pub async fn to_app(&self, client: IpAddr, app: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.0.netns.run(|| {
            let socket = tcp_socket(app)?;
            match app {
                SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
                SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
            }
            // The client's address is not here: marked, its packets stay on `lo`.
            socket.set_mark(MARK)?;
            socket.bind(&SocketAddr::new(client, 0).into())?;
            Ok(socket)
        })?;
        // The port must be known before the SYN leaves, so it cannot be left to connect().
        let port = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
        let _announced = Announced::new(
            &self.0,
            Dial {
                client: address(client),
                app: address(app.ip()),
                client_port: port,
                app_port: app.port(),
            },
        )?;
        self.connect(socket, app).await
    }

    /// Connects to somewhere else from the pod's own address `client`.
    ///
    /// # Errors
    /// As `connect()` has them.
    pub async fn from_pod(&self, client: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.0.netns.run(|| {
            let socket = tcp_socket(to)?;
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
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
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
    fn new(to: &'a Inner, dial: Dial) -> io::Result<Self> {
        to.maps().dials.insert(dial, 0, 0).map_err(io::Error::other)?;
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

fn tcp_socket(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
