//! Everything the watches have told so far.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use super::{addresses::Given, kinds::Kind};
use crate::{
    config::{
        MeshSettings,
        compile::{Compiler, Facts, Key},
        error::Problem,
        facts::{
            AuthorizationPolicyFacts, MeshConfigFacts, NamespaceFacts, NetworkPolicyFacts,
            PeerAuthenticationFacts, PodFacts, RequestAuthenticationFacts, ServiceFacts,
            SliceFacts,
        },
    },
    mesh::PodUid,
};

/// The kinds that are watched.
pub(super) const KINDS: [&str; 9] = [
    NamespaceFacts::PLURAL,
    PodFacts::PLURAL,
    ServiceFacts::PLURAL,
    SliceFacts::PLURAL,
    PeerAuthenticationFacts::PLURAL,
    NetworkPolicyFacts::PLURAL,
    AuthorizationPolicyFacts::PLURAL,
    RequestAuthenticationFacts::PLURAL,
    MeshConfigFacts::PLURAL,
];

/// What an object comes to: facts, nothing the mesh needs to know of, or a problem.
pub(super) type Verdict<F> = Result<Option<F>, Unread<F>>;

/// What is wrong with an object, and what is in force of it.
#[derive(Debug, PartialEq)]
pub(super) struct Unread<F> {
    pub(super) problem: Problem,
    pub(super) instead: Instead<F>,
}

/// What is in force of an object that cannot be read.
#[derive(Debug, PartialEq)]
pub(super) enum Instead<F> {
    /// Its last good version, if there ever was one.
    LastGood,
    /// The same, and these where there never was one.
    LastGoodOr(F),
    /// These, whatever was before.
    This(F),
}

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
    AuthorizationPolicies(Delta<AuthorizationPolicyFacts>),
    RequestAuthentications(Delta<RequestAuthenticationFacts>),
    MeshConfig(Delta<MeshConfigFacts>),
    /// Whether the server has kinds of policies that the CNI alone understands.
    CniPolicies(bool),
    /// The addresses of a pod, from elsewhere; none when it ends.
    Addresses(PodUid, Vec<IpAddr>),
}

/// The facts of all kinds, and what is wrong with objects whose facts are older ones.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) compiler: Compiler,
    problems: BTreeMap<(&'static str, Key), Problem>,
    /// The kinds that were listed.
    listed: BTreeSet<&'static str>,
    given: Given,
}

impl Tables {
    pub(super) fn new(settings: MeshSettings) -> Self {
        Self {
            compiler: Compiler::new(settings),
            problems: BTreeMap::new(),
            listed: BTreeSet::new(),
            given: Given::default(),
        }
    }

    /// Takes facts from before, in force until the kind is listed.
    pub(super) fn recall(&mut self, facts: Facts) {
        self.compiler.replace(facts);
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
            Change::AuthorizationPolicies(delta) => self.apply_to(delta),
            Change::RequestAuthentications(delta) => self.apply_to(delta),
            Change::MeshConfig(delta) => self.apply_to(delta),
            Change::CniPolicies(there_are) => self.compiler.set_cni_policies(Some(there_are)),
            Change::Addresses(uid, ips) => self.given.note(uid, ips, &mut self.compiler),
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
            Delta::Set(key, verdict) => self.set(key, verdict),
            Delta::Gone(key) => {
                self.compiler.set::<F>(key.clone(), None);
                self.problems.remove(&(F::PLURAL, key));
            }
            Delta::All(objects) => {
                let there: HashSet<&Key> = objects.iter().map(|(key, _)| key).collect();
                self.problems.retain(|(kind, key), _| *kind != F::PLURAL || there.contains(key));
                self.compiler.keep_only::<F>(|key| there.contains(key));
                // Every second one first: a tree that is filled in order stays half empty.
                let mut second = Vec::with_capacity(objects.len() / 2);
                for (index, (key, verdict)) in objects.into_iter().enumerate() {
                    if index % 2 == 0 {
                        self.set(key, verdict);
                    } else {
                        second.push((key, verdict));
                    }
                }
                second.into_iter().for_each(|(key, verdict)| self.set(key, verdict));
                self.listed.insert(F::PLURAL);
            }
        }
    }

    fn set<F: Kind>(&mut self, key: Key, verdict: Verdict<F>) {
        match verdict {
            Ok(facts) => {
                self.compiler.set(key.clone(), facts);
                self.problems.remove(&(F::PLURAL, key));
            }
            Err(Unread { problem, instead }) => {
                let known = F::table(self.compiler.facts()).get(&key);
                let is_known = known.is_some_and(F::was_read);
                match instead {
                    Instead::This(facts) => self.compiler.set(key.clone(), Some(facts)),
                    Instead::LastGoodOr(facts) if !is_known => {
                        self.compiler.set(key.clone(), Some(facts));
                    }
                    Instead::LastGood | Instead::LastGoodOr(_) => {}
                }
                self.problems.insert((F::PLURAL, key), problem);
            }
        }
    }
}
