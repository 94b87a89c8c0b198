//! What a change of an object may change elsewhere.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{Compiler, Facts, Key, Table};
use crate::{
    config::facts::{
        AuthorizationPolicyFacts, MeshConfigFacts, NamespaceFacts, NetworkPolicyFacts,
        PeerAuthenticationFacts, PodFacts, RequestAuthenticationFacts, ServiceFacts, SliceFacts,
    },
    mesh::{PodUid, Workload},
};

/// What is to be looked at when the facts are compiled next.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    pub(super) pods: BTreeSet<Key>,
    /// What those were that were there: Services may have selected them.
    pub(super) former: Vec<Arc<Workload>>,
    pub(super) services: BTreeSet<Key>,
    /// Services that have endpoints there.
    pub(super) addresses: HashSet<IpAddr>,
    /// The UIDs of pods that are gone, or have another one.
    pub(super) retired: Vec<(Key, PodUid)>,
    pub(super) peer_authentications: bool,
    pub(super) network_policies: bool,
    pub(super) authorization_policies: bool,
    pub(super) request_authentications: bool,
    pub(super) mesh_config: bool,
    pub(super) nodes: bool,
}

/// The facts of one object.
pub(in crate::config) trait Fact: Clone + PartialEq {
    /// Those of all objects of the kind.
    fn table(facts: &Facts) -> &Table<Self>;

    fn table_mut(facts: &mut Facts) -> &mut Table<Self>;

    /// Marks what depends on the object at `key`, which was `former` and is another one now.
    fn changed(compiler: &mut Compiler, key: &Key, former: Option<Self>);
}

impl Fact for NamespaceFacts {
    fn table(facts: &Facts) -> &Table<Self> {
        &facts.namespaces
    }

    fn table_mut(facts: &mut Facts) -> &mut Table<Self> {
        &mut facts.namespaces
    }

    fn changed(compiler: &mut Compiler, key: &Key, former: Option<Self>) {
        let mode = |facts: Option<&Self>| facts.and_then(|facts| facts.mode);
        if mode(former.as_ref()) != mode(compiler.facts.namespaces.get(key)) {
            compiler.mark_pods_in(&key.1);
        }
    }
}

impl Fact for PodFacts {
    fn table(facts: &Facts) -> &Table<Self> {
        &facts.pods
    }

    fn table_mut(facts: &mut Facts) -> &mut Table<Self> {
        &mut facts.pods
    }

    fn changed(compiler: &mut Compiler, key: &Key, former: Option<Self>) {
        let pod = compiler.facts.pods.get(key).cloned();
        compiler.marks.pods.insert(key.clone());
        let [before, now] = [former.as_ref(), pod.as_ref()];
        let [node_before, node_now] = [before, now].map(|pod| pod.map(|pod| &pod.node_addresses));
        compiler.marks.nodes |= compiler.nodes.change(node_before, node_now);
        let who_and_where = |pod: &Self| (pod.workload.uid.clone(), pod.addresses().to_vec());
        if before.map(who_and_where) != now.map(who_and_where) {
            let both = before.into_iter().chain(now).flat_map(|pod| pod.addresses());
            compiler.marks.addresses.extend(both);
        }
        if let Some(former) = former {
            compiler.marks.former.push(former.workload.clone());
            let uid = &former.workload.uid;
            compiler.unaddressed.remove(uid);
            if pod.as_ref().is_none_or(|pod| pod.workload.uid != *uid) {
                compiler.marks.retired.push((key.clone(), uid.clone()));
            }
        }
        if let Some(pod) = pod.filter(|pod| pod.addresses().is_empty()) {
            compiler.unaddressed.insert(pod.workload.uid.clone(), key.clone());
        }
    }
}

impl Fact for ServiceFacts {
    fn table(facts: &Facts) -> &Table<Self> {
        &facts.services
    }

    fn table_mut(facts: &mut Facts) -> &mut Table<Self> {
        &mut facts.services
    }

    fn changed(compiler: &mut Compiler, key: &Key, former: Option<Self>) {
        compiler.marks.services.insert(key.clone());
        compiler.note_unsliced(key);
        let is_on_nodes = |service: Option<&Self>| {
            service.is_some_and(|service| service.ports.iter().any(|p| p.node_port.is_some()))
        };
        let before = compiler.node_ports;
        compiler.node_ports += usize::from(is_on_nodes(compiler.facts.services.get(key)));
        compiler.node_ports -= usize::from(is_on_nodes(former.as_ref()));
        compiler.marks.nodes |= (before == 0) != (compiler.node_ports == 0);
        let selector = |service: Option<&Self>| service.map(|service| service.selector.clone());
        let is_spoken_of = compiler.authorization_policies.speak_of_services(&key.0)
            || compiler.request_authentications.speak_of_services(&key.0);
        if is_spoken_of && selector(former.as_ref()) != selector(compiler.facts.services.get(key)) {
            compiler.mark_pods_in(&key.0);
        }
    }
}

impl Fact for SliceFacts {
    fn table(facts: &Facts) -> &Table<Self> {
        &facts.slices
    }

    fn table_mut(facts: &mut Facts) -> &mut Table<Self> {
        &mut facts.slices
    }

    fn changed(compiler: &mut Compiler, key: &Key, former: Option<Self>) {
        let slice = compiler.facts.slices.get(key).cloned();
        let service = |slice: &Self| (key.0.clone(), slice.service.clone());
        let [before, now] = [&former, &slice].map(|slice| slice.as_ref()?.zone.as_ref());
        compiler.zones.change(before, now);
        compiler.note_zone();
        if let Some(former) = &former {
            let service = service(former);
            if let Some(slices) = compiler.slices.get_mut(&service) {
                slices.retain(|slice| slice != key);
                if slices.is_empty() {
                    compiler.slices.remove(&service);
                }
            }
            compiler.note_unsliced(&service);
            compiler.marks.services.insert(service);
        }
        if let Some(slice) = &slice {
            let service = service(slice);
            let slices = compiler.slices.entry(service.clone()).or_default();
            if let Err(at) = slices.binary_search(key) {
                slices.insert(at, key.clone());
            }
            compiler.note_unsliced(&service);
            compiler.marks.services.insert(service);
        }
    }
}

impl Fact for PeerAuthenticationFacts {
    fn table(facts: &Facts) -> &Table<Self> {
        &facts.peer_authentications
    }

    fn table_mut(facts: &mut Facts) -> &mut Table<Self> {
        &mut facts.peer_authentications
    }

    fn changed(compiler: &mut Compiler, key: &Key, _: Option<Self>) {
        compiler.marks.peer_authentications = true;
        compiler.mark_pods_of_policies_in(&key.0);
    }
}

impl Fact for AuthorizationPolicyFacts {
    fn table(facts: &Facts) -> &Table<Self> {
        &facts.authorization_policies
    }

    fn table_mut(facts: &mut Facts) -> &mut Table<Self> {
        &mut facts.authorization_policies
    }

    fn changed(compiler: &mut Compiler, key: &Key, _: Option<Self>) {
        compiler.marks.authorization_policies = true;
        compiler.mark_pods_of_policies_in(&key.0);
    }
}

impl Fact for RequestAuthenticationFacts {
    fn table(facts: &Facts) -> &Table<Self> {
        &facts.request_authentications
    }

    fn table_mut(facts: &mut Facts) -> &mut Table<Self> {
        &mut facts.request_authentications
    }

    fn changed(compiler: &mut Compiler, key: &Key, _: Option<Self>) {
        compiler.marks.request_authentications = true;
        compiler.mark_pods_of_policies_in(&key.0);
    }
}

impl Fact for MeshConfigFacts {
    fn table(facts: &Facts) -> &Table<Self> {
        &facts.mesh_config
    }

    fn table_mut(facts: &mut Facts) -> &mut Table<Self> {
        &mut facts.mesh_config
    }

    fn changed(compiler: &mut Compiler, _: &Key, _: Option<Self>) {
        compiler.marks.mesh_config = true;
    }
}

impl Fact for NetworkPolicyFacts {
    fn table(facts: &Facts) -> &Table<Self> {
        &facts.network_policies
    }

    fn table_mut(facts: &mut Facts) -> &mut Table<Self> {
        &mut facts.network_policies
    }

    fn changed(compiler: &mut Compiler, key: &Key, _: Option<Self>) {
        compiler.marks.network_policies = true;
        compiler.mark_pods_in(&key.0);
    }
}

impl Compiler {
    /// Marks the pods that a policy of `namespace` may speak for: of the root namespace, all.
    fn mark_pods_of_policies_in(&mut self, namespace: &Arc<str>) {
        if **namespace == *self.root.as_str() {
            self.marks.pods.extend(self.facts.pods.keys().cloned());
        } else {
            self.mark_pods_in(namespace);
        }
    }

    fn mark_pods_in(&mut self, namespace: &Arc<str>) {
        let there = in_namespace(&self.facts.pods, namespace).map(|(key, _)| key.clone());
        self.marks.pods.extend(there);
    }

    /// The Services without slices that select `pod`.
    pub(super) fn selecting(&self, pod: &Workload) -> Vec<Key> {
        let namespace = &pod.namespace;
        let there = self.unsliced.range((namespace.clone(), "".into())..);
        let there = there.take_while(|(of, _)| of == namespace);
        let selects = |key: &&Key| {
            self.facts.services.get(*key).is_some_and(|service| service.selects(&pod.labels))
        };
        there.filter(selects).cloned().collect()
    }

    /// Notes whether the Service at `key` has to find its endpoints itself.
    fn note_unsliced(&mut self, key: &Key) {
        let service = self.facts.services.get(key);
        let selects = service.is_some_and(|service| !service.selector.is_empty());
        if selects && !self.slices.contains_key(key) {
            self.unsliced.insert(key.clone());
        } else {
            self.unsliced.remove(key);
        }
    }

    /// Finds out anew in which zone this node is: the one that most slices tell, and where none tells, the
    /// one it was in. A node does not move.
    fn note_zone(&mut self) {
        let most = self.zones.iter().max_by_key(|(zone, slices)| (*slices, Reverse(*zone)));
        if let Some((most, _)) = most
            && self.zone.as_ref() != Some(most)
        {
            self.zone = Some(most.clone());
            self.marks.services.extend(self.facts.services.keys().cloned());
        }
    }
}

/// What `table` has of a namespace.
pub(super) fn in_namespace<'a, F>(
    table: &'a Table<F>,
    namespace: &'a Arc<str>,
) -> impl Iterator<Item = (&'a Key, &'a F)> {
    let first: Key = (namespace.clone(), "".into());
    table.range(first..).take_while(move |(key, _)| key.0 == *namespace)
}
