//! Asks the kernel whose a TCP socket is (sock_diag(7)).

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use netlink_packet_core::{
    DecodeError, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

use super::sockets::canonical;

/// What the kernel says of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TcpSocket {
    local: SocketAddr,
    remote: SocketAddr,
    /// Connected and held by somebody. Of any other the kernel does not know the user: it says 0,
    /// which is root's number.
    pub(super) is_open: bool,
    /// Who made it.
    pub(super) uid: u32,
    /// The number of its file.
    pub(super) inode: u32,
    /// The number of the cgroup2 directory it was made in (Linux 5.8).
    pub(super) cgroup: Option<u64>,
}

/// Message type, and the sizes of what `linux/inet_diag.h` lays out.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST: usize = 56;
const ANSWER: usize = 72;
const INET_DIAG_CGROUP_ID: u16 = 21;
const TCP_ESTABLISHED: u8 = 1;

/// The socket in the calling thread's netns that is bound to `local` and connected to `remote`;
/// no other, and none that listens.
pub(super) fn find(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<TcpSocket>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let (local, remote) = (canonical(local), canonical(remote));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let payload = NetlinkPayload::InnerMessage(Request { local, remote });
    let mut request = NetlinkMessage::new(header, payload);
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<TcpSocket>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        // Where nothing is connected, the kernel answers with whoever listens.
        NetlinkPayload::InnerMessage(found) => {
            Ok(Some(found).filter(|found| found.local == local && found.remote == remote))
        }
        NetlinkPayload::Error(error) => match error.to_io() {
            error if error.kind() == io::ErrorKind::NotFound => Ok(None),
            error => Err(error),
        },
        other => Err(io::Error::other(format!("an answer to something else: {other:?}"))),
    }
}

/// Asks for one socket, with everything the kernel tells unasked.
#[derive(Debug)]
struct Request {
    local: SocketAddr,
    remote: SocketAddr,
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        SOCK_DIAG_BY_FAMILY
    }

    fn buffer_len(&self) -> usize {
        REQUEST
    }

    /// `struct inet_diag_req_v2`: family, protocol, two bytes of nothing, states, then the tuple,
    /// the interface and a cookie, which all ones leave open.
    fn serialize(&self, buffer: &mut [u8]) {
        let family = if self.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        buffer.fill(0);
        buffer[0] = u8::try_from(family).expect("both families fit");
        buffer[1] = u8::try_from(libc::IPPROTO_TCP).expect("6");
        buffer[4..8].fill(0xff);
        buffer[8..10].copy_from_slice(&self.local.port().to_be_bytes());
        buffer[10..12].copy_from_slice(&self.remote.port().to_be_bytes());
        for (at, ip) in [(12, self.local.ip()), (28, self.remote.ip())] {
            match ip {
                IpAddr::V4(ip) => buffer[at..at + 4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => buffer[at..at + 16].copy_from_slice(&ip.octets()),
            }
        }
        buffer[48..56].fill(0xff);
    }
}

impl NetlinkDeserializable for TcpSocket {
    type Error = DecodeError;

    /// `struct inet_diag_msg`, and attributes behind it.
    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        if header.message_type != SOCK_DIAG_BY_FAMILY || payload.len() < ANSWER {
            return Err(DecodeError::from("not what sock_diag answers"));
        }
        let number = |at: usize| {
            u32::from_ne_bytes(payload[at..at + 4].try_into().expect("four bytes are four"))
        };
        let end = |port: usize, ip: usize| {
            let port = u16::from_be_bytes([payload[port], payload[port + 1]]);
            let octets: [u8; 16] = payload[ip..ip + 16].try_into().expect("sixteen are sixteen");
            let ip = if i32::from(payload[0]) == libc::AF_INET {
                IpAddr::from([octets[0], octets[1], octets[2], octets[3]])
            } else {
                Ipv6Addr::from(octets).into()
            };
            canonical(SocketAddr::new(ip, port))
        };
        let mut cgroup = None;
        for attribute in NlasIterator::new(&payload[ANSWER..]) {
            let attribute = attribute?;
            if attribute.kind() == INET_DIAG_CGROUP_ID {
                cgroup = attribute.value().try_into().ok().map(u64::from_ne_bytes);
            }
        }
        let inode = number(68);
        Ok(Self {
            local: end(4, 8),
            remote: end(6, 24),
            is_open: payload[1] == TCP_ESTABLISHED && inode != 0,
            uid: number(64),
            inode,
            cgroup,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::{sys::stat::fstat, unistd::geteuid};

    use super::*;

    /// Both ends of a connection to `address`.
    fn connection(address: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(address).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn an_open_socket_is_found_with_its_user_file_and_cgroup() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let (client, server) = connection(address);
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let found = find(local, remote).unwrap().expect(address);
            assert_eq!((found.is_open, found.uid), (true, geteuid().as_raw()));
            assert_eq!(u64::from(found.inode), fstat(&client).unwrap().st_ino);
            assert!(found.cgroup.is_some(), "{found:?}");
            drop(server);
        }
    }

    #[test]
    fn one_that_is_closed_already_is_not_said_to_be_anybodys() {
        let (client, server) = connection("127.0.0.1:0");
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        drop(client);
        let found = find(local, remote).unwrap().expect("it waits for the other end");
        assert!(!found.is_open, "{found:?}");
        drop(server);
    }

    #[test]
    fn a_listener_is_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let nobody = SocketAddr::new(address.ip(), 1);
        assert_eq!(find(nobody, address).unwrap(), None);
        assert_eq!(find(address, nobody).unwrap(), None);
    }
}
