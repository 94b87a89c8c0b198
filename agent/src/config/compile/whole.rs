//! What the facts come to, by looking at all of them at once and at nothing from before: slow, and
//! short enough to be read. Tests hold the compiler against it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{
    Facts, Key,
    endpoints::{Candidate, choose},
};
use crate::{
    config::{
        MeshSettings,
        authorization_policy::AuthorizationPolicies,
        facts::{Condition, PodFacts, PortFacts, ServiceFacts, Target},
        network_policy::NetworkPolicies,
        peer_authentication::Policies,
        request_authentication::RequestAuthentications,
    },
    mesh::{Endpoint, Endpoints, PodUid, Workload},
};

/// A Service's cluster IPs, its other addresses, how long it keeps clients, and its ports, each with
/// that of the nodes.
type Told = (Vec<IpAddr>, Vec<IpAddr>, Option<Duration>, Vec<(u16, Option<u16>, Endpoints)>);

/// Every pod by its UID, and every Service by its name.
#[derive(Debug, PartialEq)]
pub(super) struct Whole {
    pub(super) pods: BTreeMap<PodUid, Workload>,
    pub(super) services: BTreeMap<Key, Told>,
    pub(super) nodes: BTreeSet<IpAddr>,
    pub(super) cni_policies: bool,
}

/// Of the facts, as a node in `zone` sees them.
pub(super) fn compile(facts: &Facts, settings: &MeshSettings, zone: Option<&str>) -> Whole {
    let mut policies = Policies::new(&facts.peer_authentications, &settings.root_namespace);
    let mut network_policies = NetworkPolicies::new(&facts.network_policies);
    let mut authorization_policies =
        AuthorizationPolicies::new(&facts.authorization_policies, &settings.root_namespace);
    let mut request_authentications =
        RequestAuthentications::new(&facts.request_authentications, &settings.root_namespace);
    let mut placed: BTreeMap<&Key, (&PodFacts, Workload)> = BTreeMap::new();
    for (key, pod) in &facts.pods {
        if pod.addresses().is_empty() || !has_all_it_claims(facts, key, pod) {
            continue;
        }
        let namespace = facts.namespaces.get(&("".into(), key.0.clone()));
        let meshed = pod.belongs(namespace.and_then(|namespace| namespace.mode));
        let mut workload = Workload {
            meshed,
            mtls: Arc::default(),
            authorization: Arc::default(),
            authentication: Arc::default(),
            policed: None,
            ..(*pod.workload).clone()
        };
        if meshed {
            workload.mtls = policies.of(&key.0, &workload.labels);
            workload.policed = network_policies.of(&key.0, &workload.labels);
            if workload.node == settings.node {
                let (services, labels) = (&facts.services, &workload.labels);
                workload.authorization =
                    authorization_policies.of(&key.0, labels, services, &Arc::default());
                workload.authentication =
                    request_authentications.of(&key.0, labels, services, &Arc::default());
            }
        }
        placed.insert(key, (pod, workload));
    }
    let mut services = BTreeMap::new();
    for (key, service) in &facts.services {
        let is_taken = |vip: &IpAddr| {
            let mut before = facts.services.iter().take_while(|(other, _)| *other < key);
            before.any(|(_, other)| other.vips.contains(vip))
        };
        if service.vips.iter().any(is_taken) {
            continue;
        }
        let ports = service.ports.iter().map(|port| {
            let candidates = candidates(facts, settings, &placed, key, service, port);
            let endpoints = choose(candidates, service.stays_on_node, zone);
            (port.number, port.node_port, endpoints)
        });
        let ServiceFacts { vips, external, affinity, .. } = service.clone();
        services.insert(key.clone(), (vips, external, affinity, ports.collect()));
    }
    let on_nodes = facts.services.values().flat_map(|service| &service.ports);
    let any = on_nodes.filter(|port| port.node_port.is_some()).count() > 0;
    let nodes = facts.pods.values().filter(|_| any);
    let nodes = nodes.flat_map(|pod| pod.node_addresses.iter().copied());
    Whole {
        pods: placed.into_values().map(|(_, pod)| (pod.uid.clone(), pod)).collect(),
        services,
        nodes: nodes.filter(|ip| !ip.is_loopback()).collect(),
        cni_policies: facts.cni_policies.unwrap_or(true),
    }
}

fn has_all_it_claims(facts: &Facts, key: &Key, pod: &PodFacts) -> bool {
    let running = || facts.pods.iter().filter(|(_, other)| !other.addresses().is_empty());
    let loses_uid =
        |(other, it): (&Key, &PodFacts)| it.workload.uid == pod.workload.uid && other < key;
    let loses_address = |(other, it): (&Key, &PodFacts)| {
        let meet = it.workload.ips.iter().any(|ip| pod.workload.ips.contains(ip));
        meet && (Reverse(it.created), other) < (Reverse(pod.created), key)
    };
    !running().any(loses_uid) && !running().any(loses_address)
}

fn candidates<'a>(
    facts: &'a Facts,
    settings: &MeshSettings,
    placed: &BTreeMap<&Key, (&PodFacts, Workload)>,
    key: &Key,
    service: &ServiceFacts,
    port: &PortFacts,
) -> Vec<Candidate<'a>> {
    let slices = || {
        let all = facts.slices.iter();
        all.filter(|(of, slice)| of.0 == key.0 && slice.service == key.1).map(|(_, slice)| slice)
    };
    let mut found = Vec::new();
    if slices().next().is_some() || service.selector.is_empty() {
        for slice in slices() {
            for (_, number) in slice.ports.iter().filter(|(name, _)| **name == *port.name) {
                for one in &slice.endpoints {
                    let mut pods = placed.values();
                    let owner = pods.find(|(_, pod)| pod.ips.contains(&one.address));
                    let named = one.pod.clone().and_then(|name| {
                        let pod = placed.get(&(key.0.clone(), name))?;
                        let is_there = pod.0.addresses().contains(&one.address);
                        (pod.0.host_network && is_there).then_some(pod)
                    });
                    let workload = owner.or(named).map(|(_, pod)| Arc::new(pod.clone()));
                    let address = SocketAddr::new(one.address, *number);
                    found.push(Candidate {
                        endpoint: Endpoint { address, workload },
                        condition: one.condition,
                        is_here: one.is_here,
                        hints: one.hints.as_deref(),
                    });
                }
            }
        }
        return found;
    }
    for (pod, workload) in placed.values() {
        if workload.namespace != key.0 || !service.selects(&workload.labels) {
            continue;
        }
        let target = match &port.target {
            Target::Number(number) => Some(*number),
            Target::Name(name) => {
                pod.ports.iter().find(|(of, _)| **of == **name).map(|(_, number)| *number)
            }
            Target::Nowhere => None,
        };
        let condition = match pod.condition {
            _ if service.publish_not_ready => Condition::Ready,
            condition => condition,
        };
        for (ip, target) in pod.addresses().iter().zip(target.iter().cycle()) {
            found.push(Candidate {
                endpoint: Endpoint {
                    address: SocketAddr::new(*ip, *target),
                    workload: Some(Arc::new(workload.clone())),
                },
                condition,
                is_here: workload.node == settings.node,
                hints: None,
            });
        }
    }
    found
}
