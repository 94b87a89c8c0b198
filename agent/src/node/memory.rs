//! Memory that connections took, given back when they are gone.

use std::time::Duration;

use tokio::{task::spawn_blocking, time::sleep};

use crate::proxy::Drain;

/// How soon it is looked at again.
const PAUSE: Duration = Duration::from_secs(5);
/// So many connections take what is worth looking for: some MiB.
const MANY: usize = 100;

/// Gives memory back whenever half of many connections have closed. What they free is in pieces between
/// what others still hold, which the C library keeps for the next ones, for ever if none come.
pub(super) async fn give_back(drain: Drain) {
    let mut most = 0;
    loop {
        sleep(PAUSE).await;
        most = most.max(drain.most());
        let open = drain.open();
        if most >= MANY && open <= most / 2 {
            most = open;
            if spawn_blocking(agent_common::give_back).await.is_err() {
                return;
            }
        }
    }
}
