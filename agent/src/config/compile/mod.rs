//! Puts what is known of each object together, and says what of it is news.
//!
//! A change of one object costs what hangs on that object, however many there are: facts that
//! arrive mark what they may change ([`marks`]), and [`Compiler::compile`] looks at that alone. What
//! compiling everything would give is written down as [`whole`], for tests.

mod claims;
mod counts;
mod endpoints;
mod marks;
mod pods;
mod services;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod whole;

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;

use super::{
    MeshSettings,
    authorization_policy::AuthorizationPolicies,
    facts::{
        AuthorizationPolicyFacts, MeshConfigFacts, NamespaceFacts, NetworkPolicyFacts,
        PeerAuthenticationFacts, PodFacts, RequestAuthenticationFacts, ServiceFacts, SliceFacts,
    },
    network_policy::NetworkPolicies,
    peer_authentication::Policies,
    request_authentication::RequestAuthentications,
};
use crate::{
    mesh::{PodUid, RootNamespace, Snapshot},
    policy::Providers,
};
use claims::Disputes;
pub(super) use claims::{Claim, Conflict};
use counts::Counts;
pub(super) use marks::Fact;
use marks::Marks;

/// Namespace and name; for what has no namespace, the first is empty.
pub(super) type Key = (Arc<str>, Arc<str>);

/// The facts of a kind. A copy costs nothing, and shares with this one what neither changes.
pub(super) type Table<F> = OrdMap<Key, F>;

/// Everything a source knows, each object under its name. In the order of names, so that where an
/// object is written, or when it arrived, makes no difference.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) namespaces: Table<NamespaceFacts>,
    pub(super) pods: Table<PodFacts>,
    pub(super) services: Table<ServiceFacts>,
    pub(super) slices: Table<SliceFacts>,
    pub(super) peer_authentications: Table<PeerAuthenticationFacts>,
    pub(super) network_policies: Table<NetworkPolicyFacts>,
    pub(super) authorization_policies: Table<AuthorizationPolicyFacts>,
    pub(super) request_authentications: Table<RequestAuthenticationFacts>,
    /// There is one at most.
    pub(super) mesh_config: Table<MeshConfigFacts>,
    /// Whether there may be policies of kinds that the CNI alone understands; `None` where that
    /// is not known, which counts as if there were some.
    pub(super) cni_policies: Option<bool>,
}

/// The facts, and the snapshot that they come to.
#[derive(Clone, Debug)]
pub(super) struct Compiler {
    facts: Facts,
    snapshot: Snapshot,
    marks: Marks,
    root: RootNamespace,
    policies: Policies,
    network_policies: NetworkPolicies,
    authorization_policies: AuthorizationPolicies,
    request_authentications: RequestAuthentications,
    pods_in_dispute: Disputes,
    services_in_dispute: Disputes,
    /// The pods that have no address yet, which no snapshot names.
    unaddressed: HashMap<PodUid, Key>,
    /// The slices of each Service, in order.
    slices: HashMap<Key, Vec<Key>>,
    /// The Services with a selector and without slices.
    unsliced: BTreeSet<Key>,
    /// How many pods tell each node's addresses.
    nodes: Counts<Arc<[IpAddr]>>,
    /// How many Services have a port of every node.
    node_ports: usize,
    /// How many slices say of an endpoint of this node that it is in a zone.
    zones: Counts<Arc<str>>,
    /// The zone of this node; `None` before any slice said.
    zone: Option<Arc<str>>,
}

impl Compiler {
    /// Knows of no object yet.
    pub(super) fn new(settings: MeshSettings) -> Self {
        let MeshSettings { trust_domain, root_namespace, node } = settings;
        let mut snapshot = Snapshot::new(trust_domain, node);
        snapshot.cni_policies = true;
        Self {
            facts: Facts::default(),
            snapshot,
            marks: Marks::default(),
            root: root_namespace,
            policies: Policies::default(),
            network_policies: NetworkPolicies::default(),
            authorization_policies: AuthorizationPolicies::default(),
            request_authentications: RequestAuthentications::default(),
            pods_in_dispute: Disputes::default(),
            services_in_dispute: Disputes::default(),
            unaddressed: HashMap::new(),
            slices: HashMap::new(),
            unsliced: BTreeSet::new(),
            nodes: Counts::default(),
            node_ports: 0,
            zones: Counts::default(),
            zone: None,
        }
    }

    /// What is known.
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What that came to when it was last compiled.
    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The pod of that UID, with an address or without.
    pub(super) fn pod(&self, uid: &PodUid) -> Option<(&Key, &PodFacts)> {
        let placed = self.snapshot.pod(uid).map(|pod| pods::key_of(pod));
        let placed = placed.as_ref().and_then(|key| self.facts.pods.get_key_value(key));
        let others = self.unaddressed.get(uid).into_iter();
        // Those that are left out, or not compiled yet.
        let others = others.chain(&self.marks.pods).chain(self.pods_in_dispute.all());
        let others = others.filter_map(|key| self.facts.pods.get_key_value(key));
        placed.into_iter().chain(others).find(|(_, pod)| pod.workload.uid == *uid)
    }

    /// Notes what an object says by now; `None` when it is gone.
    pub(super) fn set<F: Fact>(&mut self, key: Key, fact: Option<F>) {
        let table = F::table_mut(&mut self.facts);
        if table.get(&key) == fact.as_ref() {
            return;
        }
        let former = match fact {
            Some(fact) => table.insert(key.clone(), fact),
            None => table.remove(&key),
        };
        F::changed(self, &key, former);
    }

    /// Notes whether there may be policies of kinds that the CNI alone understands.
    pub(super) fn set_cni_policies(&mut self, there_are: Option<bool>) {
        self.facts.cni_policies = there_are;
    }

    /// Notes that `facts` are all there is.
    pub(super) fn replace(&mut self, facts: Facts) {
        let Facts {
            namespaces,
            pods,
            services,
            slices,
            peer_authentications,
            network_policies,
            authorization_policies,
            request_authentications,
            mesh_config,
            cni_policies,
        } = facts;
        self.replace_all(namespaces);
        self.replace_all(pods);
        self.replace_all(services);
        self.replace_all(slices);
        self.replace_all(peer_authentications);
        self.replace_all(network_policies);
        self.replace_all(authorization_policies);
        self.replace_all(request_authentications);
        self.replace_all(mesh_config);
        self.set_cni_policies(cni_policies);
    }

    fn replace_all<F: Fact>(&mut self, all: Table<F>) {
        self.keep_only::<F>(|key| all.contains_key(key));
        for (key, fact) in all {
            self.set(key, Some(fact));
        }
    }

    /// Notes that all objects of a kind are gone but those that `stays` accepts.
    pub(super) fn keep_only<F: Fact>(&mut self, stays: impl Fn(&Key) -> bool) {
        let table = F::table(&self.facts);
        let gone: Vec<Key> = table.keys().filter(|key| !stays(key)).cloned().collect();
        gone.into_iter().for_each(|key| self.set::<F>(key, None));
    }

    /// Brings the snapshot up to date with the facts; whether that changed it. What is as before is
    /// the same object as before, so that whoever holds one can tell by the pointer.
    pub(super) fn compile(&mut self) -> bool {
        let marks = mem::take(&mut self.marks);
        let (mut pods, mut services) = (marks.pods, marks.services);
        if marks.peer_authentications {
            self.policies = Policies::new(&self.facts.peer_authentications, &self.root);
        }
        if marks.network_policies {
            self.network_policies = NetworkPolicies::new(&self.facts.network_policies);
        }
        if marks.authorization_policies {
            let all = &self.facts.authorization_policies;
            self.authorization_policies = AuthorizationPolicies::new(all, &self.root);
        }
        if marks.request_authentications {
            let all = &self.facts.request_authentications;
            self.request_authentications = RequestAuthentications::new(all, &self.root);
        }

        let mut addresses = marks.addresses;
        services.extend(marks.former.iter().flat_map(|former| self.selecting(former)));
        let patch = self.patch_of_pods(&mut pods, &marks.retired, &mut addresses, &mut services);
        let mut changed = !patch.is_empty();
        self.snapshot.apply(patch);

        services.extend(addresses.into_iter().flat_map(|ip| self.services_at(ip)));
        let mut patch = self.patch_of_services(&mut services);
        patch.nodes = marks.nodes.then(|| self.other_nodes()).flatten();
        let cni_policies = self.facts.cni_policies.unwrap_or(true);
        patch.providers = marks.mesh_config.then(|| self.other_providers()).flatten();
        patch.cni_policies = Some(cni_policies).filter(|is| *is != self.snapshot.cni_policies);
        changed |= !patch.is_empty();
        self.snapshot.apply(patch);
        changed
    }

    /// Who was left out because somebody else has what only one can have.
    pub(super) fn conflicts(&self) -> Vec<Conflict> {
        let pods = self.pods_in_dispute.conflicts(|claim, key| self.precedence(claim, key));
        let services = self.services_in_dispute.conflicts(|claim, key| self.precedence(claim, key));
        pods.into_iter().chain(services).collect()
    }

    /// The external authorizers, where they are others than in the snapshot.
    fn other_providers(&self) -> Option<Arc<Providers>> {
        let config = self.facts.mesh_config.values().next();
        let providers = config.map(|config| config.providers.clone()).unwrap_or_default();
        (providers != **self.snapshot.providers()).then(|| Arc::new(providers))
    }

    /// The addresses of nodes, where they are others than in the snapshot; none where no Service has a
    /// port of every node.
    fn other_nodes(&self) -> Option<Arc<BTreeSet<IpAddr>>> {
        let told = self.nodes.iter().map(|(ips, _)| ips).filter(|_| self.node_ports > 0);
        let told = told.flat_map(|ips| ips.iter().copied()).filter(|ip| !ip.is_loopback());
        let nodes: BTreeSet<_> = told.collect();
        (nodes != **self.snapshot.nodes()).then(|| Arc::new(nodes))
    }

    fn services_at(&self, ip: IpAddr) -> impl Iterator<Item = Key> {
        self.snapshot.services_at(ip).map(services::key_of)
    }
}
