//! Who is served at a time.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::{CancellationToken, DropGuard};

/// How many may be served at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// In all.
    pub(crate) most: usize,
    /// Of one address.
    pub(crate) per_source: usize,
}

/// Where connections come from, as far as it costs something to be somebody else: a machine has
/// an IPv4 address, and a whole /64 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Source(IpAddr);

impl Source {
    pub(crate) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
            }
            ipv4 => ipv4,
        })
    }
}

/// The places, all of which may be taken. Who comes is always let in; in their place goes who
/// has been there longest without a request, of their own address where that has its share, and
/// else of the address that has most. So no crowd keeps out somebody who comes alone and for a
/// moment, as the kubelet does and agents do.
pub(super) struct Guests {
    bounds: Bounds,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    by_source: HashMap<Source, BTreeMap<u64, Place>>,
    count: usize,
    /// Numbers guests in the order they came.
    next: u64,
}

struct Place {
    busy: bool,
    /// Dropped to have the guest leave.
    _stays: DropGuard,
}

/// A place that is held while this is.
pub(crate) struct Guest {
    guests: Arc<Guests>,
    source: Source,
    number: u64,
    dismissed: CancellationToken,
}

impl Guests {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, held: Mutex::default() })
    }

    pub(super) fn admit(self: &Arc<Self>, source: Source) -> Guest {
        let mut held = self.lock();
        let own = held.by_source.get(&source).map_or(0, BTreeMap::len);
        if own >= self.bounds.per_source {
            held.dismiss_one_of(source);
        } else if held.count >= self.bounds.most {
            let crowd =
                held.by_source.iter().max_by_key(|(source, places)| (places.len(), **source));
            if let Some(crowd) = crowd.map(|(source, _)| *source) {
                held.dismiss_one_of(crowd);
            }
        }
        let dismissed = CancellationToken::new();
        let stays = dismissed.clone().drop_guard();
        let number = held.next;
        held.next += 1;
        held.count += 1;
        let place = Place { busy: false, _stays: stays };
        held.by_source.entry(source).or_default().insert(number, place);
        Guest { guests: self.clone(), source, number, dismissed }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn dismiss_one_of(&mut self, source: Source) {
        let Some(places) = self.by_source.get(&source) else { return };
        let idle = places.iter().find(|(_, place)| !place.busy);
        if let Some(number) = idle.or(places.iter().next()).map(|(number, _)| *number) {
            self.remove(source, number);
        }
    }

    fn remove(&mut self, source: Source, number: u64) {
        let Some(places) = self.by_source.get_mut(&source) else { return };
        if places.remove(&number).is_some() {
            self.count -= 1;
        }
        if places.is_empty() {
            self.by_source.remove(&source);
        }
    }
}

impl Guest {
    /// Where it comes from.
    pub(crate) fn source(&self) -> Source {
        self.source
    }

    /// Whether it waits for an answer; who does not goes first.
    pub(crate) fn set_busy(&self, busy: bool) {
        let mut held = self.guests.lock();
        let place = held.by_source.get_mut(&self.source);
        if let Some(place) = place.and_then(|places| places.get_mut(&self.number)) {
            place.busy = busy;
        }
    }

    /// Waits until the place is somebody else's.
    pub(crate) async fn dismissed(&self) {
        self.dismissed.cancelled().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.lock().remove(self.source, self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const BOUNDS: Bounds = Bounds { most: 8, per_source: 4 };

    fn source(last: u8) -> Source {
        Source::of(IpAddr::from([10, 0, 0, last]))
    }

    /// Which of `guests` were dismissed, and so left.
    fn gone(guests: &mut Vec<Guest>) -> Vec<u64> {
        let gone = guests.extract_if(.., |guest| guest.dismissed().now_or_never().is_some());
        gone.map(|guest| guest.number).collect()
    }

    #[test]
    fn an_address_that_has_its_share_gives_up_its_own_oldest() {
        let guests = Guests::new(BOUNDS);
        let other = guests.admit(source(2));
        let mut crowd: Vec<_> = (0..6).map(|_| guests.admit(source(1))).collect();
        assert_eq!(gone(&mut crowd), [1, 2]);
        assert!(gone(&mut vec![other]).is_empty());
        assert_eq!(guests.lock().count, 4);
    }

    #[test]
    fn when_all_places_are_taken_the_largest_crowd_gives_one_up() {
        let guests = Guests::new(BOUNDS);
        let mut small = vec![guests.admit(source(1))];
        let mut crowd: Vec<_> = (0..4).map(|_| guests.admit(source(2))).collect();
        let mut third: Vec<_> = (0..3).map(|_| guests.admit(source(3))).collect();
        let _alone = guests.admit(source(4));
        assert!(gone(&mut small).is_empty());
        assert!(gone(&mut third).is_empty());
        assert_eq!(gone(&mut crowd), [1]);
        assert_eq!(guests.lock().count, 8);
    }

    #[test]
    fn who_waits_for_an_answer_goes_last() {
        let guests = Guests::new(BOUNDS);
        let mut all: Vec<_> = (0..4).map(|_| guests.admit(source(1))).collect();
        all[0].set_busy(true);
        all.push(guests.admit(source(1)));
        assert_eq!(gone(&mut all), [1]);
    }

    #[test]
    fn who_leaves_makes_room() {
        let guests = Guests::new(BOUNDS);
        for _ in 0..100 {
            let guest = guests.admit(source(1));
            assert_eq!(guests.lock().count, 1);
            drop(guest);
        }
        assert!(guests.lock().by_source.is_empty());
    }

    #[test]
    fn addresses_that_cost_nothing_are_one() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("fd00::1"), of("fd00::ffff:1"));
        assert_ne!(of("fd00::1"), of("fd00:0:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
