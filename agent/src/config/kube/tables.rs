//! Everything the watches have told so far.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{addresses::Given, kinds::Kind};
use crate::{
    config::{
        compile::{Facts, Key},
        error::Problem,
        facts::{
            NamespaceFacts, NetworkPolicyFacts, PeerAuthenticationFacts, PodFacts, ServiceFacts,
            SliceFacts,
        },
    },
    mesh::PodUid,
};

/// The kinds that are watched.
pub(super) const KINDS: [&str; 6] = [
    NamespaceFacts::PLURAL,
    PodFacts::PLURAL,
    ServiceFacts::PLURAL,
    SliceFacts::PLURAL,
    PeerAuthenticationFacts::PLURAL,
    NetworkPolicyFacts::PLURAL,
];

/// What an object comes to: facts, nothing the mesh needs to know of, or a problem.
pub(super) type Verdict<F> = Result<Option<F>, Problem>;

/// A change of one kind.
#[derive(Debug)]
pub(super) enum Delta<F> {
    /// An object is new or different.
    Set(Key, Verdict<F>),
    /// An object is gone.
    Gone(Key),
    /// These are all objects of the kind.
    All(Vec<(Key, Verdict<F>)>),
}

impl<F> Delta<F> {
    /// The facts that arrive.
    fn facts_mut(&mut self) -> impl Iterator<Item = &mut F> {
        let (one, all) = match self {
            Self::Set(_, verdict) => (Some(verdict), [].as_mut_slice()),
            Self::Gone(_) => (None, [].as_mut_slice()),
            Self::All(objects) => (None, objects.as_mut_slice()),
        };
        let all = all.iter_mut().map(|(_, verdict)| verdict);
        one.into_iter().chain(all).filter_map(|verdict| verdict.as_mut().ok()?.as_mut())
    }
}

/// A change of any kind.
#[derive(Debug)]
pub(super) enum Change {
    Namespaces(Delta<NamespaceFacts>),
    Pods(Delta<PodFacts>),
    Services(Delta<ServiceFacts>),
    Slices(Delta<SliceFacts>),
    PeerAuthentications(Delta<PeerAuthenticationFacts>),
    NetworkPolicies(Delta<NetworkPolicyFacts>),
    /// Whether the server has kinds of policies that the CNI alone understands.
    CniPolicies(bool),
    /// The addresses of a pod, from elsewhere; none when it ends.
    Addresses(PodUid, Vec<IpAddr>),
}

/// The facts of all kinds, and what is wrong with objects whose facts are older ones.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) facts: Facts,
    problems: BTreeMap<(&'static str, Key), Problem>,
    /// The kinds that were listed.
    listed: BTreeSet<&'static str>,
    given: Given,
}

impl Tables {
    /// Begins with facts from before, in force until the kind is listed.
    pub(super) fn from_former(facts: Facts) -> Self {
        Self { facts, ..Self::default() }
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Namespaces(delta) => self.apply_to(delta),
            Change::Pods(mut delta) => {
                delta.facts_mut().for_each(|pod| self.given.complete(pod));
                self.apply_to(delta);
            }
            Change::Services(delta) => self.apply_to(delta),
            Change::Slices(delta) => self.apply_to(delta),
            Change::PeerAuthentications(delta) => self.apply_to(delta),
            Change::NetworkPolicies(delta) => self.apply_to(delta),
            Change::CniPolicies(there_are) => self.facts.cni_policies = Some(there_are),
            Change::Addresses(uid, ips) => {
                self.given.note(uid, ips, self.facts.pods.values_mut());
            }
        }
    }

    /// Whether every kind was listed.
    pub(super) fn are_complete(&self) -> bool {
        KINDS.iter().all(|kind| self.listed.contains(kind))
    }

    /// What is wrong with objects, in the order of kinds and names.
    pub(super) fn problems(&self) -> Vec<Problem> {
        self.problems.values().cloned().collect()
    }

    fn apply_to<F: Kind>(&mut self, delta: Delta<F>) {
        match delta {
            Delta::Set(key, verdict) => self.set(key, verdict, None),
            Delta::Gone(key) => {
                F::table(&mut self.facts).remove(&key);
                self.problems.remove(&(F::PLURAL, key));
            }
            Delta::All(objects) => {
                let mut former = std::mem::take(F::table(&mut self.facts));
                self.problems.retain(|(kind, _), _| *kind != F::PLURAL);
                for (key, verdict) in objects {
                    let last_good = former.remove(&key);
                    self.set(key, verdict, last_good);
                }
                self.listed.insert(F::PLURAL);
            }
        }
    }

    fn set<F: Kind>(&mut self, key: Key, verdict: Verdict<F>, last_good: Option<F>) {
        let table = F::table(&mut self.facts);
        let problem = match verdict {
            Ok(Some(facts)) => {
                table.insert(key.clone(), facts);
                None
            }
            Ok(None) => {
                table.remove(&key);
                None
            }
            Err(problem) => {
                if let Some(facts) = F::of_unreadable().or(last_good) {
                    table.insert(key.clone(), facts);
                }
                Some(problem)
            }
        };
        match problem {
            Some(problem) => self.problems.insert((F::PLURAL, key), problem),
            None => self.problems.remove(&(F::PLURAL, key)),
        };
    }
}
