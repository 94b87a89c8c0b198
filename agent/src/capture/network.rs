//! What there is in a pod's netns: interfaces, addresses, routes and rules, whoever made them.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use agent_common::{DEVICE_TABLE, TABLE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    rule::RuleMessage,
};
use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::{InterfaceFlags, if_nametoindex},
};

use super::{
    netlink::Netlink,
    procfs,
    routing::{Diversion, Rule},
};

/// The kernel's own tables: that of addresses that are here, and that of everything else.
const LOCAL_TABLE: u32 = 255;
const MAIN_TABLE: u32 = 254;
/// Most routes of a family that are followed one by one. A pod that speaks BGP may have a million:
/// beyond this the default route's source is every destination's.
const MOST_ROUTES: usize = 512;

/// The network of one netns at one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Network {
    /// By index; `lo` among them.
    pub(super) interfaces: BTreeMap<u32, Interface>,
    /// Where packets leave to; the main table's come first. Of a family with more than
    /// [`MOST_ROUTES`], default routes alone.
    pub(super) routes: Vec<Unicast>,
    /// How many more specific ones there are: of IPv4, of IPv6.
    specific: [usize; 2],
    /// What is in capture's own tables.
    pub(super) diverted: Vec<Diversion>,
    /// Capture's own rules.
    pub(super) rules: Vec<Rule>,
}

/// One interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) is_up: bool,
    pub(super) addresses: Vec<IpAddr>,
}

/// A route to somewhere else.
#[derive(Clone, Debug)]
pub(super) struct Unicast {
    pub(super) to: Prefix,
    /// The interface it leads by, the first where there are several.
    pub(super) by: Option<u32>,
    /// The source it gives, if it says so itself.
    pub(super) source: Option<IpAddr>,
    table: u32,
}

/// A set of addresses. That of no bits is every address of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix {
    pub(super) address: IpAddr,
    pub(super) bits: u8,
}

impl Network {
    /// That of the calling thread's netns.
    pub(super) fn read() -> io::Result<Self> {
        let mut network = Self::default();
        for entry in getifaddrs()? {
            network.note(&entry);
        }
        let netlink = Netlink::open()?;
        for family in families() {
            let mut every = RouteMessage::default();
            every.header.address_family = family;
            netlink.dump(RouteNetlinkMessage::GetRoute(every), |message| {
                if let RouteNetlinkMessage::NewRoute(route) = message {
                    network.note_route(&route);
                }
            })?;
            let mut every = RuleMessage::default();
            every.header.family = family;
            netlink.dump(RouteNetlinkMessage::GetRule(every), |message| {
                if let RouteNetlinkMessage::NewRule(rule) = message {
                    network.rules.extend(Rule::read(&rule));
                }
            })?;
        }
        network.settle();
        Ok(network)
    }

    /// Puts in order what was noted, once all of it is there.
    fn settle(&mut self) {
        self.routes.sort_by_key(|route| route.table != MAIN_TABLE);
        let specific = self.specific;
        let is_followed = |to: Prefix| to.bits == 0 || specific[family_of(to)] <= MOST_ROUTES;
        self.routes.retain(|route| is_followed(route.to));
    }

    /// Every address that is here, but for loopback ones.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let all = self.interfaces.values().flat_map(|interface| &interface.addresses);
        all.copied().filter(|ip| !ip.is_loopback())
    }

    fn note(&mut self, entry: &InterfaceAddress) {
        let Ok(index) = if_nametoindex(entry.interface_name.as_str()) else { return };
        let interface = self.interfaces.entry(index).or_default();
        interface.name.clone_from(&entry.interface_name);
        interface.is_up = entry.flags.contains(InterfaceFlags::IFF_UP);
        interface.addresses.extend(ip_of(entry));
    }

    fn note_route(&mut self, route: &RouteMessage) {
        let table = table_of(route);
        if [TABLE, DEVICE_TABLE].contains(&table) {
            return self.diverted.extend(Diversion::read(route, table));
        }
        if table == LOCAL_TABLE || route.header.kind != RouteType::Unicast {
            return;
        }
        let mut unicast = Unicast { to: prefix_of(route), by: None, source: None, table };
        if unicast.to.bits > 0 {
            let specific = &mut self.specific[family_of(unicast.to)];
            *specific += 1;
            if *specific > MOST_ROUTES {
                return;
            }
        }
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => unicast.by = Some(*index),
                RouteAttribute::MultiPath(hops) => {
                    unicast.by = hops.first().map(|hop| hop.interface_index);
                }
                RouteAttribute::PrefSource(source) => unicast.source = ip(source),
                _ => {}
            }
        }
        self.routes.push(unicast);
    }
}

#[cfg(test)]
impl Unicast {
    /// One of the main table's that gives no source.
    pub(super) fn for_test(to: Prefix, by: u32) -> Self {
        Self { to, by: Some(by), source: None, table: MAIN_TABLE }
    }
}

impl Prefix {
    /// One address alone.
    pub(super) fn one(address: IpAddr) -> Self {
        Self { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Every address of a family.
    pub(super) fn all(family: AddressFamily) -> Self {
        let address = match family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            _ => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self { address, bits: 0 }
    }

    pub(super) fn family(self) -> AddressFamily {
        if self.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
    }
}

/// The index of a destination's family.
fn family_of(to: Prefix) -> usize {
    usize::from(to.address.is_ipv6())
}

/// The table a route is in: the header has no room for all numbers.
fn table_of(route: &RouteMessage) -> u32 {
    let named = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    named.unwrap_or(route.header.table.into())
}

/// Where a route leads; default routes do not say.
pub(super) fn prefix_of(route: &RouteMessage) -> Prefix {
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(to) => ip(to),
        _ => None,
    });
    let all = Prefix::all(route.header.address_family);
    let bits = route.header.destination_prefix_length;
    to.map_or(all, |address| Prefix { address, bits })
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// The address of one entry of an interface; others are of its link layer.
pub(super) fn ip_of(entry: &InterfaceAddress) -> Option<IpAddr> {
    let address = entry.address.as_ref()?;
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// IPv4, and IPv6 unless it is switched off.
pub(super) fn families() -> impl Iterator<Item = AddressFamily> {
    [AddressFamily::Inet].into_iter().chain(has_v6().then_some(AddressFamily::Inet6))
}

/// Whether the calling thread's netns has IPv6.
pub(super) fn has_v6() -> bool {
    let disabled = procfs::setting("net/ipv6/conf/lo/disable_ipv6");
    disabled.is_ok_and(|disabled| disabled.as_deref() == Some("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADS_OUT: u32 = 2;

    fn route(to: Prefix, table: u32) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = to.family();
        route.header.destination_prefix_length = to.bits;
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![RouteAttribute::Oif(LEADS_OUT), RouteAttribute::Table(table)];
        if to.bits > 0 {
            route.attributes.push(RouteAttribute::Destination(to.address.into()));
        }
        route
    }

    /// What is kept of a netns with a default route of either family, and so many others of IPv4.
    fn kept(specific: usize) -> Network {
        let mut network = Network::default();
        for number in 0..specific {
            let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
            let to = Prefix::one(IpAddr::from([172, 16, high, low]));
            network.note_route(&route(to, MAIN_TABLE));
        }
        let one = Prefix::one("fd07::1".parse().unwrap());
        network.note_route(&route(one, MAIN_TABLE));
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            network.note_route(&route(Prefix::all(family), 100));
            network.note_route(&route(Prefix::all(family), MAIN_TABLE));
        }
        network.settle();
        network
    }

    #[test]
    fn the_main_tables_routes_come_first() {
        let first = kept(3).routes.into_iter().find(|route| route.to.bits == 0);
        assert_eq!(first.map(|route| route.table), Some(MAIN_TABLE));
    }

    #[test]
    fn of_a_family_with_very_many_routes_the_default_ones_are_followed() {
        let followed = |network: &Network, v4: bool| {
            network.routes.iter().filter(|route| route.to.address.is_ipv4() == v4).count()
        };
        let many = kept(100 * MOST_ROUTES);
        assert_eq!((followed(&many, true), followed(&many, false)), (2, 3));
        assert!(many.routes.capacity() < 10 * MOST_ROUTES, "they were kept in memory");
        let few = kept(MOST_ROUTES);
        assert_eq!((followed(&few, true), followed(&few, false)), (MOST_ROUTES + 2, 3));
    }
}
