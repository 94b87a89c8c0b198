//! Listeners inside a pod's netns, and what their accepted sockets say.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// One captured connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// The real source: the application's own end, or the client on the network.
    pub peer: SocketAddr,
    /// What the client dialled.
    pub original_destination: SocketAddr,
}

/// Accepts the next captured connection.
///
/// # Errors
/// When the process is out of file descriptors, or the client is gone already.
pub async fn accept(listener: &TcpListener) -> io::Result<Accepted> {
    let (stream, peer) = listener.accept().await?;
    let original_destination = canonical(stream.local_addr()?);
    Ok(Accepted { stream, peer: canonical(peer), original_destination })
}

/// A listener for whatever the steer program hands over, in the calling thread's netns. It has
/// a port, as listeners must, but nothing ever dials it.
///
/// # Panics
/// Outside a tokio runtime.
pub(super) fn listen() -> io::Result<TcpListener> {
    TcpListener::from_std(transparent_listener()?.into())
}

/// The same, for no runtime yet.
pub(super) fn transparent_listener() -> io::Result<Socket> {
    let socket = match Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            // One flag of the socket, whichever family sets it: it may accept connections to
            // addresses that are not the pod's.
            socket.set_ip_transparent_v6(true)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())?;
            socket
        }
        // A kernel without IPv6.
        Err(_) => {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_ip_transparent_v4(true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
            socket
        }
    };
    socket.set_nonblocking(true)?;
    // Linux passes these on to every accepted socket. The latter has the port that was dialled
    // as its own: without the flag the application could not listen on that port, again or at
    // all, as long as the connection and its TIME_WAIT last. After bind(), whose search for a
    // port would otherwise take one that is shared.
    ready_for_traffic(&socket)?;
    socket.set_reuse_address(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Bytes that wait in a socket for the first time to be sent, beyond which it takes no more.
const LONGEST_QUEUE: u32 = 128 << 10;

/// What every connection the agent carries wants: small writes leave at once, and a peer that
/// vanished without a word is noticed, about five minutes later.
pub(super) fn ready_for_traffic(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    // Linux lets a queue that a reader leaves alone grow to 4 MiB, and charges it to the agent's
    // cgroup. What is under way does not count here, so this slows nobody down.
    socket.set_tcp_notsent_lowat(LONGEST_QUEUE)?;
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(180))
        .with_interval(Duration::from_secs(15))
        .with_retries(9);
    socket.set_tcp_keepalive(&probes)
}

/// IPv4 over a dual-stack socket, as IPv4.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
