//! What has changed of pods.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{Claim, Compiler, Key};
use crate::{
    config::facts::PodFacts,
    jwt::Authentication,
    mesh::{MutualTls, Patch, PodUid, Workload},
    policy::Authorization,
};

impl Compiler {
    /// Looks at the pods `marked`. Notes the `addresses` at which there is somebody else now, and the
    /// `services` that find others themselves.
    pub(super) fn patch_of_pods(
        &mut self,
        marked: &mut BTreeSet<Key>,
        retired: &[(Key, PodUid)],
        addresses: &mut HashSet<IpAddr>,
        services: &mut BTreeSet<Key>,
    ) -> Patch {
        let (facts, snapshot) = (&self.facts, &self.snapshot);
        let claims = |key: &Key| match facts.pods.get(key) {
            Some(pod) if !pod.addresses().is_empty() => {
                let ips = pod.workload.ips.iter().map(|ip| Claim::PodAddress(*ip));
                ips.chain([Claim::PodUid(pod.workload.uid.clone())]).collect()
            }
            _ => Vec::new(),
        };
        let holder = |claim: &Claim| {
            let pod = match claim {
                Claim::PodUid(uid) => snapshot.pod(uid),
                Claim::PodAddress(ip) => snapshot.workload(*ip),
                Claim::ClusterIp(_) => None,
            };
            pod.map(|pod| key_of(pod))
        };
        self.pods_in_dispute.settle(marked, claims, holder);

        let mut patch = Patch::default();
        for key in marked.iter() {
            self.settle(key);
            let Some(pod) = self.facts.pods.get(key) else { continue };
            services.extend(self.selecting(&pod.workload));
            let workload = &pod.workload;
            let placed = self.placed(key, pod);
            let is_running = !pod.addresses().is_empty();
            let wins = || self.pods_in_dispute.wins(key, |claim, key| self.precedence(claim, key));
            if is_running && wins() {
                if placed.is_some_and(|placed| Arc::ptr_eq(placed, workload)) {
                    continue;
                }
                patch.pods.push(workload.clone());
            } else if placed.is_some() {
                patch.pods_gone.push(workload.uid.clone());
            } else {
                continue;
            }
            addresses.extend(pod.addresses());
        }
        // One that is back already was looked at above.
        let is_back = |key: &Key, uid: &PodUid| {
            self.facts.pods.get(key).is_some_and(|pod| pod.workload.uid == *uid)
        };
        let has_gone =
            |(key, uid): &&(Key, PodUid)| self.at(key, uid).is_some() && !is_back(key, uid);
        patch.pods_gone.extend(retired.iter().filter(has_gone).map(|(_, uid)| uid.clone()));
        if !patch.pods_gone.is_empty() {
            // One pod may have the UID that another has just lost.
            let taken: HashSet<_> = patch.pods.iter().map(|pod| &pod.uid).collect();
            patch.pods_gone.retain(|uid| !taken.contains(uid));
        }
        patch
    }

    /// The pod at `key` as the snapshot has it; `None` where it is left out.
    pub(super) fn placed(&self, key: &Key, pod: &PodFacts) -> Option<&Arc<Workload>> {
        self.at(key, &pod.workload.uid)
    }

    /// What the snapshot has under `uid`, if it is the pod at `key`.
    fn at(&self, key: &Key, uid: &PodUid) -> Option<&Arc<Workload>> {
        self.snapshot.pod(uid).filter(|placed| placed.namespace == key.0 && placed.name == key.1)
    }

    /// Settles whether a pod belongs to the mesh, whether it insists on mutual TLS, and whether a
    /// NetworkPolicy selects it.
    fn settle(&mut self, key: &Key) {
        let Some(pod) = self.facts.pods.get(key) else { return };
        let known = &pod.workload;
        let namespace = self.facts.namespaces.get(&("".into(), key.0.clone()));
        let meshed = pod.belongs(namespace.and_then(|namespace| namespace.mode));
        let (mtls, policed) = if meshed {
            let mtls = self.policies.of(&key.0, &known.labels);
            (mtls, self.network_policies.of(&key.0, &known.labels))
        } else {
            (MutualTls::none(), None)
        };
        // Whom others let in is for their nodes' agents to say.
        let (authorization, authentication) = if meshed && self.snapshot.is_local(known) {
            let former = self.snapshot.pod(&known.uid).unwrap_or(known);
            let (services, labels) = (&self.facts.services, &known.labels);
            let authorizations = &mut self.authorization_policies;
            let authentications = &mut self.request_authentications;
            (
                authorizations.of(&key.0, labels, services, &former.authorization),
                authentications.of(&key.0, labels, services, &former.authentication),
            )
        } else {
            (Authorization::none(), Authentication::none())
        };
        let mut workload = known.clone();
        let before = (
            known.meshed,
            &known.policed,
            &known.mtls,
            &known.authorization,
            &known.authentication,
        );
        if before != (meshed, &policed, &mtls, &authorization, &authentication) {
            let known = (**known).clone();
            workload = Arc::new(Workload {
                meshed,
                policed,
                mtls,
                authorization,
                authentication,
                ..known
            });
        }
        if let Some(same) = self.snapshot.pod(&workload.uid).filter(|same| ***same == *workload) {
            workload = same.clone();
        }
        if !Arc::ptr_eq(&workload, known)
            && let Some(pod) = self.facts.pods.get_mut(key)
        {
            pod.workload = workload;
        }
    }
}

pub(super) fn key_of(pod: &Workload) -> Key {
    (pod.namespace.clone(), pod.name.clone())
}
