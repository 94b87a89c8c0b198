//! The link between a router and what is behind it: fabric and node, node and pod.
//!
//! Routed like many CNI plugins do it: the child has a /32 and a /128, its gateway is a
//! link-local address, and the parent holds one host route per child.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::netns::Netns;

/// The gateway of every pod: its node.
pub(crate) const NODE_GATEWAY: Gateway = Gateway { v4: "169.254.1.1", v6: "fe80::1" };
/// The gateway of every node: the fabric. Another one, since the first is a node's own address.
pub(crate) const FABRIC_GATEWAY: Gateway = Gateway { v4: "169.254.0.1", v6: "fe80::2" };

/// Name of the child's interface.
pub(crate) const CHILD_INTERFACE: &str = "eth0";

/// The two addresses of a node or pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

/// A parent's addresses on each of its links.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gateway {
    v4: &'static str,
    v6: &'static str,
}

/// Joins `child` to `parent`, whose end is called `interface`.
pub(crate) fn join(
    parent: (&Netns, Addresses),
    gateway: Gateway,
    interface: &str,
    child: (&Netns, Addresses),
) -> anyhow::Result<()> {
    let Gateway { v4: gateway4, v6: gateway6 } = gateway;
    let (parent, Addresses { v4: parent4, v6: parent6 }) = parent;
    let (child, Addresses { v4, v6 }) = child;
    // Duplicate address detection would keep IPv6 unusable for its first second.
    child.sysctl(&[
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
    ])?;
    parent.ip(&format!(
        "link add {interface} type veth peer name {CHILD_INTERFACE} netns {child}\n\
         address add {gateway4}/32 dev {interface}\n\
         address add {gateway6}/64 dev {interface} nodad\n\
         link set {interface} up\n\
         route add {v4}/32 dev {interface} src {parent4}\n\
         route add {v6}/128 dev {interface} src {parent6}\n",
        child = child.name(),
    ))?;
    child.ip(&format!(
        "link set lo up\n\
         address add {v4}/32 dev {CHILD_INTERFACE}\n\
         address add {v6}/128 dev {CHILD_INTERFACE} nodad\n\
         link set {CHILD_INTERFACE} up\n\
         route add {gateway4}/32 dev {CHILD_INTERFACE} scope link\n\
         route add default via {gateway4} dev {CHILD_INTERFACE} src {v4}\n\
         route add default via {gateway6} dev {CHILD_INTERFACE} src {v6}\n"
    ))
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
