//! Keeps the set of captured pods what the newest snapshot says it should be.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{CAPTURE, CONFIGURATION, IDENTITY, events::Events, expected::Expected};
use crate::{
    admin::{self, Readiness},
    capture::{Capture, CaptureError, EnrolledPod, Netns, Sandboxes},
    config::{Origin, SourceState},
    identity::IdentityError,
    mesh::{DATAPLANE_MODE, PodUid, Workload},
    proxy::{self, LocalPod, Proxy, Serving},
    tunnel::{HbonePool, PoolOptions},
};

/// How long after a failed enrolment it is tried again: doubled each time, up to the second. News
/// of the pod itself come first; this is for what nobody tells, such as a namespace that gets its
/// address a moment later.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// A pod that is not captured for so long is no event: while it starts, much is not there yet.
const TRIFLE: Duration = Duration::from_secs(2);

/// How often the captured pods' namespaces are looked at: one that is made anew under the same
/// path is no event anywhere.
const LOOK: Duration = Duration::from_secs(1);

/// Enrols and unenrols the pods of one node.
pub(super) struct Enrolment {
    node: String,
    capture: Arc<Capture>,
    proxy: Arc<Proxy>,
    events: Events,
    pods: Mutex<BTreeMap<PodUid, State>>,
    /// What the container runtime told.
    expected: Mutex<Expected>,
    /// Told of whenever a pod was seen to.
    progress: watch::Sender<()>,
}

/// How far reconciling came.
struct Reconciled {
    /// When to try again what failed; `None` when every pod is as it should be.
    again: Option<Instant>,
    /// Every pod has a certificate.
    certified: bool,
}

/// One pod that belongs to the mesh.
enum State {
    Captured(Captured),
    Failed(Failed),
}

struct Captured {
    pod: Arc<LocalPod>,
    /// Where its source says that its namespace is, if it does.
    told: Option<PathBuf>,
    /// The namespace it is captured in.
    netns: u64,
    _serving: Serving,
}

struct Failed {
    workload: Arc<Workload>,
    error: String,
    /// Nobody issued a certificate.
    uncertified: bool,
    delay: Duration,
    again: Instant,
    since: Instant,
    /// What its owner was told.
    told: Option<String>,
}

/// What is to be done about a pod.
enum Task {
    Nothing,
    /// Look whether it is still in the namespace it is captured in: its containers have started
    /// again.
    Check,
    Enrol,
}

impl Enrolment {
    pub(super) fn new(
        node: String,
        capture: Arc<Capture>,
        proxy: Arc<Proxy>,
        events: Events,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            capture,
            proxy,
            events,
            pods: Mutex::default(),
            expected: Mutex::default(),
            progress: watch::Sender::default(),
        })
    }

    /// Reconciles with every new snapshot, and again after a while where something failed.
    pub(super) async fn follow(
        self: Arc<Self>,
        mut source: watch::Receiver<SourceState>,
        readiness: Readiness,
    ) {
        let mut changed = self.proxy.snapshots.subscribe();
        // Before the first snapshot nothing is known of any pod, least of all that it is gone.
        if changed.wait_for(|version| *version > 0).await.is_err() {
            return;
        }
        readiness.met(CONFIGURATION);
        let mut forgotten = false;
        loop {
            changed.mark_unchanged();
            // A saved snapshot does not know of pods that came after it.
            if !forgotten && knows_all(&source.borrow()) {
                self.forget_former_pods();
                forgotten = true;
            }
            let Reconciled { again, certified } = self.reconcile().await;
            self.capture.took_over();
            // A pod that cannot be captured is that pod's trouble and does not hold up the
            // node; a CA that issues nothing is everybody's.
            readiness.met(CAPTURE);
            if certified {
                readiness.met(IDENTITY);
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = source.wait_for(knows_all), if !forgotten => {}
                () = self.some_pod_moved() => {}
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
        }
    }

    /// Waits until the namespace at the path a captured pod was told to be at is another one.
    async fn some_pod_moved(&self) {
        loop {
            sleep(LOOK).await;
            let moved = |(uid, state): (&PodUid, &State)| match state {
                State::Captured(captured) => captured.has_moved(uid, &self.capture),
                State::Failed(_) => false,
            };
            if self.pods().iter().any(moved) {
                return;
            }
        }
    }

    /// The container runtime made the pod `uid` a namespace, at `netns` of the node.
    pub(super) fn expect(&self, uid: PodUid, netns: &Path) {
        self.expected().insert(uid, netns);
    }

    /// The pod `uid` ends.
    pub(super) fn no_longer_expect(&self, uid: &PodUid) {
        self.expected().remove(uid);
    }

    /// Waits until the pod `uid` is captured, or known not to belong to the mesh.
    pub(super) async fn settled(&self, uid: &PodUid) {
        // It is gone with `self` alone.
        let _ = self.progress.subscribe().wait_for(|()| self.is_settled(uid)).await;
    }

    fn is_settled(&self, uid: &PodUid) -> bool {
        match self.pods().get(uid) {
            Some(State::Captured(_)) => true,
            Some(State::Failed(_)) => false,
            None => {
                let snapshot = self.proxy.snapshots.load();
                snapshot.workloads().iter().any(|pod| pod.uid == *uid && !pod.meshed)
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
            name: name_of(workload),
            uid: workload.uid.to_string(),
            ips: workload.ips.clone(),
            principal: workload.principal.to_string(),
            mutual_tls: workload.mtls.to_string(),
            error: error.map(str::to_owned),
        };
        self.pods()
            .values()
            .map(|state| match state {
                State::Captured(captured) => describe(&captured.pod.workload(), None),
                State::Failed(failed) => describe(&failed.workload, Some(&failed.error)),
            })
            .collect()
    }

    /// The pods of this node that do not belong to the mesh, and why.
    pub(super) fn outside(&self) -> Vec<admin::Outsider> {
        let snapshot = self.proxy.snapshots.load();
        let ours = snapshot.workloads().iter().filter(|w| !w.meshed && *w.node == *self.node);
        ours.map(|workload| admin::Outsider { name: name_of(workload), reason: reason(workload) })
            .collect()
    }

    /// What this node's pods should be, by the newest snapshot.
    fn desired(&self) -> BTreeMap<PodUid, Arc<Workload>> {
        let snapshot = self.proxy.snapshots.load();
        let ours = snapshot.workloads().iter().filter(|w| w.meshed && *w.node == *self.node);
        ours.map(|workload| (workload.uid.clone(), workload.clone())).collect()
    }

    /// Frees pods that a former agent of this node captured and that are gone since.
    fn forget_former_pods(&self) {
        let known: HashSet<_> = self.desired().into_keys().collect();
        if let Err(error) = self.capture.forget_unknown(&known) {
            tracing::warn!(%error, "could not free pods of a former agent");
        }
    }

    /// Forgets what was told of pods whose objects are gone.
    fn forget_expected(&self) {
        let snapshot = self.proxy.snapshots.load();
        let ours = snapshot.workloads().iter().filter(|pod| *pod.node == *self.node);
        let known: HashSet<_> = ours.map(|pod| &pod.uid).collect();
        self.expected().forget_gone(|uid| known.contains(uid));
    }

    /// Makes this node's pods what they should be, as far as that works.
    async fn reconcile(&self) -> Reconciled {
        let desired = self.desired();
        self.proxy.telemetry.metrics().retain(&self.proxy.snapshots.load());
        self.release(&desired);
        self.forget_expected();
        let tasks = desired.values().map(|workload| (workload, self.task(workload)));
        let tasks: Vec<_> = tasks.filter(|(_, task)| !matches!(task, Task::Nothing)).collect();
        let tasks: Vec<_> =
            tasks.into_iter().map(|(pod, task)| (pod, task, self.told(pod))).collect();
        let unknown = tasks.iter().filter(|(.., told)| told.is_none()).map(|(pod, ..)| &pod.uid);
        let mut sandboxes = Sandboxes::scan(&unknown.collect()).unwrap_or_else(|error| {
            tracing::warn!(%error, "could not look for pods");
            Sandboxes::default()
        });
        for (workload, task, told) in tasks {
            let netns = told.unwrap_or_else(|| sandboxes.netns_of(&workload.uid, &workload.ips));
            if matches!(task, Task::Check) && self.is_still_in(workload, netns.as_ref().ok()) {
                continue;
            }
            let state = match self.enroll(workload, netns).await {
                Ok(captured) => {
                    if let Some(State::Failed(Failed { told: Some(_), .. })) =
                        self.pods().get(&workload.uid)
                    {
                        self.events.captured_at_last(workload);
                    }
                    State::Captured(captured)
                }
                Err(error) => State::Failed(self.failed(workload, &error)),
            };
            self.pods().insert(workload.uid.clone(), state);
            self.publish();
        }
        self.publish();
        let principals = desired.values().map(|workload| workload.principal.clone()).collect();
        self.proxy.identity.retain(&principals);
        let pods = self.pods();
        let failed = || {
            pods.values().filter_map(|state| match state {
                State::Failed(failed) => Some(failed),
                State::Captured(_) => None,
            })
        };
        Reconciled {
            again: failed().map(|failed| failed.again).min(),
            certified: !failed().any(|failed| failed.uncertified),
        }
    }

    /// The namespace that the pod's source or the container runtime named; whether it is the pod's
    /// is looked at when it is enrolled. `None` when the pod's processes have to be looked for.
    fn told(&self, pod: &Workload) -> Option<Result<Netns, CaptureError>> {
        if let Some(path) = &pod.netns {
            return Some(Netns::of_pod(path));
        }
        let path = self.expected().netns(&pod.uid)?.to_owned();
        match Netns::on_node(&path) {
            Ok(netns) => Some(Ok(netns)),
            Err(error) => {
                tracing::debug!(pod = name_of(pod), %error, "not where the runtime says");
                None
            }
        }
    }

    /// What is to be done about a pod. A newer view of a captured one is passed on. One with
    /// other addresses is enrolled anew, over the old enrolment, so that there is no moment
    /// without one.
    fn task(&self, workload: &Arc<Workload>) -> Task {
        match self.pods().get(&workload.uid) {
            Some(State::Captured(Captured { pod, told, .. })) => {
                let known = pod.workload();
                if known.ips != workload.ips {
                    return Task::Enrol;
                }
                pod.update(workload.clone());
                let started_again = told.is_none() && known.starts != workload.starts;
                if started_again { Task::Check } else { Task::Nothing }
            }
            Some(State::Failed(failed)) => {
                let is_news = *failed.workload != **workload;
                if is_news || failed.again <= Instant::now() { Task::Enrol } else { Task::Nothing }
            }
            None => Task::Enrol,
        }
    }

    /// Whether the captured pod is in the namespace it was captured in, or is between two.
    fn is_still_in(&self, workload: &Workload, found: Option<&Netns>) -> bool {
        match (self.pods().get(&workload.uid), found) {
            (Some(State::Captured(captured)), Some(netns)) => captured.netns == netns.inode(),
            (Some(State::Captured(_)), None) => true,
            _ => false,
        }
    }

    /// Notes that a pod could not be captured; says so when that is news.
    fn failed(&self, workload: &Arc<Workload>, error: &anyhow::Error) -> Failed {
        let uncertified = error.is::<IdentityError>();
        let error = format!("{error:#}");
        let now = Instant::now();
        let (mut delay, mut is_news, mut since, mut told) = (RETRY.0, true, now, None);
        if let Some(State::Failed(former)) = self.pods().get(&workload.uid) {
            is_news = former.error != error;
            (since, told) = (former.since, former.told.clone());
            if *former.workload == **workload {
                delay = (former.delay * 2).min(RETRY.1);
            }
        }
        if is_news {
            tracing::warn!(pod = name_of(workload), error, "could not capture a pod");
        }
        if since.elapsed() > TRIFLE && told.as_ref() != Some(&error) {
            self.events.not_captured(workload, &error);
            told = Some(error.clone());
        }
        let again = now + delay;
        Failed { workload: workload.clone(), error, uncertified, delay, again, since, told }
    }

    async fn enroll(
        &self,
        workload: &Arc<Workload>,
        netns: Result<Netns, CaptureError>,
    ) -> anyhow::Result<Captured> {
        let netns = netns?;
        // The certificate first: a captured pod without an identity could talk to nobody.
        self.proxy.identity.server_config(&workload.principal).await?;
        let inode = netns.inode();
        let EnrolledPod { outbound, inbound, dialer } =
            self.capture.enroll(&workload.uid, netns, &workload.ips)?;
        let tunnels = HbonePool::new(PoolOptions::default());
        let pod =
            Arc::new(LocalPod::new(workload.clone(), dialer, tunnels, self.proxy.limits.pod()));
        tracing::info!(pod = name_of(workload), principal = %workload.principal, "pod captured");
        let _serving = proxy::serve(self.proxy.clone(), pod.clone(), outbound, inbound);
        Ok(Captured { pod, told: workload.netns.clone(), netns: inode, _serving })
    }

    /// Lets go of every pod that is not `desired`, or is said to be in another namespace now.
    fn release(&self, desired: &BTreeMap<PodUid, Arc<Workload>>) {
        self.pods().retain(|uid, state| {
            let stays = desired.get(uid).is_some_and(|desired| match state {
                State::Captured(captured) => {
                    desired.netns == captured.told && !captured.has_moved(uid, &self.capture)
                }
                // Perhaps closed, by an enrolment that failed half way: not to be opened.
                State::Failed(_) => true,
            });
            if stays {
                return true;
            }
            let name = match state {
                State::Captured(captured) => {
                    captured.pod.release();
                    name_of(&captured.pod.workload())
                }
                State::Failed(failed) => name_of(&failed.workload),
            };
            match self.capture.unenroll(uid) {
                Ok(()) => tracing::info!(pod = name, "pod released"),
                Err(error) => tracing::warn!(pod = name, %error, "pod not released cleanly"),
            }
            false
        });
    }

    /// Shows the data path which pods are captured here, and tells whoever waits for one.
    fn publish(&self) {
        self.proxy.pods.replace(self.pods().values().filter_map(|state| match state {
            State::Captured(captured) => Some(captured.pod.clone()),
            State::Failed(_) => None,
        }));
        self.progress.send_replace(());
    }

    /// Whether a pod is captured and has its certificate; `None` when that was not tried yet.
    pub(super) fn is_captured(&self, uid: &PodUid) -> Option<bool> {
        self.pods().get(uid).map(|state| matches!(state, State::Captured(_)))
    }

    /// Told of whenever a pod was seen to.
    pub(super) fn progress(&self) -> watch::Receiver<()> {
        self.progress.subscribe()
    }

    fn expected(&self) -> MutexGuard<'_, Expected> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<PodUid, State>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Captured {
    fn has_moved(&self, uid: &PodUid, capture: &Capture) -> bool {
        self.told.as_ref().is_some_and(|told| capture.has_moved(uid, told))
    }
}

/// Whether a pod that the snapshot does not name does not exist.
fn knows_all(source: &SourceState) -> bool {
    matches!(source.origin, Origin::Files | Origin::Cluster)
}

fn name_of(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

/// Why a pod does not belong to the mesh.
fn reason(workload: &Workload) -> String {
    let label = workload.labels.get(DATAPLANE_MODE);
    match label {
        _ if workload.ips.is_empty() => "it uses the node's network".to_owned(),
        _ if workload.sidecar => "it has a sidecar, a proxy of its own (annotation \
            sidecar.istio.io/status; hint: restart it without injection)"
            .to_owned(),
        Some(mode) => format!("its label {DATAPLANE_MODE} is {mode}"),
        None => format!("neither it nor its namespace has the label {DATAPLANE_MODE}=ambient"),
    }
}
