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
}

impl Default for SnapshotStore {
    fn default() -> Self {
        Self { current: ArcSwap::default(), version: watch::Sender::new(0) }
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
        self.current.store(Arc::new(snapshot));
        self.version.send_replace(version);
    }

    /// Wakes with the version of each newly published snapshot; may skip intermediate ones.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
