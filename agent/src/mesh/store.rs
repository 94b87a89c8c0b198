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
    policies: watch::Sender<()>,
}

impl Default for SnapshotStore {
    fn default() -> Self {
        Self {
            current: ArcSwap::default(),
            version: watch::Sender::new(0),
            policies: watch::Sender::new(()),
        }
    }
}

impl SnapshotStore {
    /// The newest snapshot; version 0 and empty before a source published one.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The same, to be held for as long as it takes.
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Makes `snapshot` the newest and wakes subscribers.
    pub fn publish(&self, snapshot: Snapshot) {
        let (version, rules) = (snapshot.version, snapshot.rules);
        let former = self.current.swap(Arc::new(snapshot));
        if rules != former.rules {
            self.policies.send_replace(());
        }
        self.version.send_replace(version);
    }

    /// Wakes with the version of each newly published snapshot; may skip intermediate ones.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Wakes when other policies hold for a pod of this node than before, as seldom as that happens:
    /// every open connection listens.
    pub fn subscribe_policies(&self) -> watch::Receiver<()> {
        self.policies.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{MutualTls, MutualTlsMode, Patch, PortMutualTls, Workload, testing};

    fn pod(mode: MutualTlsMode, starts: u32) -> Arc<Workload> {
        let usual = PortMutualTls { mode, policy: None };
        let mtls = Arc::new(MutualTls { usual, ..MutualTls::default() });
        Arc::new(Workload { mtls, starts, ..testing::workload("order", "10.0.0.1") })
    }

    #[test]
    fn who_waits_for_another_mode_is_not_woken_by_anything_else() {
        let store = SnapshotStore::default();
        let publish = |patch: Patch| {
            let mut next = Snapshot::clone(&store.load());
            next.node = "node-a".into();
            next.version += 1;
            next.apply(patch);
            store.publish(next);
        };
        let put =
            |mode, starts| publish(Patch { pods: vec![pod(mode, starts)], ..Patch::default() });
        put(MutualTlsMode::Permissive, 1);
        let mut modes = store.subscribe_policies();
        put(MutualTlsMode::Permissive, 2);
        assert!(!modes.has_changed().unwrap());
        put(MutualTlsMode::Strict, 2);
        assert!(modes.has_changed().unwrap());
        modes.mark_unchanged();
        let pods_gone = vec![pod(MutualTlsMode::Strict, 2).uid.clone()];
        publish(Patch { pods_gone, ..Patch::default() });
        assert!(!modes.has_changed().unwrap());
    }
}
