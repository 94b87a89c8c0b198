//! Where sources publish snapshots and the data path finds the newest.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use super::Snapshot;

/// The current [`Snapshot`]. Reading takes no lock and never waits for a writer.
#[derive(Debug)]
pub struct SnapshotStore {
    current: ArcSwap<Snapshot>,
    version: watch::Sender<u64>,
    mutual_tls: watch::Sender<()>,
}

impl Default for SnapshotStore {
    fn default() -> Self {
        Self {
            current: ArcSwap::default(),
            version: watch::Sender::new(0),
            mutual_tls: watch::Sender::new(()),
        }
    }
}

impl SnapshotStore {
    /// The newest snapshot; version 0 and empty before a source published one.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Makes `snapshot` the newest and wakes subscribers.
    pub fn publish(&self, snapshot: Snapshot) {
        let version = snapshot.version;
        let former = self.current.swap(Arc::new(snapshot));
        if self.current.load().differs_in_mutual_tls(&former) {
            self.mutual_tls.send_replace(());
        }
        self.version.send_replace(version);
    }

    /// Wakes with the version of each newly published snapshot; may skip intermediate ones.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Wakes when a pod accepts something else than before, as seldom as that happens: every open
    /// connection in plaintext listens.
    pub fn subscribe_mutual_tls(&self) -> watch::Receiver<()> {
        self.mutual_tls.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{MutualTls, MutualTlsMode, PortMutualTls, SnapshotBuilder, Workload};

    fn snapshot(version: u64, mode: MutualTlsMode, starts: u32) -> Snapshot {
        let usual = PortMutualTls { mode, policy: None };
        let workload = Workload {
            uid: crate::mesh::PodUid::new("uid").unwrap(),
            name: "order".into(),
            namespace: "shop".into(),
            owner: Arc::new(crate::mesh::Owner { kind: "Pod".into(), name: "order".into() }),
            node: "node-a".into(),
            ips: vec!["10.0.0.1".parse().unwrap()],
            labels: Arc::default(),
            principal: "spiffe://cluster.local/ns/shop/sa/order".parse().unwrap(),
            sidecar: false,
            meshed: true,
            captured: true,
            policed: None,
            mtls: Arc::new(MutualTls { usual, ..MutualTls::default() }),
            starts,
            netns: None,
            resource_attributes: Default::default(),
        };
        let workloads = vec![Arc::new(workload)];
        SnapshotBuilder { workloads, ..SnapshotBuilder::default() }.build(version)
    }

    #[test]
    fn who_waits_for_another_mode_is_not_woken_by_anything_else() {
        let store = SnapshotStore::default();
        store.publish(snapshot(1, MutualTlsMode::Permissive, 1));
        let mut modes = store.subscribe_mutual_tls();
        store.publish(snapshot(2, MutualTlsMode::Permissive, 2));
        assert!(!modes.has_changed().unwrap());
        store.publish(snapshot(3, MutualTlsMode::Strict, 2));
        assert!(modes.has_changed().unwrap());
        modes.mark_unchanged();
        store.publish(SnapshotBuilder::default().build(4));
        assert!(!modes.has_changed().unwrap());
    }
}
