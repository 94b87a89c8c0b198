//! What has changed of Services.

use std::{collections::BTreeSet, sync::Arc};

use super::{Claim, Compiler, Key};
use crate::mesh::{Patch, Service, ServiceId, ServicePort};

impl Compiler {
    /// Looks at the Services `marked`, by the pods of the snapshot.
    pub(super) fn patch_of_services(&mut self, marked: &mut BTreeSet<Key>) -> Patch {
        let (facts, snapshot) = (&self.facts, &self.snapshot);
        let claims = |key: &Key| {
            let vips = facts.services.get(key).into_iter().flat_map(|service| &service.vips);
            vips.map(|vip| Claim::ClusterIp(*vip)).collect()
        };
        let holder = |claim: &Claim| match claim {
            Claim::ClusterIp(ip) => snapshot.service_of(*ip).map(key_of),
            Claim::PodUid(_) | Claim::PodAddress(_) => None,
        };
        self.services_in_dispute.settle(marked, claims, holder);

        let mut patch = Patch::default();
        for key in marked.iter() {
            let former = self.snapshot.service_named(&key.0, &key.1);
            match (self.service(key, former), former) {
                (Some(service), Some(former)) if service == **former => {}
                (Some(service), _) => patch.services.push(Arc::new(service)),
                (None, Some(former)) => patch.services_gone.push(former.id.clone()),
                (None, None) => {}
            }
        }
        patch
    }

    /// The Service as it is now; `None` where it is gone, or left out.
    fn service(&self, key: &Key, former: Option<&Arc<Service>>) -> Option<Service> {
        let facts = self.facts.services.get(key)?;
        if !self.services_in_dispute.wins(key, |claim, key| self.precedence(claim, key)) {
            return None;
        }
        let ports = facts.ports.iter().enumerate().map(|(index, port)| {
            let endpoints = self.endpoints(key, facts, port);
            let new = ServicePort::new(port.number, port.name.clone(), port.protocol, endpoints);
            let new = new.on_nodes(port.node_port);
            // Whose turn it is goes on where nothing has changed.
            match former.and_then(|former| former.ports.get(index)) {
                Some(former) if **former == new => former.clone(),
                _ => Arc::new(new),
            }
        });
        Some(Service {
            id: former.map_or_else(|| ServiceId::new(&key.0, &key.1), |former| former.id.clone()),
            vips: facts.vips.clone(),
            external: facts.external.clone(),
            affinity: facts.affinity,
            ports: ports.collect(),
        })
    }
}

pub(super) fn key_of(id: &ServiceId) -> Key {
    (id.namespace().into(), id.name().into())
}
