//! The endpoints behind a Service's port.

use std::{net::SocketAddr, sync::Arc};

use super::{Compiler, Key, marks::in_namespace};
use crate::{
    config::facts::{Condition, EndpointFacts, Hints, PodFacts, PortFacts, ServiceFacts, Target},
    mesh::{Endpoint, Endpoints, Workload},
};

/// One that may take what a Service is sent.
pub(super) struct Candidate<'a> {
    pub(super) endpoint: Endpoint,
    pub(super) condition: Condition,
    /// Whether it is on this node.
    pub(super) is_here: bool,
    /// For whom it is meant.
    pub(super) hints: Option<&'a Hints>,
}

impl Compiler {
    /// The endpoints of `port` of the Service at `key`. Without a slice, those of a Service with a
    /// selector are the pods it selects: the API server's endpoint slice controller would make the
    /// same of them, and files written by hand seldom have slices.
    pub(super) fn endpoints(
        &self,
        key: &Key,
        service: &ServiceFacts,
        port: &PortFacts,
    ) -> Endpoints {
        let candidates = if self.unsliced.contains(key) {
            self.selected(key, service, port)
        } else {
            self.sliced(key, port)
        };
        choose(candidates, service.stays_on_node, self.zone.as_deref())
    }

    /// Those that the slices of the Service have for the port of that name.
    fn sliced(&self, key: &Key, port: &PortFacts) -> Vec<Candidate<'_>> {
        let slices = self.slices.get(key).into_iter().flatten();
        let mut found = Vec::new();
        for slice in slices.filter_map(|key| self.facts.slices.get(key)) {
            for (_, port) in slice.ports.iter().filter(|(name, _)| **name == *port.name) {
                found.extend(slice.endpoints.iter().map(|endpoint| Candidate {
                    endpoint: Endpoint {
                        address: SocketAddr::new(endpoint.address, *port),
                        workload: self.behind(&key.0, endpoint),
                    },
                    condition: endpoint.condition,
                    is_here: endpoint.is_here,
                    hints: endpoint.hints.as_deref(),
                }));
            }
        }
        found
    }

    /// Who is at an address of an endpoint. The address decides: a reference may outlive the pod it
    /// names. Only a pod on the host's network, which has no address of its own, is known by reference.
    fn behind(&self, namespace: &Arc<str>, endpoint: &EndpointFacts) -> Option<Arc<Workload>> {
        let ip = endpoint.address;
        if let Some(pod) = self.snapshot.workload(ip) {
            return Some(pod.clone());
        }
        let key = (namespace.clone(), endpoint.pod.clone()?);
        let pod = self.facts.pods.get(&key)?;
        let is_it = pod.host_network && pod.addresses().contains(&ip);
        self.placed(&key, pod).filter(|_| is_it).cloned()
    }

    /// The pods that the Service selects, at the target port of `port`.
    fn selected(&self, key: &Key, service: &ServiceFacts, port: &PortFacts) -> Vec<Candidate<'_>> {
        let pods = in_namespace(&self.facts.pods, &key.0).filter_map(|(key, pod)| {
            let workload = self.placed(key, pod).filter(|pod| service.selects(&pod.labels))?;
            Some((pod, workload, target_port(pod, &port.target)?))
        });
        pods.flat_map(|(pod, workload, port)| {
            let condition = match pod.condition {
                _ if service.publish_not_ready => Condition::Ready,
                condition => condition,
            };
            pod.addresses().iter().map(move |ip| Candidate {
                endpoint: Endpoint {
                    address: SocketAddr::new(*ip, port),
                    workload: Some(workload.clone()),
                },
                condition,
                is_here: self.snapshot.is_local(workload),
                hints: None,
            })
        })
        .collect()
    }
}

fn target_port(pod: &PodFacts, target: &Target) -> Option<u16> {
    match target {
        Target::Number(number) => Some(*number),
        Target::Name(wanted) => {
            let mut named = pod.ports.iter().filter(|(name, _)| **name == **wanted);
            named.next().map(|(_, port)| *port)
        }
        Target::Nowhere => None,
    }
}

/// Who takes what, of each family of addresses by itself. As kube-proxy has it (`CategorizeEndpoints`,
/// Kubernetes 1.35): those that are ready and, where all are meant for somebody, meant for this node or
/// its zone; where there are none, those on their way out that still serve.
pub(super) fn choose(
    candidates: Vec<Candidate<'_>>,
    stays_on_node: bool,
    zone: Option<&str>,
) -> Endpoints {
    let is_ipv4 = |one: &Candidate<'_>| one.endpoint.address.is_ipv4();
    let (v4, v6) = candidates.into_iter().partition(is_ipv4);
    let [v4, v6] = [v4, v6].map(|family| choose_of_family(family, stays_on_node, zone));
    let both = |v4: Vec<Endpoint>, v6: Vec<Endpoint>| match (v4.is_empty(), v6.is_empty()) {
        (_, true) => v4,
        (true, false) => v6,
        (false, false) => [v4, v6].concat(),
    };
    Endpoints {
        taking: both(v4.taking, v6.taking),
        local: v4.local.zip(v6.local).map(|(v4, v6)| both(v4, v6)),
        idle: both(v4.idle, v6.idle),
    }
}

fn choose_of_family(
    mut candidates: Vec<Candidate<'_>>,
    stays_on_node: bool,
    zone: Option<&str>,
) -> Endpoints {
    // Of two at one address, the one that can do more.
    candidates.sort_by_key(|one| (one.endpoint.address, one.condition));
    candidates.dedup_by_key(|one| one.endpoint.address);
    let is_ready = |one: &Candidate<'_>| one.condition == Condition::Ready;
    let is_leaving = |one: &Candidate<'_>| one.condition == Condition::Leaving;
    let meant = Meant::of(candidates.iter().filter(|one| is_ready(one)), zone);
    let takes = |one: &Candidate<'_>| is_ready(one) && meant.is(one, zone);
    let taking = first_of(&candidates, [&takes, &is_leaving]);
    let local = stays_on_node.then(|| {
        let (ready, leaving) = (
            |one: &Candidate<'_>| one.is_here && is_ready(one),
            |one: &Candidate<'_>| one.is_here && is_leaving(one),
        );
        first_of(&candidates, [&ready, &leaving])
    });
    let is_idle = |one: &Candidate<'_>| {
        taking.binary_search_by_key(&one.endpoint.address, |taking| taking.address).is_err()
    };
    let idle = candidates.iter().filter(|one| is_idle(one)).map(|one| one.endpoint.clone());
    Endpoints { idle: idle.collect(), taking, local }
}

/// Those of which the first of `kinds` holds that holds of any.
fn first_of(
    candidates: &[Candidate<'_>],
    kinds: [&dyn Fn(&Candidate<'_>) -> bool; 2],
) -> Vec<Endpoint> {
    let of = |is: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<Endpoint> {
        let those = || candidates.iter().filter(|one| is(one));
        let mut of = Vec::with_capacity(those().count());
        of.extend(those().map(|one| one.endpoint.clone()));
        of
    };
    let first = of(kinds[0]);
    if first.is_empty() { of(kinds[1]) } else { first }
}

/// Which of a port's endpoints are meant for this node.
enum Meant {
    All,
    ForNode,
    ForZone,
}

impl Meant {
    /// Hints count where all of the `ready` have them and some of those are meant for here.
    fn of<'a>(ready: impl Iterator<Item = &'a Candidate<'a>> + Clone, zone: Option<&str>) -> Self {
        let hints = || ready.clone().map(|one| one.hints);
        let all = |have: fn(&Hints) -> bool| hints().all(|hints| hints.is_some_and(have));
        let any = |meant: &Self| ready.clone().any(|one| meant.is(one, zone));
        if all(|hints| hints.for_nodes) && any(&Self::ForNode) {
            Self::ForNode
        } else if all(|hints| !hints.for_zones.is_empty()) && any(&Self::ForZone) {
            Self::ForZone
        } else {
            Self::All
        }
    }

    fn is(&self, one: &Candidate<'_>, zone: Option<&str>) -> bool {
        let in_zone =
            |hints: &Hints| zone.is_some_and(|zone| hints.for_zones.iter().any(|one| one == zone));
        match self {
            Self::All => true,
            Self::ForNode => one.hints.is_some_and(|hints| hints.for_this_node),
            Self::ForZone => one.hints.is_some_and(in_zone),
        }
    }
}
