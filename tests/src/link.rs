//! The link between a router and what is behind it: fabric and node, node and pod.
//!
//! Routed like many CNI plugins do it: the child has a /32 and a /128, its gateway is a
//! link-local address, and the parent holds one host route per child.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    netlink::{Netlink, Route, everything},
    netns::Netns,
};

/// The gateway of every pod: its node.
pub(crate) const NODE_GATEWAY: Addresses =
    Addresses { v4: Ipv4Addr::new(169, 254, 1, 1), v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1) };
/// The gateway of every node: the fabric. Another one, since the first is a node's own address.
pub(crate) const FABRIC_GATEWAY: Addresses =
    Addresses { v4: Ipv4Addr::new(169, 254, 0, 1), v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2) };

/// Name of the child's interface.
pub(crate) const CHILD_INTERFACE: &str = "eth0";

/// The two addresses of a node, a pod or a gateway.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

/// Joins `child` to `parent`, whose end is called `interface`.
pub(crate) fn join(
    parent: (&Netns, Addresses),
    gateway: Addresses,
    interface: &str,
    child: (&Netns, Addresses),
) -> anyhow::Result<()> {
    let (parent, of_parent) = parent;
    let (child, of_child) = child;
    // Duplicate address detection would keep IPv6 unusable for its first second.
    child.sysctl(&[
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
    ])?;
    let there = child.open()?;
    parent.run(|| {
        let netlink = Netlink::open()?;
        netlink.add_pair(interface, CHILD_INTERFACE, there)?;
        let interface = netlink.interface(interface)?;
        netlink.add_address(interface, gateway.v4.into(), 32)?;
        netlink.add_address(interface, gateway.v6.into(), 64)?;
        netlink.up(interface)?;
        for (to, from) in of_child.host_routes().into_iter().zip(of_parent.ips()) {
            netlink.add_route(Route { to, via: None, interface, from: Some(from) })?;
        }
        anyhow::Ok(())
    })??;
    child.run(|| {
        let netlink = Netlink::open()?;
        netlink.up(netlink.interface("lo")?)?;
        let interface = netlink.interface(CHILD_INTERFACE)?;
        for (ip, bits) in of_child.host_routes() {
            netlink.add_address(interface, ip, bits)?;
        }
        netlink.up(interface)?;
        let to = (gateway.v4.into(), 32);
        netlink.add_route(Route { to, via: None, interface, from: None })?;
        for (via, from) in gateway.ips().into_iter().zip(of_child.ips()) {
            let to = everything(via);
            netlink.add_route(Route { to, via: Some(via), interface, from: Some(from) })?;
        }
        Ok(())
    })?
}

impl Addresses {
    /// Both, IPv4 first.
    pub(crate) fn ips(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Each as a network of itself alone.
    pub(crate) fn host_routes(self) -> [(IpAddr, u8); 2] {
        [(self.v4.into(), 32), (self.v6.into(), 128)]
    }
}

/// Makes a namespace pass packets on.
pub(crate) fn forward(router: &Netns) -> anyhow::Result<()> {
    router.sysctl(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        // New namespaces take these from the machine, which may be strict.
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
    ])
}
