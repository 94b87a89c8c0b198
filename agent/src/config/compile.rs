//! Puts what is known of each object together into a snapshot.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use super::{
    endpoints::Pods,
    facts::{
        Mode, NamespaceFacts, NetworkPolicyFacts, PeerAuthenticationFacts, PodFacts, ServiceFacts,
        SliceFacts,
    },
    network_policy::NetworkPolicies,
    peer_authentication::Policies,
};
use crate::mesh::{
    PodUid, RootNamespace, Service, ServicePort, Snapshot, SnapshotBuilder, TrustDomain, Workload,
};

/// Namespace and name; for what has no namespace, the first is empty.
pub(super) type Key = (Arc<str>, Arc<str>);

/// Everything a source knows, each object under its name. In the order of names, so that where an
/// object is written, or when it arrived, makes no difference.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) namespaces: BTreeMap<Key, NamespaceFacts>,
    pub(super) pods: BTreeMap<Key, PodFacts>,
    pub(super) services: BTreeMap<Key, ServiceFacts>,
    pub(super) slices: BTreeMap<Key, SliceFacts>,
    pub(super) peer_authentications: BTreeMap<Key, PeerAuthenticationFacts>,
    pub(super) network_policies: BTreeMap<Key, NetworkPolicyFacts>,
    /// Whether there may be policies of kinds that the CNI alone understands; `None` where that
    /// is not known, which counts as if there were some.
    pub(super) cni_policies: Option<bool>,
}

/// One configuration, ready to be published.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    nodes: BTreeSet<IpAddr>,
    cni_policies: bool,
    /// Who was left out because somebody else has what only one can have.
    pub(super) conflicts: Vec<Conflict>,
}

/// Two objects that claim the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) claim: Claim,
    /// Who has it.
    pub(super) owner: Key,
    /// Who is left out.
    pub(super) claimant: Key,
}

/// What only one object can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    PodUid(PodUid),
    PodAddress(IpAddr),
    ClusterIp(IpAddr),
}

impl Facts {
    /// Compiles everything. Workloads and Services that `former` has with the same value are taken
    /// from there, so that whoever holds one can tell by the pointer that nothing changed.
    pub(super) fn compile(&mut self, former: &Snapshot, root: &RootNamespace) -> Compiled {
        self.settle(former, root);
        let mut compiled = Compiled::default();
        let pods = compiled.place_pods(&self.pods);
        compiled.place_services(self, &pods, former);
        compiled.nodes = self.nodes();
        compiled.cni_policies = self.cni_policies.unwrap_or(true);
        compiled
    }

    /// The addresses of nodes; none where no Service has a port of every node, so that most
    /// clusters' pods are not asked.
    fn nodes(&self) -> BTreeSet<IpAddr> {
        let mut ports = self.services.values().flat_map(|service| &service.ports);
        if !ports.any(|port| port.node_port.is_some()) {
            return BTreeSet::new();
        }
        let told = self.pods.values().flat_map(|pod| pod.node_addresses.iter().copied());
        told.filter(|ip| !ip.is_loopback()).collect()
    }

    /// Settles which pods belong to the mesh, whether those insist on mutual TLS, and whether a
    /// NetworkPolicy selects them.
    fn settle(&mut self, former: &Snapshot, root: &RootNamespace) {
        let named = |(_, name): &Key, facts: &NamespaceFacts| Some((name.clone(), facts.mode?));
        let modes: HashMap<Arc<str>, Mode> =
            self.namespaces.iter().filter_map(|(key, facts)| named(key, facts)).collect();
        let former: HashMap<&PodUid, _> = former.workloads().iter().map(|w| (&w.uid, w)).collect();
        let mut policies = Policies::new(&self.peer_authentications, root);
        let mut network_policies = NetworkPolicies::new(&self.network_policies);
        let nothing = Arc::default();
        for ((namespace, _), pod) in &mut self.pods {
            let meshed = pod.belongs(modes.get(&pod.workload.namespace).copied());
            let labels = &pod.workload.labels;
            let mtls = if meshed { policies.of(namespace, labels) } else { Arc::clone(&nothing) };
            let policed = if meshed { network_policies.of(namespace, labels) } else { None };
            let known = &pod.workload;
            if (known.meshed, &known.policed, &known.mtls) != (meshed, &policed, &mtls) {
                pod.workload = Arc::new(Workload { meshed, policed, mtls, ..(**known).clone() });
            }
            if let Some(&same) = former.get(&pod.workload.uid).filter(|f| ***f == pod.workload) {
                pod.workload = same.clone();
            }
        }
    }
}

impl Compiled {
    /// Whether `snapshot` says the same already.
    pub(super) fn is_in(&self, snapshot: &Snapshot) -> bool {
        self.workloads == snapshot.workloads()
            && self.services == snapshot.services()
            && self.nodes == *snapshot.nodes()
            && self.cni_policies == snapshot.cni_policies
    }

    /// The snapshot of this configuration.
    pub(super) fn snapshot(self, trust_domain: TrustDomain, version: u64) -> Snapshot {
        let Self { workloads, services, nodes, cni_policies, conflicts: _ } = self;
        SnapshotBuilder { trust_domain, workloads, services, nodes, cni_policies }.build(version)
    }

    /// Gives each address to one pod: the one made last, since the address of a pod that ends is
    /// free before every watcher has heard of its end.
    fn place_pods<'a>(&mut self, pods: &'a BTreeMap<Key, PodFacts>) -> Pods<'a> {
        let running: Vec<_> = pods.iter().filter(|(_, pod)| !pod.addresses.is_empty()).collect();
        let mut left_out = vec![false; running.len()];
        let mut uids: HashMap<&PodUid, usize> = HashMap::with_capacity(running.len());
        let mut ips: HashMap<IpAddr, usize> = HashMap::with_capacity(running.len());
        for (index, (key, pod)) in running.iter().enumerate() {
            let uid = &pod.workload.uid;
            if let Some(owner) = uids.insert(uid, index) {
                uids.insert(uid, owner);
                left_out[index] = true;
                self.conflict(Claim::PodUid(uid.clone()), running[owner].0, key);
                continue;
            }
            for ip in &pod.workload.ips {
                let Some(former) = ips.insert(*ip, index) else { continue };
                let (owner, loser) = if pod.created > running[former].1.created {
                    (index, former)
                } else {
                    (former, index)
                };
                ips.insert(*ip, owner);
                left_out[loser] = true;
                self.conflict(Claim::PodAddress(*ip), running[owner].0, running[loser].0);
            }
        }
        let placed = running.into_iter().zip(left_out).filter(|(_, left_out)| !left_out);
        let pods = Pods::new(placed.map(|((_, pod), _)| pod));
        self.workloads = pods.all().map(|pod| pod.workload.clone()).collect();
        pods
    }

    fn place_services(&mut self, facts: &Facts, pods: &Pods<'_>, former: &Snapshot) {
        let former: HashMap<_, _> = former
            .services()
            .iter()
            .map(|s| ((s.namespace.as_str(), s.name.as_str()), s))
            .collect();
        let mut slices: HashMap<(&str, &str), Vec<&SliceFacts>> = HashMap::new();
        for ((namespace, _), slice) in &facts.slices {
            slices.entry((namespace, &slice.service)).or_default().push(slice);
        }
        let mut vips: HashMap<IpAddr, &Key> = HashMap::new();
        for (key, service) in &facts.services {
            let (namespace, name) = (&*key.0, &*key.1);
            let mut taken = false;
            for vip in &service.vips {
                match vips.entry(*vip) {
                    Entry::Vacant(entry) => drop(entry.insert(key)),
                    Entry::Occupied(owner) => {
                        self.conflict(Claim::ClusterIp(*vip), owner.get(), key);
                        taken = true;
                    }
                }
            }
            if taken {
                continue;
            }
            let slices = slices.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
            let ports = service.ports.iter().map(|port| {
                let endpoints = pods.behind(namespace, service, port, slices);
                let name = port.name.clone();
                let reached = ServicePort::new(port.number, name, port.protocol, endpoints);
                Arc::new(reached.on_nodes(port.node_port))
            });
            let service = Service {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                vips: service.vips.clone(),
                external: service.external.clone(),
                ports: ports.collect(),
            };
            self.services.push(match former.get(&(namespace, name)) {
                Some(former) if ***former == service => (*former).clone(),
                _ => Arc::new(service),
            });
        }
    }

    fn conflict(&mut self, claim: Claim, owner: &Key, claimant: &Key) {
        self.conflicts.push(Conflict { claim, owner: owner.clone(), claimant: claimant.clone() });
    }
}
