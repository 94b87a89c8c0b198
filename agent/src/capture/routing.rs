//! The rules and routes that keep a pod's marked packets inside its netns.
//!
//! ```text
//! ip rule add priority 10 fwmark MARK/MASK lookup TABLE
//! ip rule add priority 11 fwmark MARK/MASK oif DEVICE lookup DEVICE_TABLE   (each interface)
//! ip rule add priority 12 fwmark MARK/MASK unreachable
//! ip route add local PREFIX  dev lo     src SOURCE table TABLE              (each route)
//! ip route add local ADDRESS dev lo                table TABLE              (each own address)
//! ip route add local default dev DEVICE src SOURCE table DEVICE_TABLE       (each interface)
//! ```
//!
//! [`TABLE`] has the routes that the netns has for everybody, to the same places and with the
//! source each of them gives, but all of them lead to `lo`: where an application could not go
//! without capture, and as whom it goes, stays as it is. A socket that is bound to a device takes
//! no route by another one, so each device has a table entry that keeps its packets here too.
//! What finds neither must not go on to the ordinary tables: it is unreachable, as it would be
//! without a route.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use agent_common::{DEVICE_TABLE, MARK, MARK_MASK, TABLE};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use nix::libc;

use super::{
    error::gone_is_fine,
    netlink::Netlink,
    network::{Interface, Network, Prefix, families, ip, prefix_of},
};

/// After the kernel's own rule for local addresses (0), before all others: that of virtual
/// routing (l3mdev) is at 1000, the main table at 32766.
const PRIORITY: u32 = 10;
/// The index of `lo` in every netns.
pub(super) const LOOPBACK: u32 = 1;
/// The metric of the routes to `lo`; those by other interfaces have their index on top.
const METRIC: u32 = 1024;
/// One of capture's routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Diversion {
    table: u32,
    to: Prefix,
    by: u32,
    source: Option<IpAddr>,
    metric: u32,
}

/// One of capture's rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    v4: bool,
    priority: u32,
    /// For sockets that are bound to the device of this name.
    device: Option<String>,
    /// `None`: there is no way.
    table: Option<u32>,
}

/// What a netns should have.
#[derive(Debug, Default)]
pub(super) struct Plan {
    rules: BTreeSet<Rule>,
    /// By what makes a route another one for the kernel: table, destination and metric.
    routes: BTreeMap<(u32, Prefix, u32), Diversion>,
}

/// What came of a plan.
#[derive(Debug)]
pub(super) struct Made {
    /// The interfaces that no marked packet can leave by.
    pub(super) closed: Vec<u32>,
    /// A rule was missing that is there whatever the network is like.
    pub(super) ruled: bool,
}

impl Plan {
    /// For a netns with this network, of a pod that others know by `ips`.
    pub(super) fn of(network: &Network, ips: &[IpAddr]) -> Self {
        let mut plan = Self::default();
        for family in families() {
            plan.add_rules(network, family);
            plan.add_routes(network, family, ips);
        }
        plan
    }

    fn add_rules(&mut self, network: &Network, family: AddressFamily) {
        let v4 = family == AddressFamily::Inet;
        let mut add = |priority, device, table| {
            self.rules.insert(Rule { v4, priority, device, table });
        };
        add(PRIORITY, None, Some(TABLE));
        for (_, interface) in devices(network) {
            add(PRIORITY + 1, Some(interface.name.clone()), Some(DEVICE_TABLE));
        }
        add(PRIORITY + 2, None, None);
    }

    fn add_routes(&mut self, network: &Network, family: AddressFamily, ips: &[IpAddr]) {
        let of_family = |ip: &IpAddr| (family == AddressFamily::Inet) == ip.is_ipv4();
        let by_device = |index: u32| {
            let interface = network.interfaces.get(&index)?;
            source(interface.addresses.iter().copied().filter(of_family), ips)
        };
        let anywhere = || source(network.addresses().filter(of_family), ips);
        let routes = network.routes.iter().filter(|route| route.to.family() == family);
        let all = Prefix::all(family);
        for route in routes {
            let source = route.source.or_else(|| route.by.and_then(by_device)).or_else(anywhere);
            self.add(Diversion {
                table: TABLE,
                to: route.to,
                by: LOOPBACK,
                source,
                metric: METRIC,
            });
        }
        // The agent's own dials to the application, which are bound to `lo`.
        for own in network.addresses().filter(of_family) {
            let to = Prefix::one(own);
            self.add(Diversion { table: TABLE, to, by: LOOPBACK, source: None, metric: METRIC });
        }
        for (index, _) in devices(network) {
            let (source, metric) = (by_device(index), METRIC + index);
            self.add(Diversion { table: DEVICE_TABLE, to: all, by: index, source, metric });
        }
    }

    /// The first to speak of a destination decides, as the main table does.
    fn add(&mut self, route: Diversion) {
        self.routes.entry((route.table, route.to, route.metric)).or_insert(route);
    }

    /// Makes the calling thread's netns, which has this network, what is planned.
    pub(super) fn carry_out(&self, network: &Network) -> io::Result<Made> {
        let netlink = Netlink::open()?;
        let mut ruled = false;
        let mut closed: Vec<u32> = devices(network).map(|(index, _)| index).collect();
        for route in self.routes.values().filter(|route| !network.diverted.contains(route)) {
            match route.make(&netlink) {
                // An interface on its way down, or gone. What is bound to it waits until it is
                // seen to again.
                Err(error) if route.by != LOOPBACK => {
                    tracing::debug!(%error, ?route, "a device's route was refused");
                    if route.to.family() == AddressFamily::Inet {
                        closed.retain(|index| *index != route.by);
                    }
                }
                other => other?,
            }
        }
        for rule in self.rules.iter().filter(|rule| !network.rules.contains(rule)) {
            let message = RouteNetlinkMessage::NewRule(rule.message());
            match netlink.request(message, NLM_F_CREATE | NLM_F_EXCL) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
            ruled |= rule.device.is_none();
        }
        for rule in network.rules.iter().filter(|rule| !self.rules.contains(rule)) {
            rule.remove(&netlink)?;
        }
        let is_planned =
            |route: &Diversion| self.routes.contains_key(&(route.table, route.to, route.metric));
        for route in network.diverted.iter().filter(|route| !is_planned(route)) {
            route.remove(&netlink)?;
        }
        Ok(Made { closed, ruled })
    }
}

/// Takes all of capture's rules and routes from the calling thread's netns.
pub(super) fn remove() -> io::Result<()> {
    Plan::default().carry_out(&Network::read()?).map(drop)
}

/// The interfaces that lead out.
fn devices(network: &Network) -> impl Iterator<Item = (u32, &Interface)> {
    let all = network.interfaces.iter().map(|(index, interface)| (*index, interface));
    all.filter(|(index, interface)| *index != LOOPBACK && interface.is_up)
}

/// The one of an interface's addresses that packets which leave by it come from: the one that
/// others know the pod by, or else the first that is no link-local one of IPv6.
fn source(mut addresses: impl Iterator<Item = IpAddr>, ips: &[IpAddr]) -> Option<IpAddr> {
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(_) => true,
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    let first = addresses.find(|ip| ips.contains(ip) || usable(ip))?;
    Some(addresses.find(|ip| ips.contains(ip)).filter(|_| !ips.contains(&first)).unwrap_or(first))
}

impl Diversion {
    /// A route of the netns that is in one of capture's tables.
    pub(super) fn read(route: &RouteMessage, table: u32) -> Option<Self> {
        let (mut by, mut source, mut metric) = (None, None, 0);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => by = Some(*index),
                RouteAttribute::PrefSource(address) => source = ip(address),
                RouteAttribute::Priority(priority) => metric = *priority,
                _ => {}
            }
        }
        Some(Self { table, to: prefix_of(route), by: by?, source, metric })
    }

    fn make(&self, netlink: &Netlink) -> io::Result<()> {
        let make = |route: &Self| {
            let message = RouteNetlinkMessage::NewRoute(route.message());
            netlink.request(message, NLM_F_CREATE | NLM_F_REPLACE)
        };
        match make(self) {
            // An IPv6 address that the kernel still looks for duplicates of is no source yet.
            // When it is through with that it says so.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && self.source.is_some() => {
                make(&Self { source: None, ..*self })
            }
            other => other,
        }
    }

    fn remove(&self, netlink: &Netlink) -> io::Result<()> {
        gone_is_fine(netlink.request(RouteNetlinkMessage::DelRoute(self.message()), 0))
    }

    fn message(&self) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = self.to.family();
        route.header.destination_prefix_length = self.to.bits;
        route.header.table = RouteHeader::RT_TABLE_UNSPEC;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Host;
        route.header.kind = RouteType::Local;
        route.attributes = vec![
            RouteAttribute::Table(self.table),
            RouteAttribute::Oif(self.by),
            RouteAttribute::Priority(self.metric),
            RouteAttribute::Destination(RouteAddress::from(self.to.address)),
        ];
        let source = self.source.map(|source| RouteAttribute::PrefSource(source.into()));
        route.attributes.extend(source);
        route
    }
}

impl Rule {
    /// A rule of the netns, if it is one of capture's.
    pub(super) fn read(rule: &RuleMessage) -> Option<Self> {
        let (mut priority, mut device, mut mark, mut mask) = (0, None, 0, 0);
        let mut table = rule.header.table.into();
        for attribute in &rule.attributes {
            match attribute {
                RuleAttribute::Priority(number) => priority = *number,
                RuleAttribute::Oifname(name) => device = Some(name.clone()),
                RuleAttribute::FwMark(number) => mark = *number,
                RuleAttribute::FwMask(number) => mask = *number,
                RuleAttribute::Table(number) => table = *number,
                _ => {}
            }
        }
        let table = (rule.header.action == RuleAction::ToTable).then_some(table);
        let v4 = rule.header.family == AddressFamily::Inet;
        (mark == MARK && mask == MARK_MASK).then_some(Self { v4, priority, device, table })
    }

    fn remove(&self, netlink: &Netlink) -> io::Result<()> {
        gone_is_fine(netlink.request(RouteNetlinkMessage::DelRule(self.message()), 0))
    }

    fn message(&self) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = if self.v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        rule.header.action =
            if self.table.is_some() { RuleAction::ToTable } else { RuleAction::Unreachable };
        rule.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::FwMark(MARK),
            RuleAttribute::FwMask(MARK_MASK),
        ];
        rule.attributes.extend(self.table.map(RuleAttribute::Table));
        rule.attributes.extend(self.device.clone().map(RuleAttribute::Oifname));
        rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::network::Unicast;

    const POD: &str = "10.244.0.2";
    const OTHER: &str = "192.168.5.5";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn interface(name: &str, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|address| ip(address)).collect();
        Interface { name: name.to_owned(), is_up: true, addresses }
    }

    /// A pod with a second interface, and the default route by the first.
    fn network() -> Network {
        let mut network = Network::default();
        network.interfaces.insert(LOOPBACK, interface("lo", &["127.0.0.1"]));
        network.interfaces.insert(2, interface("eth0", &[POD]));
        network.interfaces.insert(3, interface("net1", &[OTHER]));
        let connected = Prefix { address: ip("192.168.5.0"), bits: 24 };
        network.routes.push(Unicast::for_test(Prefix::all(AddressFamily::Inet), 2));
        network.routes.push(Unicast::for_test(connected, 3));
        network
    }

    fn planned(network: &Network, to: Prefix, table: u32) -> Vec<(u32, Option<IpAddr>)> {
        let plan = Plan::of(network, &[ip(POD)]);
        let there = plan.routes.values().filter(|route| route.to == to && route.table == table);
        there.map(|route| (route.by, route.source)).collect()
    }

    #[test]
    fn every_route_is_followed_on_lo_with_the_source_it_gives() {
        let all = Prefix::all(AddressFamily::Inet);
        let connected = Prefix { address: ip("192.168.5.0"), bits: 24 };
        assert_eq!(planned(&network(), all, TABLE), [(LOOPBACK, Some(ip(POD)))]);
        assert_eq!(planned(&network(), connected, TABLE), [(LOOPBACK, Some(ip(OTHER)))]);
    }

    #[test]
    fn every_device_but_lo_keeps_what_is_bound_to_it() {
        let all = Prefix::all(AddressFamily::Inet);
        let by_device = planned(&network(), all, DEVICE_TABLE);
        assert_eq!(by_device, [(2, Some(ip(POD))), (3, Some(ip(OTHER)))]);
        let mut network = network();
        network.interfaces.get_mut(&3).unwrap().is_up = false;
        assert_eq!(planned(&network, all, DEVICE_TABLE), [(2, Some(ip(POD)))]);
    }

    #[test]
    fn without_a_default_route_none_is_made_up() {
        let mut network = network();
        network.routes.clear();
        assert_eq!(planned(&network, Prefix::all(AddressFamily::Inet), TABLE), []);
        assert_eq!(planned(&network, Prefix::one(ip(POD)), TABLE), [(LOOPBACK, None)]);
    }

    #[test]
    fn what_is_made_reads_back_as_it_was_planned() {
        let plan = Plan::of(&network(), &[ip(POD)]);
        for rule in &plan.rules {
            assert_eq!(Rule::read(&rule.message()).as_ref(), Some(rule));
        }
        for route in plan.routes.values() {
            assert_eq!(Diversion::read(&route.message(), route.table), Some(*route));
        }
    }
}
