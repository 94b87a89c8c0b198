//! Memory that is no longer used, given back.

use std::{sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::sleep};

use crate::{mesh::SnapshotStore, proxy::Drain};

/// How soon it is looked at again.
const PAUSE: Duration = Duration::from_secs(5);
/// So many connections take what is worth looking for: some MiB.
const MANY: usize = 100;
/// So many pods do.
const MANY_PODS: usize = 1000;

/// Gives memory back whenever half of many connections have closed, or there are many pods more or
/// fewer in the mesh, each of which was read from a text many times as large as what is kept. What is
/// freed is in pieces between what is still held, which the C library keeps for the next ones, for
/// ever if none come.
pub(super) async fn give_back(drain: Drain, snapshots: Arc<SnapshotStore>) {
    let (mut most, mut pods) = (0, 0);
    loop {
        sleep(PAUSE).await;
        most = most.max(drain.most());
        let (open, now) = (drain.open(), snapshots.load().workloads().len());
        if (most >= MANY && open <= most / 2) || now.abs_diff(pods) > MANY_PODS.max(pods / 2) {
            (most, pods) = (open, now);
            if spawn_blocking(agent_common::give_back).await.is_err() {
                return;
            }
        }
    }
}
