//! Interfaces, addresses and routes of a namespace, as `ip` sets them. Without that program: a
//! lab would start some fifteen of it, and an emulated processor starts a program slowly.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
};

use anyhow::Context;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::net::if_::if_nametoindex;

/// What a namespace's interfaces, addresses and routes are changed through.
pub(crate) struct Netlink(Socket);

/// An interface of the namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interface<'a> {
    name: &'a str,
    index: u32,
}

/// Where packets go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route<'a> {
    /// Their destination: an address and how many of its bits count.
    pub(crate) to: (IpAddr, u8),
    /// The next router; none when the destination is on the link.
    pub(crate) via: Option<IpAddr>,
    pub(crate) interface: Interface<'a>,
    /// The address they leave from, unless their socket has one.
    pub(crate) from: Option<IpAddr>,
}

impl Netlink {
    /// In the namespace of the calling thread.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            io::Result::Ok(Self(socket))
        };
        open().context("could not open a netlink socket")
    }

    /// The interface of that name.
    pub(crate) fn interface<'a>(&self, name: &'a str) -> anyhow::Result<Interface<'a>> {
        let index = if_nametoindex(name).with_context(|| format!("no interface {name}"))?;
        Ok(Interface { name, index })
    }

    /// Makes a pair of interfaces: `name` here, `peer` in another namespace.
    pub(crate) fn add_pair(&self, name: &str, peer: &str, there: impl AsFd) -> anyhow::Result<()> {
        let mut far = LinkMessage::default();
        far.attributes = vec![
            LinkAttribute::IfName(peer.to_owned()),
            LinkAttribute::NetNsFd(there.as_fd().as_raw_fd()),
        ];
        let mut near = LinkMessage::default();
        near.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
            ]),
        ];
        self.request(RouteNetlinkMessage::NewLink(near), NLM_F_CREATE | NLM_F_EXCL)
            .with_context(|| format!("could not make the interfaces {name} and {peer}"))
    }

    /// Switches an interface on.
    pub(crate) fn up(&self, interface: Interface<'_>) -> anyhow::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = interface.index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::NewLink(link), 0)
            .with_context(|| format!("could not switch {} on", interface.name))
    }

    /// Removes an interface, and the one it is paired with.
    pub(crate) fn remove(&self, interface: Interface<'_>) -> anyhow::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = interface.index;
        self.request(RouteNetlinkMessage::DelLink(link), 0)
            .with_context(|| format!("could not remove {}", interface.name))
    }

    /// Gives an interface an address, of use at once: nobody is asked whether it is taken.
    pub(crate) fn add_address(
        &self,
        interface: Interface<'_>,
        ip: IpAddr,
        bits: u8,
    ) -> anyhow::Result<()> {
        let mut address = AddressMessage::default();
        address.header.family = family(ip);
        address.header.prefix_len = bits;
        address.header.scope = AddressScope::Universe;
        address.header.index = interface.index;
        if ip.is_ipv6() {
            address.header.flags = AddressHeaderFlags::Nodad;
        }
        address.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        self.request(RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE | NLM_F_EXCL)
            .with_context(|| format!("could not give {} the address {ip}/{bits}", interface.name))
    }

    /// Adds a route to the main table.
    pub(crate) fn add_route(&self, route: Route<'_>) -> anyhow::Result<()> {
        let (destination, bits) = route.to;
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = bits;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope =
            if route.via.is_some() { RouteScope::Universe } else { RouteScope::Link };
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::from(destination)),
            RouteAttribute::Oif(route.interface.index),
        ];
        let via = route.via.map(|via| RouteAttribute::Gateway(RouteAddress::from(via)));
        let from = route.from.map(|from| RouteAttribute::PrefSource(RouteAddress::from(from)));
        message.attributes.extend(via.into_iter().chain(from));
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
            .with_context(|| format!("could not add the route to {destination}/{bits}"))
    }

    /// Sends `message` and waits for the kernel's verdict.
    fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let (answer, _) = self.0.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .map_err(io::Error::other)?;
        match answer.payload {
            // An acknowledgement is an error of code zero.
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            _ => Ok(()),
        }
    }
}

/// Every destination there is of the family that `gateway` has.
pub(crate) fn everything(gateway: IpAddr) -> (IpAddr, u8) {
    match gateway {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
