//! Puts the objects of one load together into what a snapshot is built of.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
    hash::Hash,
    sync::Arc,
};

use k8s_openapi::{
    Metadata, Resource,
    api::{
        core::v1::{self as k8s, Namespace, Pod},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    error::{Place, Problem},
    manifest::{Manifests, Object},
    service::{self, Candidate, Pods, SERVICE_NAME},
    workload::{self, Reading},
    yaml::Step,
};
use crate::mesh::{PodUid, Service, Snapshot, SnapshotBuilder, TrustDomain, Workload};

/// One load, ready to be published.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    /// What is legal but probably not meant.
    pub(super) warnings: Vec<String>,
}

/// The objects of one load, each with a name of its own.
struct Objects<'a> {
    namespaces: Vec<&'a Object<Namespace>>,
    pods: Vec<&'a Object<Pod>>,
    services: Vec<&'a Object<k8s::Service>>,
    slices: Vec<&'a Object<EndpointSlice>>,
}

impl Compiled {
    /// Compiles `manifests`; whatever cannot be obeyed is added to `problems`. Workloads and
    /// Services that `former` has with the same value are taken from there, so that whoever
    /// holds one can tell by the pointer that nothing changed.
    pub(super) fn new(
        manifests: &Manifests,
        trust_domain: &TrustDomain,
        former: &Snapshot,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let objects = Objects {
            namespaces: unique(&manifests.namespaces, problems),
            pods: unique(&manifests.pods, problems),
            services: unique(&manifests.services, problems),
            slices: unique(&manifests.slices, problems),
        };
        unique(&manifests.service_accounts, problems);
        let mut compiled = Self::default();
        let pods = compiled.read_pods(&objects, trust_domain, former, problems);
        compiled.read_services(&objects, &pods, former, problems);
        compiled
    }

    /// Whether `snapshot` says the same already.
    pub(super) fn is_in(&self, snapshot: &Snapshot) -> bool {
        self.workloads == snapshot.workloads() && self.services == snapshot.services()
    }

    /// The snapshot of this load.
    pub(super) fn snapshot(self, trust_domain: TrustDomain, version: u64) -> Snapshot {
        let Self { workloads, services, warnings: _ } = self;
        SnapshotBuilder { trust_domain, workloads, services }.build(version)
    }

    fn read_pods<'a>(
        &mut self,
        objects: &Objects<'a>,
        trust_domain: &TrustDomain,
        former: &Snapshot,
        problems: &mut Vec<Problem>,
    ) -> Pods<'a> {
        let modes = modes(&objects.namespaces);
        let former: HashMap<&PodUid, _> = former.workloads().iter().map(|w| (&w.uid, w)).collect();
        let mut pods = Pods::default();
        let mut uids = Owners::default();
        let mut ips = Owners::default();
        for pod in &objects.pods {
            let mode = modes.get(pod.namespace()).copied().flatten();
            let (workload, addresses) = match workload::read(pod, mode, trust_domain) {
                Ok(Reading::Workload(workload, addresses)) => (workload, addresses),
                Ok(Reading::Over) => continue,
                Ok(Reading::NoAddress) => {
                    self.warnings.push(format!("{} is left out: no status.podIPs", named(pod)));
                    continue;
                }
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            };
            problems.extend(uids.claim(
                workload.uid.clone(),
                pod,
                &["metadata".into(), "uid".into()],
            ));
            let workload = match former.get(&workload.uid) {
                Some(former) if ***former == *workload => (*former).clone(),
                _ => Arc::from(workload),
            };
            for ip in &workload.ips {
                problems.extend(ips.claim(*ip, pod, &["status".into(), "podIPs".into()]));
                pods.by_ip.insert(*ip, workload.clone());
            }
            if workload.ips.is_empty() {
                pods.on_host.insert((pod.namespace(), pod.name()), workload.clone());
            }
            self.workloads.push(workload.clone());
            pods.all.push(Candidate { pod, addresses, workload });
        }
        pods
    }

    fn read_services(
        &mut self,
        objects: &Objects<'_>,
        pods: &Pods<'_>,
        former: &Snapshot,
        problems: &mut Vec<Problem>,
    ) {
        let former: HashMap<_, _> = former
            .services()
            .iter()
            .map(|s| ((s.namespace.as_str(), s.name.as_str()), s))
            .collect();
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for slice in &objects.slices {
            if let Some(service) = slice.label(SERVICE_NAME) {
                slices.entry((slice.namespace(), service)).or_default().push(*slice);
            }
        }
        let mut vips = Owners::default();
        for object in &objects.services {
            let key = (object.namespace(), object.name());
            let slices = slices.get(&key).map(Vec::as_slice).unwrap_or_default();
            let service = match service::read(object, slices, pods) {
                Ok(service) => service,
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            };
            if service::lacks_cluster_ip(object) {
                self.warnings.push(format!(
                    "{} has no spec.clusterIP, and nothing assigns one to a file: it is \
                     reached by its pods' addresses alone",
                    named(object)
                ));
            }
            for vip in &service.vips {
                problems.extend(vips.claim(*vip, object, &["spec".into(), "clusterIP".into()]));
            }
            self.services.push(match former.get(&key) {
                Some(former) if ***former == service => (*former).clone(),
                _ => Arc::new(service),
            });
        }
    }
}

/// The dataplane mode of each namespace that has one.
fn modes<'a>(namespaces: &[&'a Object<Namespace>]) -> BTreeMap<&'a str, Option<&'a str>> {
    namespaces
        .iter()
        .map(|namespace| {
            (namespace.name(), workload::dataplane_mode(namespace.body.metadata.labels.as_ref()))
        })
        .collect()
}

/// The objects that have a name of their own, in the order of namespaces and names, so that
/// moving them between files is no change.
fn unique<'a, T: Metadata<Ty = ObjectMeta>>(
    objects: &'a [Object<T>],
    problems: &mut Vec<Problem>,
) -> Vec<&'a Object<T>> {
    let mut unique: Vec<_> = objects.iter().collect();
    unique.sort_by_key(|object| (object.namespace(), object.name()));
    unique.dedup_by(|second, first| {
        let same = (second.namespace(), second.name()) == (first.namespace(), first.name());
        if same {
            let name = ["metadata".into(), "name".into()];
            let what = format!("{} is defined already at {}", named(*second), first.place(&name));
            problems.push(Problem::new(second.place(&name), what));
        }
        same
    });
    unique
}

fn named<T: Metadata<Ty = ObjectMeta>>(object: &Object<T>) -> String {
    let (kind, name) = (T::KIND, object.name());
    match kind {
        Namespace::KIND => format!("{kind} {name}"),
        _ => format!("{kind} {}/{name}", object.namespace()),
    }
}

/// Who holds what only one may hold.
struct Owners<K>(HashMap<K, (String, Place)>);

impl<K> Default for Owners<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + fmt::Display> Owners<K> {
    /// Gives `key` to `object`, which names it `steps` below; a problem when it is taken.
    fn claim<T: Metadata<Ty = ObjectMeta>>(
        &mut self,
        key: K,
        object: &Object<T>,
        steps: &[Step<'_>],
    ) -> Option<Problem> {
        let place = object.place(steps);
        match self.0.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert((named(object), place));
                None
            }
            Entry::Occupied(entry) => {
                let (owner, at) = entry.get();
                let what =
                    format!("{} of {} belongs to {owner} at {at}", entry.key(), named(object));
                Some(Problem::new(place, what))
            }
        }
    }
}
