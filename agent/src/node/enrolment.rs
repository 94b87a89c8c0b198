//! Keeps the set of captured pods what the newest snapshot says it should be.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::sleep;

use super::{CAPTURE, IDENTITY};
use crate::{
    admin::{self, Readiness},
    capture::{Capture, EnrolledPod},
    identity::IdentityError,
    mesh::{PodUid, Workload},
    proxy::{self, LocalPod, Proxy, Serving},
    tunnel::{HbonePool, PoolOptions},
};

/// How long after a failed enrolment it is tried again: doubled each time, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How often the captured pods' namespaces are looked at: one that is made anew under the same
/// path is no event anywhere.
const LOOK: Duration = Duration::from_secs(1);

/// Enrols and unenrols the pods of one node.
pub(super) struct Enrolment {
    node: String,
    capture: Arc<Capture>,
    proxy: Arc<Proxy>,
    pods: Mutex<BTreeMap<PodUid, State>>,
}

/// How far reconciling came.
struct Reconciled {
    /// Every pod is as it should be.
    complete: bool,
    /// Every pod has a certificate.
    certified: bool,
}

/// One pod that belongs to the mesh.
enum State {
    Captured { pod: Arc<LocalPod>, netns: PathBuf, _serving: Serving },
    Failed { workload: Arc<Workload>, error: String },
}

impl State {
    fn has_moved(&self, uid: &PodUid, capture: &Capture) -> bool {
        match self {
            State::Captured { netns, .. } => capture.has_moved(uid, netns),
            State::Failed { .. } => false,
        }
    }
}

impl Enrolment {
    pub(super) fn new(node: String, capture: Arc<Capture>, proxy: Arc<Proxy>) -> Arc<Self> {
        Arc::new(Self { node, capture, proxy, pods: Mutex::default() })
    }

    /// Reconciles with every new snapshot, and again after a while where something failed.
    pub(super) async fn follow(self: Arc<Self>, readiness: Readiness) {
        let mut changed = self.proxy.snapshots.subscribe();
        let mut retry = RETRY.0;
        self.forget_former_pods();
        loop {
            changed.mark_unchanged();
            let Reconciled { complete, certified } = self.reconcile().await;
            // A pod that cannot be captured is that pod's trouble and does not hold up the
            // node; a CA that issues nothing is everybody's.
            readiness.met(CAPTURE);
            if certified {
                readiness.met(IDENTITY);
            }
            if complete {
                retry = RETRY.0;
                tokio::select! {
                    _ = changed.changed() => {}
                    () = self.some_pod_moved() => {}
                }
            } else {
                tokio::select! {
                    _ = changed.changed() => retry = RETRY.0,
                    () = sleep(retry) => retry = (retry * 2).min(RETRY.1),
                }
            }
        }
    }

    /// Waits until a captured pod's namespace is another one than that it was captured in.
    async fn some_pod_moved(&self) {
        loop {
            sleep(LOOK).await;
            let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
            if pods.iter().any(|(uid, state)| state.has_moved(uid, &self.capture)) {
                return;
            }
        }
    }

    /// The kernel-side counters of capture.
    pub(super) fn capture(&self) -> &Capture {
        &self.capture
    }

    /// The pods of this node that belong to the mesh, captured or not.
    pub(super) fn status(&self) -> Vec<admin::Pod> {
        let describe = |workload: &Workload, error: Option<&str>| admin::Pod {
            name: format!("{}/{}", workload.namespace, workload.name),
            uid: workload.uid.to_string(),
            ips: workload.ips.clone(),
            principal: workload.principal.to_string(),
            error: error.map(str::to_owned),
        };
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.values()
            .map(|state| match state {
                State::Captured { pod, .. } => describe(&pod.workload(), None),
                State::Failed { workload, error } => describe(workload, Some(error)),
            })
            .collect()
    }

    /// What this node's pods should be, by the newest snapshot.
    fn desired(&self) -> BTreeMap<PodUid, Arc<Workload>> {
        let snapshot = self.proxy.snapshots.load();
        let ours = snapshot.workloads().iter().filter(|w| w.meshed && w.node == self.node);
        ours.map(|workload| (workload.uid.clone(), workload.clone())).collect()
    }

    /// Frees pods that a former agent of this node captured and that are gone since.
    fn forget_former_pods(&self) {
        let known: HashSet<_> = self.desired().into_keys().collect();
        if let Err(error) = self.capture.forget_unknown(&known) {
            tracing::warn!(%error, "could not free pods of a former agent");
        }
    }

    /// Makes this node's pods what they should be, as far as that works.
    async fn reconcile(&self) -> Reconciled {
        let desired = self.desired();
        self.proxy.telemetry.metrics().retain(&self.proxy.snapshots.load());
        self.release(&desired);
        let mut reconciled = Reconciled { complete: true, certified: true };
        for (uid, workload) in &desired {
            if self.refresh(uid, workload) {
                continue;
            }
            let state = self.enroll(workload).await.unwrap_or_else(|error| {
                reconciled.complete = false;
                reconciled.certified &= !error.is::<IdentityError>();
                let error = format!("{error:#}");
                tracing::warn!(pod = %format!("{}/{}", workload.namespace, workload.name), error,
                    "could not capture a pod");
                State::Failed { workload: workload.clone(), error }
            });
            self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone(), state);
            self.publish();
        }
        self.publish();
        let principals = desired.values().map(|workload| workload.principal.clone()).collect();
        self.proxy.identity.retain(&principals);
        reconciled
    }

    /// Passes a newer view of an already captured pod on. `false` when it is not captured, or
    /// under other addresses: it is enrolled anew then, over the old enrolment, so that there
    /// is no moment without one.
    fn refresh(&self, uid: &PodUid, workload: &Arc<Workload>) -> bool {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        match pods.get(uid) {
            Some(State::Captured { pod, .. }) if pod.workload().ips == workload.ips => {
                pod.update(workload.clone());
                true
            }
            _ => false,
        }
    }

    async fn enroll(&self, workload: &Arc<Workload>) -> anyhow::Result<State> {
        let netns = workload.netns.clone().ok_or_else(|| {
            anyhow::anyhow!(
                "the pod's network namespace is not known (hint: annotation sluice.dev/netns)"
            )
        })?;
        // The certificate first: a captured pod without an identity could talk to nobody.
        self.proxy.identity.server_config(&workload.principal).await?;
        let EnrolledPod { outbound, inbound, dialer } =
            self.capture.enroll(&workload.uid, &netns, &workload.ips)?;
        let tunnels = HbonePool::new(PoolOptions::default());
        let pod = Arc::new(LocalPod::new(workload.clone(), dialer, tunnels));
        tracing::info!(pod = %format!("{}/{}", workload.namespace, workload.name),
            principal = %workload.principal, "pod captured");
        let _serving = proxy::serve(self.proxy.clone(), pod.clone(), outbound, inbound);
        Ok(State::Captured { pod, netns, _serving })
    }

    /// Lets go of every pod that is not `desired`, or is in another namespace now.
    fn release(&self, desired: &BTreeMap<PodUid, Arc<Workload>>) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|uid, state| {
            let workload = match state {
                State::Captured { pod, .. } => pod.workload(),
                State::Failed { workload, .. } => workload.clone(),
            };
            let stays = desired.get(uid).is_some_and(|desired| match state {
                State::Captured { netns, .. } => {
                    desired.netns.as_ref() == Some(netns) && !state.has_moved(uid, &self.capture)
                }
                // Perhaps closed, by an enrolment that failed half way: not to be opened.
                State::Failed { .. } => true,
            });
            if stays {
                return true;
            }
            let name = format!("{}/{}", workload.namespace, workload.name);
            if let State::Captured { pod, .. } = state {
                pod.release();
            }
            match self.capture.unenroll(uid) {
                Ok(()) => tracing::info!(pod = name, "pod released"),
                Err(error) => tracing::warn!(pod = name, %error, "pod not released cleanly"),
            }
            false
        });
    }

    /// Shows the data path which pods are captured here.
    fn publish(&self) {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        self.proxy.pods.replace(pods.values().filter_map(|state| match state {
            State::Captured { pod, .. } => Some(pod.clone()),
            State::Failed { .. } => None,
        }));
    }
}
