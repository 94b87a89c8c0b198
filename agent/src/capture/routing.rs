//! The rule, the route and the setting that keep a pod's marked packets inside its netns.
//!
//! ```text
//! ip rule add priority PRIORITY fwmark MARK lookup TABLE
//! ip route add local default dev lo [src POD_IP] table TABLE
//! sysctl net.ipv4.tcp_fwmark_accept=1
//! ```

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use agent_common::{MARK, TABLE};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::netlink::Netlink;

/// After the kernel's own rule for local addresses (0), before the main table (32766).
const PRIORITY: u32 = 1337;
/// The index of `lo` in every netns.
const LOOPBACK: u32 = 1;
/// Makes sockets accepted from marked packets answer with the mark (Linux 3.16).
const FWMARK_ACCEPT: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";

/// Whether the setting is on in the calling thread's netns.
pub(super) fn fwmark_accept() -> io::Result<bool> {
    Ok(fs::read_to_string(FWMARK_ACCEPT)?.trim() != "0")
}

/// Installs all three in the calling thread's netns; what is there already stays.
pub(super) fn install(ips: &[IpAddr]) -> io::Result<()> {
    let netlink = Netlink::open()?;
    for family in families() {
        let rule = RouteNetlinkMessage::NewRule(rule(family));
        match netlink.request(rule, NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        let route = RouteNetlinkMessage::NewRoute(route(family, Some(ips)));
        netlink.request(route, NLM_F_CREATE | NLM_F_REPLACE)?;
    }
    fs::write(FWMARK_ACCEPT, "1")
}

/// Takes away what [`install`] did; `fwmark_accept` is how the setting was before.
pub(super) fn remove(fwmark_accept: bool) -> io::Result<()> {
    let netlink = Netlink::open()?;
    for family in families() {
        for request in [
            RouteNetlinkMessage::DelRule(rule(family)),
            RouteNetlinkMessage::DelRoute(route(family, None)),
        ] {
            match netlink.request(request, 0) {
                // ESRCH is netlink's word for a route that is not there.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        || error.raw_os_error() == Some(nix::libc::ESRCH) => {}
                other => other?,
            }
        }
    }
    if !fwmark_accept {
        fs::write(FWMARK_ACCEPT, "0")?;
    }
    Ok(())
}

/// IPv4, and IPv6 unless it is switched off. A pod without an IPv6 address gets the IPv6 rule
/// too: an address it takes later must not lead around capture.
fn families() -> impl Iterator<Item = AddressFamily> {
    let disabled = fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    let v6 = disabled.is_ok_and(|disabled| disabled.trim() == "0");
    [AddressFamily::Inet].into_iter().chain(v6.then_some(AddressFamily::Inet6))
}

fn rule(family: AddressFamily) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::FwMark(MARK),
        RuleAttribute::Table(TABLE),
    ];
    rule
}

/// The route of `family`; with the pod's addresses, the source it gives unbound sockets.
fn route(family: AddressFamily, ips: Option<&[IpAddr]>) -> RouteMessage {
    let v4 = family == AddressFamily::Inet;
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.table = RouteHeader::RT_TABLE_UNSPEC;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Host;
    route.header.kind = RouteType::Local;
    route.attributes = vec![RouteAttribute::Table(TABLE), RouteAttribute::Oif(LOOPBACK)];
    let source = ips.and_then(|ips| ips.iter().find(|ip| ip.is_ipv4() == v4));
    if let Some(source) = source {
        route.attributes.push(RouteAttribute::PrefSource(RouteAddress::from(*source)));
    }
    // `default` is the zero address with a prefix of no bits.
    let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    route.attributes.push(RouteAttribute::Destination(RouteAddress::from(any)));
    route
}
