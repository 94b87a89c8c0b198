//! The rule, the route and the settings that keep a pod's marked packets inside its netns.
//!
//! ```text
//! ip rule add priority PRIORITY fwmark MARK lookup TABLE
//! ip route add local default dev lo [src POD_IP] table TABLE
//! sysctl net.ipv4.tcp_fwmark_accept=1 net.ipv4.fwmark_reflect=1 net.ipv6.fwmark_reflect=1
//! ```

use std::{
    io,
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

use super::{netlink::Netlink, procfs};

/// After the kernel's own rule for local addresses (0), before the main table (32766).
const PRIORITY: u32 = 1337;
/// The index of `lo` in every netns.
pub(super) const LOOPBACK: u32 = 1;
/// What makes answers to marked packets marked too, and so stay on `lo` (all Linux 3.16), by its
/// path below `/proc/sys`:
/// packets of accepted sockets, and the resets of ports where nobody listens. Without the
/// latter a refused dial would only time out.
const SETTINGS: [&str; 3] =
    ["net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect", "net/ipv6/fwmark_reflect"];

/// Which of the settings are on: one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings(pub(super) u8);

impl Settings {
    /// As capture needs them.
    pub(super) const ON: Self = Self(u8::MAX);

    /// Those of the calling thread's netns. A kernel without IPv6 lacks the last.
    pub(super) fn read() -> io::Result<Self> {
        let mut on = 0;
        for (bit, name) in SETTINGS.iter().enumerate() {
            if let Some(value) = procfs::setting(name)? {
                on |= u8::from(value != "0") << bit;
            }
        }
        Ok(Self(on))
    }

    /// The names of those that are off, of the families there are.
    pub(super) fn off(self) -> impl Iterator<Item = &'static str> {
        let v6 = has_v6();
        let here =
            SETTINGS.iter().enumerate().filter(move |(_, name)| v6 || !name.contains("ipv6"));
        here.filter(move |(bit, _)| self.0 >> bit & 1 == 0).map(|(_, name)| *name)
    }

    /// Sets those that are not as `self` says.
    pub(super) fn restore(self) -> io::Result<()> {
        let Self(now) = Self::read()?;
        for (bit, name) in SETTINGS.iter().enumerate() {
            let on = self.0 >> bit & 1;
            if now >> bit & 1 != on && procfs::setting(name)?.is_some() {
                procfs::set(name, &on.to_string())?;
            }
        }
        Ok(())
    }
}

/// Installs all of it in the calling thread's netns; what is there already stays.
pub(super) fn install(ips: &[IpAddr]) -> io::Result<()> {
    divert(ips)?;
    Settings::ON.restore()
}

/// Installs the rule and the route.
pub(super) fn divert(ips: &[IpAddr]) -> io::Result<()> {
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
    Ok(())
}

/// Takes away what [`install`] did; `settings` are those from before.
pub(super) fn remove(settings: Settings) -> io::Result<()> {
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
    settings.restore()
}

/// IPv4, and IPv6 unless it is switched off. A pod without an IPv6 address gets the IPv6 rule
/// too: an address it takes later must not lead around capture.
fn families() -> impl Iterator<Item = AddressFamily> {
    [AddressFamily::Inet].into_iter().chain(has_v6().then_some(AddressFamily::Inet6))
}

/// Whether the calling thread's netns has IPv6.
pub(super) fn has_v6() -> bool {
    let disabled = procfs::setting("net/ipv6/conf/lo/disable_ipv6");
    disabled.is_ok_and(|disabled| disabled.as_deref() == Some("0"))
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
