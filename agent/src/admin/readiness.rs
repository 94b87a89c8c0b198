//! Whether the agent can take traffic, and what it is still waiting for.

use std::{collections::BTreeSet, sync::Arc};

use http::StatusCode;
use tokio::sync::watch::Sender;

use super::{Answer, text};

/// Ready once nothing is pending. Clones share one state.
#[derive(Clone, Debug)]
pub struct Readiness {
    pending: Arc<Sender<BTreeSet<&'static str>>>,
}

impl Readiness {
    /// Not ready until each of `conditions` has been [`met`](Self::met).
    pub fn waiting_for(conditions: impl IntoIterator<Item = &'static str>) -> Self {
        Self { pending: Arc::new(Sender::new(conditions.into_iter().collect())) }
    }

    /// `condition` holds.
    pub fn met(&self, condition: &'static str) {
        self.pending.send_if_modified(|pending| pending.remove(condition));
    }

    /// Not ready from here on, because of `reason`.
    pub fn lost(&self, reason: &'static str) {
        self.pending.send_if_modified(|pending| pending.insert(reason));
    }

    /// What the agent waits for; empty when it is ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.pending.borrow().iter().copied().collect()
    }

    /// Waits until it is ready.
    pub async fn reached(&self) {
        // The channel is gone with `self` alone.
        let _ = self.pending.subscribe().wait_for(BTreeSet::is_empty).await;
    }

    /// The answer to a readiness probe.
    pub fn answer(&self) -> Answer {
        match self.pending().as_slice() {
            [] => text(StatusCode::OK, "ready\n"),
            pending => text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("waiting for {}\n", pending.join(", ")),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_the_absence_of_anything_pending() {
        let readiness = Readiness::waiting_for(["capture", "identity"]);
        readiness.met("capture");
        assert_eq!(readiness.pending(), ["identity"]);
        readiness.met("identity");
        assert!(readiness.pending().is_empty());
        readiness.lost("shutting down");
        assert_eq!(readiness.pending(), ["shutting down"]);
    }
}
