//! How much each client has of something, by its address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts by address. Only addresses that have something are kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources(Arc<Mutex<HashMap<IpAddr, u64>>>);

/// One of a source's; given back when dropped.
#[derive(Debug)]
pub(super) struct FromSource {
    sources: Sources,
    address: IpAddr,
}

impl Sources {
    /// One more of `address`, unless it has `most` already.
    pub(super) fn take(&self, address: IpAddr, most: u64) -> Option<FromSource> {
        let mut counts = self.counts();
        let count = counts.entry(address).or_default();
        if *count >= most {
            // Whoever is refused has some, but where nothing at all may be had.
            if *count == 0 {
                counts.remove(&address);
            }
            return None;
        }
        *count += 1;
        Some(FromSource { sources: self.clone(), address })
    }

    /// The lock is one pod's, and held for a look into a map.
    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FromSource {
    fn drop(&mut self) {
        let mut counts = self.sources.counts();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_no_more_than_it_may_and_leaves_nothing_behind() {
        let sources = Sources::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held: Vec<_> = std::iter::from_fn(|| sources.take(one, 3)).collect();
        assert_eq!(held.len(), 3);
        assert!(sources.take(other, 3).is_some());
        drop(held);
        assert!(sources.take(one, 0).is_none());
        assert!(sources.counts().is_empty());
    }
}
