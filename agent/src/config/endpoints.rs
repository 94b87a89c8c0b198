//! The endpoints behind a Service's port.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::facts::{PodFacts, PortFacts, ServiceFacts, SliceFacts, Target};
use crate::mesh::{Endpoint, Workload};

/// The running pods, as endpoints find them.
#[derive(Debug)]
pub(super) struct Pods<'a> {
    all: Vec<&'a PodFacts>,
    /// Those with an address of their own.
    by_ip: HashMap<IpAddr, &'a Arc<Workload>>,
    /// Those on the host's network, by namespace and name.
    on_host: HashMap<(&'a str, &'a str), &'a Arc<Workload>>,
}

impl<'a> Pods<'a> {
    pub(super) fn new(pods: impl Iterator<Item = &'a PodFacts>) -> Self {
        let mut new = Self { all: pods.collect(), by_ip: HashMap::new(), on_host: HashMap::new() };
        new.by_ip.reserve(new.all.len());
        for pod in &new.all {
            let workload = &pod.workload;
            new.by_ip.extend(workload.ips.iter().map(|ip| (*ip, workload)));
            if pod.host_network {
                new.on_host.insert((&workload.namespace, &workload.name), workload);
            }
        }
        new
    }

    /// All of them, in the order of their names.
    pub(super) fn all(&self) -> impl Iterator<Item = &'a PodFacts> {
        self.all.iter().copied()
    }

    /// The endpoints of `port` of a Service. Without a slice, those of a Service with a selector
    /// are the ready pods it selects: the API server's endpoint slice controller would make the
    /// same of them, and files written by hand seldom have slices.
    pub(super) fn behind(
        &self,
        namespace: &str,
        service: &ServiceFacts,
        port: &PortFacts,
        slices: &[&SliceFacts],
    ) -> Vec<Endpoint> {
        let mut endpoints = if slices.is_empty() && !service.selector.is_empty() {
            self.selected(namespace, service, port)
        } else {
            self.sliced(port, slices)
        };
        endpoints.sort_by_key(|endpoint| endpoint.address);
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        endpoints
    }

    /// The endpoints that `slices` have for the port of that name.
    fn sliced(&self, port: &PortFacts, slices: &[&SliceFacts]) -> Vec<Endpoint> {
        let mut found = Vec::new();
        for slice in slices {
            for (_, port) in slice.ports.iter().filter(|(name, _)| **name == *port.name) {
                for endpoint in &slice.endpoints {
                    // The address decides who is there; a reference may outlive the pod it names.
                    // Only a host-network pod, which has no address of its own, is known by
                    // reference.
                    let host_pod = || {
                        let (namespace, name) = endpoint.pod.as_ref()?;
                        self.on_host.get(&(&**namespace, &**name))
                    };
                    found.extend(endpoint.addresses.iter().map(|ip| Endpoint {
                        address: SocketAddr::new(*ip, *port),
                        workload: self.by_ip.get(ip).or_else(host_pod).map(|w| (*w).clone()),
                    }));
                }
            }
        }
        found
    }

    /// The ready pods that the Service selects, at the target port of `port`.
    fn selected(&self, namespace: &str, service: &ServiceFacts, port: &PortFacts) -> Vec<Endpoint> {
        let ServiceFacts { selector, publish_not_ready, .. } = service;
        let selected = self.all.iter().filter(|PodFacts { workload, ready, .. }| {
            *workload.namespace == *namespace
                && selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
                && (*publish_not_ready || *ready)
        });
        selected
            .filter_map(|pod| Some((pod, target_port(pod, &port.target)?)))
            .flat_map(|(PodFacts { addresses, workload, .. }, port)| {
                addresses.iter().map(move |ip| Endpoint {
                    address: SocketAddr::new(*ip, port),
                    workload: Some(workload.clone()),
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
