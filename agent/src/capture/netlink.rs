//! Rtnetlink of the netns of the thread that opens the socket: requests, each answered before it
//! returns, and news.

use std::{io, os::fd::AsFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc;
use tokio::net::unix::pipe;

/// A netlink socket to ask with.
pub(super) struct Netlink(Socket);

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends `message` and waits for the kernel's verdict.
    pub(super) fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_ACK | flags)?;
        let (answer, _) = self.0.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .map_err(io::Error::other)?;
        match answer.payload {
            // An acknowledgement is an error of code zero.
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            _ => Ok(()),
        }
    }

    /// Shows `take` all that the kernel has of the kind that `message` asks for, one by one: there
    /// may be a million. What this agent cannot read is left out: it made none of it.
    pub(super) fn dump(
        &self,
        message: RouteNetlinkMessage,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.send(message, NLM_F_DUMP)?;
        loop {
            let (part, _) = self.0.recv_from_full()?;
            let mut rest = &part[..];
            while let Some((message, after)) = split(rest) {
                match NetlinkMessage::deserialize(message).map(|message| message.payload) {
                    Ok(NetlinkPayload::InnerMessage(message)) => take(message),
                    Ok(NetlinkPayload::Done(_)) => return Ok(()),
                    Ok(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "an unknown netlink message"),
                }
                rest = after;
            }
        }
    }

    fn send(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes, 0).map(drop)
    }
}

/// The first message of a datagram, which begins with its length, and what comes after it.
fn split(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(datagram.first_chunk().copied()?) as usize;
    let message = datagram.get(..length).filter(|message| !message.is_empty())?;
    // Each begins at a multiple of four.
    let after = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((message, after))
}

/// Tells when interfaces, addresses, routes or rules have changed. It may tell without a reason,
/// as of what the agent itself has changed.
///
/// To epoll a netlink socket is a descriptor that becomes readable, as a pipe is, whose type, unlike
/// `AsyncFd`, needs no `unsafe`.
pub(super) struct News(pipe::Receiver);

/// What is subscribed to (`RTNLGRP_…`): links, and addresses, routes and rules of both families.
const GROUPS: [u32; 7] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
];

impl News {
    /// Subscribes, in the calling thread's netns. What happens from here on is told.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn subscribe() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        let descriptor = socket.as_fd().try_clone_to_owned()?;
        Ok(Self(pipe::Receiver::from_owned_fd_unchecked(descriptor)?))
    }

    /// Waits until there is some, and takes all there is.
    pub(super) async fn come(&mut self) -> io::Result<()> {
        self.0.readable().await?;
        // What is said does not matter; what does not fit is cut off.
        let mut news = [0; 64];
        loop {
            match self.0.try_read(&mut news) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Some were lost, so that there were some.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
