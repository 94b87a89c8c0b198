//! The maps the programs and the agent share, opened from their pins.

use std::{iter, net::IpAddr};

use agent_common::{
    Address, Announcement, Config, Counter, Dial, MAX_OWN, MAX_PODS, OwnAddress, OwnInterface,
    inbound_slot, outbound_slot,
};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SockMap};
use tokio::net::TcpListener;

use super::{
    error::{CaptureError, Step},
    pins::Pins,
};

/// Every map, by the name `agent-ebpf` gives it. Pinned, they are shared by the programs of all
/// pods and of a former agent; the last is aya-log's own.
pub(super) const MAPS: &[&str] = &[
    "CONFIG",
    "PODS",
    "POD_IPS",
    "OWN_ADDRESSES",
    "OWN_INTERFACES",
    "LISTENERS",
    "DIALS",
    "PROBES",
    "OWN",
    "AGENTS",
    "COUNTERS",
    #[cfg(feature = "next-version")]
    "SEEN",
    "AYA_LOGS",
];

/// The maps that enrolment writes.
pub(super) struct Maps {
    config: Array<MapData, Config>,
    pods: HashMap<MapData, u64, u32>,
    pod_ips: HashMap<MapData, Address, u32>,
    own: OwnMaps,
    listeners: SockMap<MapData>,
    counters: PerCpuArray<MapData, u64>,
}

/// The maps that every dial writes. Each pod has a handle of its own.
pub(super) struct DialMaps {
    /// Sockets that are the agent's own, by cookie.
    pub(super) own: HashMap<MapData, u64, u64>,
    /// Dials towards applications.
    pub(super) dials: HashMap<MapData, Dial, Announcement>,
}

/// The maps that say what a pod's netns holds. Each pod has a handle of its own.
pub(super) struct OwnMaps {
    addresses: HashMap<MapData, OwnAddress, u8>,
    interfaces: HashMap<MapData, OwnInterface, u8>,
}

impl Maps {
    pub(super) fn open(pins: &Pins) -> Result<Self, CaptureError> {
        Ok(Self {
            config: open(pins, "CONFIG", Map::Array)?,
            pods: open(pins, "PODS", Map::HashMap)?,
            pod_ips: open(pins, "POD_IPS", Map::HashMap)?,
            own: OwnMaps::open(pins)?,
            listeners: open(pins, "LISTENERS", Map::SockMap)?,
            counters: open(pins, "COUNTERS", Map::PerCpuArray)?,
        })
    }

    pub(super) fn configure(&mut self, config: Config) -> Result<(), MapError> {
        self.config.set(0, config, 0)
    }

    /// Points the programs at a pod's listeners. From a former agent's to these there is no
    /// moment without one.
    pub(super) fn listen(
        &mut self,
        slot: u32,
        outbound: &TcpListener,
        inbound: &TcpListener,
    ) -> Result<(), MapError> {
        self.listeners.set(outbound_slot(slot), outbound, 0)?;
        self.listeners.set(inbound_slot(slot), inbound, 0)
    }

    /// Makes the pod's addresses known, so that its SYNs are steered.
    /// Addresses it had before and has no longer are forgotten.
    pub(super) fn set_addresses(&mut self, slot: u32, ips: &[IpAddr]) -> Result<(), MapError> {
        let now: Vec<_> = ips.iter().copied().map(address).collect();
        now.iter().try_for_each(|ip| self.pod_ips.insert(ip, slot, 0))?;
        forget(&mut self.pod_ips, slot, |ip| !now.contains(ip))
    }

    /// Marks what the pod connects from here on.
    pub(super) fn capture(&mut self, slot: u32, netns_cookie: u64) -> Result<(), MapError> {
        self.pods.insert(netns_cookie, slot, 0)
    }

    /// Forgets everything about the pod in `slot`.
    pub(super) fn forget(&mut self, slot: u32) -> Result<(), MapError> {
        forget(&mut self.pods, slot, |_| true)?;
        forget(&mut self.pod_ips, slot, |_| true)?;
        self.own.set(slot, iter::empty(), iter::empty())?;
        for listener in [outbound_slot(slot), inbound_slot(slot)] {
            // A listener that closed is gone already.
            let _ = self.listeners.clear_index(&listener);
        }
        Ok(())
    }

    /// The slot of the lowest number that `taken` does not have.
    pub(super) fn free_slot(taken: &[u32]) -> Option<u32> {
        (0..MAX_PODS).find(|slot| !taken.contains(slot))
    }

    /// What the programs counted since they were first loaded.
    pub(super) fn counters(&self) -> Vec<(&'static str, u64)> {
        let sum = |counter: Counter| {
            let values = self.counters.get(&(counter as u32), 0);
            values.map_or(0, |values| values.iter().sum())
        };
        Counter::ALL.iter().map(|(counter, name)| (*name, sum(*counter))).collect()
    }
}

/// Spares connections of the agent in the namespace with this cookie, whatever is done with those
/// from namespaces that are not enrolled.
pub(super) fn spare(pins: &Pins, netns_cookie: u64) -> Result<(), CaptureError> {
    let mut agents: HashMap<MapData, u64, u8> = open(pins, "AGENTS", Map::LruHashMap)?;
    agents.insert(netns_cookie, 0, 0).step("spare the agent's own connections")
}

impl DialMaps {
    pub(super) fn open(pins: &Pins) -> Result<Self, CaptureError> {
        Ok(Self {
            own: open(pins, "OWN", Map::LruHashMap)?,
            dials: open(pins, "DIALS", Map::LruHashMap)?,
        })
    }
}

impl OwnMaps {
    pub(super) fn open(pins: &Pins) -> Result<Self, CaptureError> {
        Ok(Self {
            addresses: open(pins, "OWN_ADDRESSES", Map::HashMap)?,
            interfaces: open(pins, "OWN_INTERFACES", Map::HashMap)?,
        })
    }

    /// What the netns of the pod in `slot` holds from here on, of each at most [`MAX_OWN`]; what
    /// it held before and does no longer is forgotten.
    pub(super) fn set(
        &mut self,
        slot: u32,
        addresses: impl Iterator<Item = IpAddr>,
        interfaces: impl Iterator<Item = u32>,
    ) -> Result<(), MapError> {
        let addresses = addresses.map(|ip| OwnAddress { address: address(ip), slot });
        replace(&mut self.addresses, addresses.take(MAX_OWN), |own| own.slot == slot)?;
        let interfaces = interfaces.map(|index| OwnInterface { slot, index });
        replace(&mut self.interfaces, interfaces.take(MAX_OWN), |own| own.slot == slot)
    }
}

/// Puts `now` in the place of what is there and `is_theirs`. What stays is there all the time.
fn replace<K: aya::Pod + PartialEq>(
    map: &mut HashMap<MapData, K, u8>,
    now: impl Iterator<Item = K>,
    is_theirs: impl Fn(&K) -> bool,
) -> Result<(), MapError> {
    let now: Vec<K> = now.collect();
    now.iter().try_for_each(|key| map.insert(key, 0, 0))?;
    let over = |key: &Result<K, MapError>| {
        key.as_ref().map_or(true, |key| is_theirs(key) && !now.contains(key))
    };
    let over: Vec<K> = map.keys().filter(over).collect::<Result<_, _>>()?;
    over.iter().try_for_each(|key| map.remove(key))
}

fn open<M>(pins: &Pins, name: &str, kind: fn(MapData) -> Map) -> Result<M, CaptureError>
where
    M: TryFrom<Map, Error = MapError>,
{
    M::try_from(kind(pinned(pins, name)?)).step(format!("open the eBPF map {name}"))
}

/// The map that is pinned as `name`, of whichever kind.
pub(super) fn pinned(pins: &Pins, name: &str) -> Result<MapData, CaptureError> {
    MapData::from_pin(pins.map(name)).step(format!("open the eBPF map {name}"))
}

/// Removes every entry that leads to `slot` and whose key `is_over`.
fn forget<K: aya::Pod>(
    map: &mut HashMap<MapData, K, u32>,
    slot: u32,
    is_over: impl Fn(&K) -> bool,
) -> Result<(), MapError> {
    let of_slot = |entry: Result<(K, u32), MapError>| match entry {
        Ok((key, value)) => (value == slot && is_over(&key)).then_some(Ok(key)),
        Err(error) => Some(Err(error)),
    };
    let keys: Vec<K> = map.iter().filter_map(of_slot).collect::<Result<_, _>>()?;
    keys.iter().try_for_each(|key| map.remove(key))
}

/// An address as the programs compare it.
pub(super) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_given_to_one_pod_at_a_time_and_there_are_so_many() {
        assert_eq!(Maps::free_slot(&[]), Some(0));
        assert_eq!(Maps::free_slot(&[0, 2, 1, 4]), Some(3), "the lowest one that is free");
        let all: Vec<u32> = (0..MAX_PODS).collect();
        assert_eq!(Maps::free_slot(&all), None);
        let but_one: Vec<u32> = all.into_iter().filter(|slot| *slot != 7).collect();
        assert_eq!(Maps::free_slot(&but_one), Some(7));
    }
}
