//! Values that many objects have in common, held once.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashSet},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

use super::facts::{Hints, NamedPorts};
use crate::mesh::{Owner, Principal};

/// Hands out one copy of equal values. A cluster's pods share their namespaces, nodes, owners,
/// identities and, within a Deployment, all their labels.
#[derive(Debug, Default)]
pub(super) struct Shared {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Arc<BTreeMap<String, String>>>,
    owners: HashSet<Arc<Owner>>,
    addresses: HashSet<Arc<[IpAddr]>>,
    ports: HashSet<NamedPorts>,
    hints: HashSet<Arc<Hints>>,
    principals: HashSet<Principal>,
}

impl Shared {
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        one(&mut self.texts, text)
    }

    pub(super) fn labels(
        &mut self,
        labels: BTreeMap<String, String>,
    ) -> Arc<BTreeMap<String, String>> {
        one(&mut self.labels, labels)
    }

    pub(super) fn owner(&mut self, owner: Owner) -> Arc<Owner> {
        one(&mut self.owners, owner)
    }

    /// Those of a node, which all its pods tell.
    pub(super) fn addresses(&mut self, addresses: Vec<IpAddr>) -> Arc<[IpAddr]> {
        one(&mut self.addresses, addresses)
    }

    pub(super) fn ports(&mut self, ports: Vec<(Box<str>, u16)>) -> NamedPorts {
        one(&mut self.ports, ports)
    }

    pub(super) fn hints(&mut self, hints: Hints) -> Arc<Hints> {
        one(&mut self.hints, hints)
    }

    pub(super) fn principal(&mut self, principal: Principal) -> Principal {
        match self.principals.get(&principal) {
            Some(same) => same.clone(),
            None => {
                self.principals.insert(principal.clone());
                principal
            }
        }
    }

    /// Lets go of what nobody else holds any more. Identities are few and stay.
    pub(super) fn sweep(&mut self) {
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.owners.retain(|owner| Arc::strong_count(owner) > 1);
        self.addresses.retain(|addresses| Arc::strong_count(addresses) > 1);
        self.ports.retain(|ports| Arc::strong_count(ports) > 1);
        self.hints.retain(|hints| Arc::strong_count(hints) > 1);
    }
}

fn one<T, V>(known: &mut HashSet<Arc<T>>, value: V) -> Arc<T>
where
    T: Hash + Eq + ?Sized,
    V: Borrow<T> + Into<Arc<T>>,
{
    match known.get(value.borrow()) {
        Some(same) => same.clone(),
        None => {
            let new: Arc<T> = value.into();
            known.insert(new.clone());
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_held_once_and_gone_with_their_last_holder() {
        let mut shared = Shared::default();
        let [first, second] = [shared.text("shop"), shared.text("shop")];
        assert!(Arc::ptr_eq(&first, &second));
        let labels = || BTreeMap::from([("app".to_owned(), "order".to_owned())]);
        assert!(Arc::ptr_eq(&shared.labels(labels()), &shared.labels(labels())));
        drop((first, second));
        shared.sweep();
        assert!(shared.texts.is_empty() && shared.labels.is_empty());
    }
}
