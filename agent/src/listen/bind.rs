//! Sockets that listen, with IPv6 or without.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Listens on `address`, and on 0.0.0.0 in the place of `[::]` where there is no IPv6.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    bind_with(address, |address| {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    })
}

fn bind_with<L>(
    address: SocketAddr,
    listen: impl Fn(SocketAddr) -> io::Result<L>,
) -> io::Result<L> {
    match listen(address) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && lacks_ipv6(&error) => {
            let ipv4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
            tracing::info!(%address, instead = %ipv4, %error, "there is no IPv6 here");
            listen(ipv4)
        }
        result => result,
    }
}

/// Booted with `ipv6.disable=1`, as hardening guides have it, a kernel has no such sockets at
/// all; with `ipv6.disable_ipv6=1` they are there and have no address.
fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a kernel that answers `errno` to IPv6 listens on.
    fn without_ipv6(address: &str, errno: i32) -> io::Result<SocketAddr> {
        bind_with(address.parse().unwrap(), |address| match address {
            SocketAddr::V4(_) => Ok(address),
            SocketAddr::V6(_) => Err(io::Error::from_raw_os_error(errno)),
        })
    }

    #[test]
    fn every_address_is_every_address_there_is() {
        for errno in [EAFNOSUPPORT, EADDRNOTAVAIL] {
            let listens = without_ipv6("[::]:15021", errno).unwrap();
            assert_eq!(listens, "0.0.0.0:15021".parse().unwrap());
        }
    }

    #[test]
    fn what_was_asked_for_by_name_is_not_replaced() {
        let error = without_ipv6("[fd00::1]:15021", EADDRNOTAVAIL).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EADDRNOTAVAIL));
        let error = without_ipv6("[::]:80", nix::libc::EACCES).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EACCES));
    }

    #[tokio::test]
    async fn a_real_socket_takes_both_families_at_every_address() {
        let listener = bind("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        listener.accept().await.unwrap();
    }
}
