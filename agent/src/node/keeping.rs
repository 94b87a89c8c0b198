//! Keeps an eye on what capture has pinned, which others may remove.

use std::{sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    admin::Readiness,
    capture::{Capture, CaptureError},
};

/// How soon it is looked at again. Nothing tells of a file of bpffs that goes.
const PAUSE: Duration = Duration::from_secs(2);

/// What an agent is not ready without.
const PINS: &str = "pins";

/// Makes good what is gone, for as long as the agent is in charge; where that fails, it is not
/// ready, and says why once. Ends when another agent has taken the place: this one must not go on
/// beside it.
pub(super) async fn keep(capture: Arc<Capture>, readiness: Readiness) {
    let mut said = None;
    loop {
        sleep(PAUSE).await;
        let looking = capture.clone();
        let Ok(kept) = spawn_blocking(move || looking.keep()).await else { return };
        let failed = match kept {
            Ok(()) => None,
            Err(error @ CaptureError::InUse { .. }) => {
                return tracing::error!(%error, "no longer in charge");
            }
            Err(error) => Some(error.to_string()),
        };
        match &failed {
            None => readiness.met(PINS),
            Some(error) => {
                readiness.lost(PINS);
                if failed != said {
                    tracing::error!(%error, "what keeps pods captured is gone and cannot be put back");
                }
            }
        }
        said = failed;
    }
}
