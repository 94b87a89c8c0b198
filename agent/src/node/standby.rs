//! An agent beside the one in charge, ready to take over.

use std::{collections::HashSet, convert::Infallible, future::pending, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{CAPTURE, CONFIGURATION, IDENTITY};
use crate::{admin::Readiness, proxy::Proxy};

/// How soon a certificate is asked for again that was not issued.
const RETRY: Duration = Duration::from_secs(1);

/// Gets ready what an agent in charge needs and nobody else uses: the configuration, and a
/// certificate for each pod. The eBPF programs are loaded already.
pub(super) struct Standby {
    pub(super) node: String,
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
        loop {
            changed.mark_unchanged();
            let certified = self.certify().await;
            if certified {
                self.readiness.met(IDENTITY);
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = sleep(RETRY), if !certified => {}
            }
        }
    }

    /// Gets the certificates that are missing. Whether that went well for all of them.
    async fn certify(&self) -> bool {
        let snapshot = self.proxy.snapshots.load();
        let ours = snapshot.workloads().iter().filter(|w| w.meshed && *w.node == *self.node);
        let principals: HashSet<_> = ours.map(|workload| workload.principal.clone()).collect();
        let mut certified = true;
        for principal in &principals {
            if let Err(error) = self.proxy.identity.server_config(principal).await {
                tracing::debug!(%principal, %error, "no certificate yet");
                certified = false;
            }
        }
        self.proxy.identity.retain(&principals);
        certified
    }
}
