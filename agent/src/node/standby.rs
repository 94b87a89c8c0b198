//! An agent beside the one in charge, ready to take over.

use std::{convert::Infallible, future::pending, sync::Arc};

use super::{CAPTURE, CONFIGURATION, IDENTITY};
use crate::{admin::Readiness, proxy::Proxy};

/// Gets ready what an agent in charge needs and nobody else uses: the configuration, and a
/// certificate for each pod. The eBPF programs are loaded already.
pub(super) struct Standby {
    pub(super) proxy: Arc<Proxy>,
    pub(super) readiness: Readiness,
}

impl Standby {
    /// Keeps everything ready as the configuration changes, until dropped.
    pub(super) async fn keep_ready(self) -> Infallible {
        self.readiness.met(CAPTURE);
        let mut changed = self.proxy.snapshots.subscribe();
        if changed.wait_for(|version| *version > 0).await.is_err() {
            return pending().await;
        }
        self.readiness.met(CONFIGURATION);
        let mut answered = self.proxy.identity.subscribe();
        loop {
            changed.mark_unchanged();
            let principals = self.proxy.snapshots.load().local_principals();
            self.proxy.identity.retain(&principals);
            self.proxy.identity.ask_for(&principals);
            loop {
                answered.mark_unchanged();
                if self.proxy.identity.has_all(&principals) {
                    self.readiness.met(IDENTITY);
                }
                tokio::select! {
                    changed = changed.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return pending().await,
                    },
                    _ = answered.changed() => {}
                }
            }
        }
    }
}
