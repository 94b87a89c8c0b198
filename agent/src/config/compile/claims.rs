//! What only one object can have, and several claim.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use super::{Compiler, Key};
use crate::mesh::PodUid;

/// What only one object can have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::config) enum Claim {
    PodUid(PodUid),
    PodAddress(IpAddr),
    ClusterIp(IpAddr),
}

/// Two objects that claim the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::config) struct Conflict {
    pub(in crate::config) claim: Claim,
    /// Who has it.
    pub(in crate::config) owner: Key,
    /// Who is left out.
    pub(in crate::config) claimant: Key,
}

/// The claims of all that claim something others claim too; nearly always, nobody does.
#[derive(Clone, Debug, Default)]
pub(super) struct Disputes {
    claimants: BTreeMap<Claim, BTreeSet<Key>>,
    claims: HashMap<Key, Vec<Claim>>,
}

/// Who goes first, of those that claim the same: the least.
pub(super) type Precedence<'a> = (Reverse<i64>, &'a Key);

impl Disputes {
    /// Finds out who disputes with the objects `changed`, to which those are added for whom the answer
    /// may be another one now. `claims` is what an object claims, `holder` who has something in the
    /// snapshot.
    pub(super) fn settle(
        &mut self,
        changed: &mut BTreeSet<Key>,
        claims: impl Fn(&Key) -> Vec<Claim>,
        holder: impl Fn(&Claim) -> Option<Key>,
    ) {
        let mut claimed: HashMap<Key, Vec<Claim>> = HashMap::with_capacity(changed.len());
        let mut open: Vec<Key> = changed.iter().cloned().collect();
        while let Some(key) = open.pop() {
            let now = claims(&key);
            for claim in now.iter().chain(self.claims.get(&key).into_iter().flatten()) {
                let others = self.claimants.get(claim).into_iter().flatten().cloned();
                for other in others.chain(holder(claim)) {
                    if changed.insert(other.clone()) {
                        open.push(other);
                    }
                }
            }
            claimed.insert(key, now);
        }
        claimed.keys().for_each(|key| self.forget(key));

        // Whoever claims the same as one of those is among them.
        let mut claimants: HashMap<&Claim, Vec<&Key>> = HashMap::with_capacity(claimed.len());
        for (key, claims) in &claimed {
            claims.iter().for_each(|claim| claimants.entry(claim).or_default().push(key));
        }
        for key in claimants.values().filter(|keys| keys.len() > 1).flatten() {
            // All it claims: who is left out for one reason holds nothing in the snapshot by which
            // it would be found for another.
            let claims = &claimed[*key];
            for claim in claims {
                self.claimants.entry(claim.clone()).or_default().insert((*key).clone());
            }
            self.claims.insert((*key).clone(), claims.clone());
        }
    }

    /// Everybody who is in dispute with somebody.
    pub(super) fn all(&self) -> impl Iterator<Item = &Key> {
        self.claims.keys()
    }

    fn forget(&mut self, key: &Key) {
        for claim in self.claims.remove(key).into_iter().flatten() {
            if let Some(claimants) = self.claimants.get_mut(&claim) {
                claimants.remove(key);
                if claimants.is_empty() {
                    self.claimants.remove(&claim);
                }
            }
        }
    }

    /// Whether the object has all it claims.
    pub(super) fn wins<'a>(
        &'a self,
        key: &Key,
        precedence: impl Fn(&Claim, &'a Key) -> Precedence<'a>,
    ) -> bool {
        let mut claims = self.claims.get(key).into_iter().flatten();
        claims.all(|claim| {
            let claimants = self.claimants.get(claim).into_iter().flatten();
            claimants.min_by_key(|one| precedence(claim, one)) == Some(key)
        })
    }

    /// Who is left out.
    pub(super) fn conflicts<'a>(
        &'a self,
        precedence: impl Fn(&Claim, &'a Key) -> Precedence<'a>,
    ) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        for (claim, claimants) in &self.claimants {
            let owner = claimants.iter().min_by_key(|one| precedence(claim, one));
            let Some(owner) = owner else { continue };
            conflicts.extend(claimants.iter().filter(|one| *one != owner).map(|claimant| {
                let (owner, claimant) = (owner.clone(), claimant.clone());
                Conflict { claim: claim.clone(), owner, claimant }
            }));
        }
        conflicts
    }
}

impl Compiler {
    /// Of pods that claim an address, the one made last goes first, since the address of a pod that
    /// ends is free before every watcher has heard of its end. Else the first by its name does.
    pub(super) fn precedence<'a>(&self, claim: &Claim, key: &'a Key) -> Precedence<'a> {
        let created = match claim {
            Claim::PodAddress(_) => self.facts.pods.get(key).map_or(0, |pod| pod.created),
            Claim::PodUid(_) | Claim::ClusterIp(_) => 0,
        };
        (Reverse(created), key)
    }
}
