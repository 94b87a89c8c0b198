//! Which labels a flow has, without building them anew.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use papaya::Equivalent;

use super::parties::Labels;
use crate::{
    mesh::{Principal, Service, Snapshot, Workload},
    telemetry::flow::{Flow, Reporter, SecurityPolicy},
};

/// The labels of flows seen lately.
#[derive(Debug, Default)]
pub(super) struct Flows(papaya::HashMap<Key, Labels>);

/// What of a flow its labels depend on. Workloads and Services count by address, which is
/// theirs for as long as they are held here.
#[derive(Debug)]
struct Key {
    reporter: Reporter,
    security: SecurityPolicy,
    local: Arc<Workload>,
    remote: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    source_principal: Option<Principal>,
    destination_principal: Option<Principal>,
}

/// The same of a flow that is looked for.
struct Sought<'a>(&'a Flow);

/// What both hash: without the principals, which seldom differ between the same two pods.
type Hashed = (Reporter, SecurityPolicy, usize, usize, usize);

fn address<T>(held: Option<&Arc<T>>) -> usize {
    held.map_or(0, |held| Arc::as_ptr(held).addr())
}

impl Key {
    fn of(flow: &Flow) -> Self {
        Self {
            reporter: flow.reporter,
            security: flow.security,
            local: flow.local.clone(),
            remote: flow.remote.clone(),
            service: flow.service.clone(),
            source_principal: flow.source_principal.clone(),
            destination_principal: flow.destination_principal.clone(),
        }
    }

    fn hashed(&self) -> Hashed {
        let Self { reporter, security, local, remote, service, .. } = self;
        let (remote, service) = (address(remote.as_ref()), address(service.as_ref()));
        (*reporter, *security, address(Some(local)), remote, service)
    }
}

impl Sought<'_> {
    fn hashed(&self) -> Hashed {
        let Flow { reporter, security, local, remote, service, .. } = self.0;
        let (remote, service) = (address(remote.as_ref()), address(service.as_ref()));
        (*reporter, *security, address(Some(local)), remote, service)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hashed().hash(state);
    }
}

impl Hash for Sought<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hashed().hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hashed() == other.hashed()
            && self.source_principal == other.source_principal
            && self.destination_principal == other.destination_principal
    }
}

impl Eq for Key {}

impl Equivalent<Key> for Sought<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.hashed() == key.hashed()
            && self.0.source_principal == key.source_principal
            && self.0.destination_principal == key.destination_principal
    }
}

impl Flows {
    /// Runs `with` on the labels of `flow`, which `make` makes where they are not known. Of more
    /// than `most` flows the labels are made each time: slower, not larger.
    pub(super) fn with_labels(
        &self,
        flow: &Flow,
        most: usize,
        make: impl FnOnce() -> Labels,
        with: impl FnOnce(&Labels),
    ) {
        let flows = self.0.pin();
        if let Some(labels) = flows.get(&Sought(flow)) {
            return with(labels);
        }
        let labels = make();
        with(&labels);
        if flows.len() < most {
            flows.insert(Key::of(flow), labels);
        }
    }

    /// Forgets flows of objects that `snapshot` does not have: a source makes those that have
    /// changed anew.
    pub(super) fn retain(&self, snapshot: &Snapshot) {
        let has_pod = |pod: &Arc<Workload>| {
            snapshot.newest(pod).is_some_and(|newest| Arc::ptr_eq(newest, pod))
        };
        let has_service = |service: &Arc<Service>| {
            snapshot.service(&service.id).is_some_and(|newest| Arc::ptr_eq(newest, service))
        };
        self.0.pin().retain(|key, _| {
            let Key { local, remote, service, .. } = key;
            has_pod(local)
                && remote.as_ref().is_none_or(has_pod)
                && service.as_ref().is_none_or(has_service)
        });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
