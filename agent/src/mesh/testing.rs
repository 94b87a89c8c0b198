//! Snapshots and pods for unit tests.

use std::{collections::BTreeMap, sync::Arc};

use super::{Owner, Patch, PodUid, Snapshot, Workload};

/// The pod `name` of namespace `shop` on `node-a`, in the mesh.
pub(crate) fn workload(name: &str, ip: &str) -> Workload {
    Workload {
        uid: PodUid::new(&format!("uid-{name}")).unwrap(),
        name: name.into(),
        namespace: "shop".into(),
        owner: Arc::new(Owner { kind: "Pod".into(), name: name.into() }),
        node: "node-a".into(),
        ips: vec![ip.parse().unwrap()],
        labels: Arc::default(),
        principal: format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap(),
        sidecar: false,
        meshed: true,
        captured: true,
        policed: None,
        mtls: Arc::default(),
        authorization: Arc::default(),
        authentication: Arc::default(),
        starts: 1,
        netns: None,
        resource_attributes: BTreeMap::new(),
    }
}

/// The mesh of `pods`, as `node-a` sees it.
pub(crate) fn snapshot(version: u64, pods: Vec<Arc<Workload>>) -> Snapshot {
    let mut snapshot = Snapshot { version, ..Snapshot::new(Default::default(), "node-a".into()) };
    snapshot.apply(Patch { pods, ..Patch::default() });
    snapshot
}
