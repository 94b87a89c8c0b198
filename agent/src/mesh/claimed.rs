//! What leads to Services although several may claim it.

use std::{cmp::Ordering, sync::Arc};

use equivalent::{Comparable, Equivalent};

use super::{Owner, ServiceId, snapshot::Map};

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) service: ServiceId,
    /// Which of the Service's ports, as it has them in order.
    pub(super) port: u16,
}

/// A port of a pod and the port of a Service that it serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Served {
    pub(super) target: u16,
    pub(super) service: ServiceId,
    /// As in [`Place`].
    pub(super) port: u16,
}

/// By keys, all that claim them, in order: who comes first does not depend on who came first.
#[derive(Clone, Debug)]
pub(super) struct Claimed<K: Ord, V>(Map<K, Arc<[V]>>);

impl<K: Ord, V> Default for Claimed<K, V> {
    fn default() -> Self {
        Self(Map::default())
    }
}

impl<K: Ord + Clone, V: Ord + Clone> Claimed<K, V> {
    /// All that claim `key`.
    pub(super) fn get(&self, key: &K) -> &[V] {
        self.0.get(key).map_or(&[], |all| all)
    }

    /// Adds `claims` and takes `former` ones back. Both in order.
    pub(super) fn change(&mut self, former: &[(K, V)], claims: &[(K, V)]) {
        let (mut former, mut claims) = (former.iter().peekable(), claims.iter().peekable());
        loop {
            match (former.peek(), claims.peek()) {
                (Some(old), Some(new)) if old == new => drop((former.next(), claims.next())),
                (Some(old), new) if new.is_none_or(|new| old < new) => {
                    self.remove(&old.0, &old.1);
                    former.next();
                }
                (_, Some(new)) => {
                    self.add(new.0.clone(), new.1.clone());
                    claims.next();
                }
                (_, None) => return,
            }
        }
    }

    fn add(&mut self, key: K, claim: V) {
        let all = self.get(&key);
        let Err(at) = all.binary_search(&claim) else { return };
        let (before, after) = all.split_at(at);
        let all: Arc<[V]> = before.iter().chain([&claim]).chain(after).cloned().collect();
        self.0.insert(key, all);
    }

    fn remove(&mut self, key: &K, claim: &V) {
        let left: Arc<[V]> = self.get(key).iter().filter(|one| *one != claim).cloned().collect();
        if left.is_empty() {
            self.0.remove(key);
        } else {
            self.0.insert(key.clone(), left);
        }
    }
}

/// The controller of pods in a namespace, by which their telemetry is named.
#[derive(Clone, Debug)]
pub(super) struct OwnerOf {
    pub(super) namespace: Arc<str>,
    pub(super) owner: Arc<Owner>,
}

impl OwnerOf {
    fn names(&self) -> (&str, &str) {
        (&self.namespace, &self.owner.name)
    }
}

impl PartialEq for OwnerOf {
    fn eq(&self, other: &Self) -> bool {
        self.names() == other.names()
    }
}

impl Eq for OwnerOf {}

impl PartialOrd for OwnerOf {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OwnerOf {
    fn cmp(&self, other: &Self) -> Ordering {
        self.names().cmp(&other.names())
    }
}

impl Equivalent<OwnerOf> for (&str, &str) {
    fn equivalent(&self, owner: &OwnerOf) -> bool {
        *self == owner.names()
    }
}

impl Comparable<OwnerOf> for (&str, &str) {
    fn compare(&self, owner: &OwnerOf) -> Ordering {
        self.cmp(&owner.names())
    }
}
