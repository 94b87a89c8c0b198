//! Listeners inside a pod's netns, and what their accepted sockets say.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use agent_common::MARK_MASK;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
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
    /// What the application had marked its socket with before it connected, of the bits that
    /// capture leaves alone; 0 for none, and for clients on the network.
    pub mark: u32,
}

/// Accepts the next captured connection.
///
/// # Errors
/// When the process is out of file descriptors, or the client is gone already.
pub async fn accept(listener: &TcpListener) -> io::Result<Accepted> {
    let (stream, peer) = listener.accept().await?;
    let original_destination = canonical(stream.local_addr()?);
    // The settings that keep answers on `lo` give the socket the mark of its SYN.
    let mark = SockRef::from(&stream).mark()? & !MARK_MASK;
    Ok(Accepted { stream, peer: canonical(peer), original_destination, mark })
}

impl Accepted {
    /// Has the calling thread's runtime watch over the socket from now on.
    ///
    /// # Errors
    /// When the kernel has no room for that; the connection is reset then.
    pub fn moved_here(self) -> io::Result<Self> {
        let stream = self.stream.into_std()?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        let stream = TcpStream::from_std(stream)?;
        SockRef::from(&stream).set_linger(None)?;
        Ok(Self { stream, ..self })
    }
}

/// The port that both listeners of a pod have: that of HBONE, which is the agent's in any case, so
/// that no application loses one to them.
const PORT: u16 = 15008;

/// Addresses tried before there is no listener. Of sixteen million, others have a few.
const ADDRESSES_TRIED: usize = 16;

/// A listener for whatever the steer program hands over, in the calling thread's netns. Nobody can
/// dial it.
///
/// # Panics
/// Outside a tokio runtime.
pub(super) fn listen() -> io::Result<TcpListener> {
    TcpListener::from_std(transparent_listener()?.into())
}

/// The same, for no runtime yet.
///
/// It has an address and a port, as listeners must, but an address of multicast, where the kernel
/// lets nobody connect to with TCP (`connect()` fails with ENETUNREACH) and answers no SYN. Which one
/// is left to chance, so that the next agent's listeners can be there while this one's are.
pub(super) fn transparent_listener() -> io::Result<Socket> {
    for _ in 0..ADDRESSES_TRIED {
        let [a, b, c]: [u8; 3] = rand::random();
        match listener_at(Ipv4Addr::new(239, a, b, c)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            other => return other,
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("port {PORT} is taken in the pod (hint: `ss -tlnp` there tells by whom)"),
    ))
}

fn listener_at(address: Ipv4Addr) -> io::Result<Socket> {
    let socket = match Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)) {
        Ok(socket) => {
            // An IPv4 address as IPv6 has it: a socket of any other address of IPv6's would be for
            // that family alone.
            socket.set_only_v6(false)?;
            // One flag of the socket, whichever family sets it: it may accept connections to
            // addresses that are not the pod's.
            socket.set_ip_transparent_v6(true)?;
            socket.bind(&SocketAddr::from((address.to_ipv6_mapped(), PORT)).into())?;
            socket
        }
        // A kernel without IPv6.
        Err(_) => {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_ip_transparent_v4(true)?;
            socket.bind(&SocketAddr::from((address, PORT)).into())?;
            socket
        }
    };
    socket.set_nonblocking(true)?;
    // Linux passes these on to every accepted socket. The latter has the port that was dialled
    // as its own: without the flag the application could not listen on that port, again or at
    // all, as long as the connection and its TIME_WAIT last.
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
