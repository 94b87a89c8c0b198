//! Keeps the set of captured pods what the newest snapshot says it should be.
//!
//! A pod is captured first, which closes it, and has its certificate after: until then its
//! connections are refused. Nothing of one pod waits for another's: each is enrolled by a task of
//! its own, and all certificates are asked for at once.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    CAPTURE, CONFIGURATION, IDENTITY,
    events::Events,
    expected::Expected,
    pod_state::{Captured, Failed, State, name_of, outside_because},
    underway::Underway,
};
use crate::{
    admin::{self, Readiness},
    capture::{Capture, CaptureError, EnrolledPod, Netns, Sandboxes},
    mesh::{PodUid, Snapshot, Workload},
    proxy::{self, LocalPod, Proxy},
    tunnel::{HbonePool, PoolOptions},
    workers::Home,
};

/// How often the captured pods' namespaces are looked at: one that is made anew under the same
/// path is no event anywhere. Nor is a certificate that is over.
const LOOK: Duration = Duration::from_secs(1);

/// Enrols and unenrols the pods of one node.
pub(super) struct Enrolment {
    capture: Arc<Capture>,
    proxy: Arc<Proxy>,
    events: Events,
    pods: Mutex<BTreeMap<PodUid, State>>,
    /// What the container runtime told.
    expected: Mutex<Expected>,
    /// Told of whenever a pod was seen to.
    progress: watch::Sender<()>,
}

/// A pod that was just captured.
struct Enrolled {
    /// The inode of its network namespace.
    netns: u64,
    home: Home,
    pod: EnrolledPod,
}

/// What this node's pods should be.
type Desired = BTreeMap<PodUid, Arc<Workload>>;

/// What is to be done about a pod.
enum Task {
    Nothing,
    /// Look whether it is still in the namespace it is captured in: its containers have started
    /// again.
    Check,
    Enrol,
}

impl Enrolment {
    pub(super) fn new(capture: Arc<Capture>, proxy: Arc<Proxy>, events: Events) -> Arc<Self> {
        Arc::new(Self {
            capture,
            proxy,
            events,
            pods: Mutex::default(),
            expected: Mutex::default(),
            progress: watch::Sender::default(),
        })
    }

    /// Reconciles with every new snapshot, and again after a while where something failed.
    pub(super) async fn follow(self: Arc<Self>, readiness: Readiness) {
        let mut changed = self.proxy.snapshots.subscribe();
        // Before the first snapshot nothing is known of any pod, least of all that it is gone.
        if changed.wait_for(|version| *version > 0).await.is_err() {
            return;
        }
        readiness.met(CONFIGURATION);
        let mut answered = self.proxy.identity.subscribe();
        let mut underway = Underway::default();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut forgotten, mut counted) = (false, 0);
        loop {
            changed.mark_unchanged();
            let snapshot = Arc::clone(&self.proxy.snapshots.load());
            // A saved snapshot does not know of pods that came after it.
            if !forgotten && snapshot.complete {
                self.forget_former_pods(&snapshot).await;
                forgotten = true;
            }
            let desired = self.desired(&snapshot);
            let principals = snapshot.local_principals();
            self.proxy.identity.retain(&principals);
            self.proxy.identity.ask_for(&principals);
            let again = self.reconcile(&snapshot, &desired, &mut underway).await;
            if underway.is_empty() {
                self.capture.took_over();
                // A pod that cannot be captured is that pod's trouble and does not hold up the
                // node; a CA that issues nothing is everybody's.
                readiness.met(CAPTURE);
            }
            loop {
                answered.mark_unchanged();
                self.certify();
                if self.proxy.identity.has_all(&principals) {
                    readiness.met(IDENTITY);
                }
                tokio::select! {
                    changed = changed.changed() => match changed {
                        Ok(()) => break,
                        // The store is gone, and nothing will change any more.
                        Err(_) => return,
                    },
                    () = underway.some_ended() => break,
                    () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                        break;
                    }
                    _ = answered.changed() => {}
                    _ = look.tick() => {
                        // Not with every snapshot: it looks at all series.
                        let newest = self.proxy.snapshots.load();
                        if newest.version != counted {
                            counted = newest.version;
                            self.proxy.telemetry.metrics().retain(&newest);
                        }
                        if self.some_pod_moved() {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Whether the namespace at the path a captured pod was told to be at is another one by now.
    fn some_pod_moved(&self) -> bool {
        let moved = |state: &State| match state {
            State::Captured(captured) => captured.has_moved(),
            State::Failed(_) => false,
        };
        self.pods().values().any(moved)
    }

    /// The container runtime made the pod `uid` a namespace, at `netns` of the node.
    pub(super) fn expect(&self, uid: PodUid, netns: &Path) {
        self.expected().insert(uid, netns);
    }

    /// Whether the container runtime told of the pod `uid`, and not of its end.
    pub(super) fn expects(&self, uid: &PodUid) -> bool {
        self.expected().netns(uid).is_some()
    }

    /// The pod `uid` ends.
    pub(super) fn no_longer_expect(&self, uid: &PodUid) {
        self.expected().remove(uid);
    }

    /// Waits until the pod `uid` is captured, or known not to belong to the mesh.
    pub(super) async fn captured(&self, uid: &PodUid) {
        // It is gone with `self` alone.
        let _ = self.progress.subscribe().wait_for(|()| self.is_settled(uid)).await;
    }

    fn is_settled(&self, uid: &PodUid) -> bool {
        match self.pods().get(uid) {
            Some(State::Captured(_)) => true,
            Some(State::Failed(_)) => false,
            None => {
                let snapshot = self.proxy.snapshots.load();
                snapshot.pod(uid).is_some_and(|pod| !pod.meshed)
            }
        }
    }

    /// The kernel-side counters of capture.
    pub(super) fn capture(&self) -> &Capture {
        &self.capture
    }

    /// The pods of this node that belong to the mesh, captured or not.
    pub(super) fn status(&self) -> Vec<admin::Pod> {
        let snapshot = self.proxy.snapshots.load();
        let describe = |workload: &Workload, error: Option<&str>| admin::Pod {
            name: name_of(workload),
            uid: workload.uid.to_string(),
            ips: workload.ips.clone(),
            principal: workload.principal.to_string(),
            mutual_tls: workload.mtls.to_string(),
            authorization: workload.authorization.in_words(snapshot.providers()),
            authentication: workload.authentication.in_words(),
            error: error.map(str::to_owned),
            uncertified: self.missing(workload),
            same_node: self.proxy.same_node.tunnels(workload),
            cut: workload.cut_by_policy(),
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
        let outside = snapshot.local().filter(|pod| !pod.meshed);
        outside
            .map(|workload| admin::Outsider {
                name: name_of(workload),
                reason: outside_because(workload),
            })
            .collect()
    }

    /// What this node's pods should be, by `snapshot`.
    fn desired(&self, snapshot: &Snapshot) -> Desired {
        let ours = snapshot.local().filter(|pod| pod.meshed);
        ours.map(|workload| (workload.uid.clone(), workload.clone())).collect()
    }

    /// Frees pods that a former agent of this node captured and that are gone since.
    async fn forget_former_pods(&self, snapshot: &Snapshot) {
        let known: HashSet<_> = self.desired(snapshot).into_keys().collect();
        let capture = self.capture.clone();
        blocking(move || {
            if let Err(error) = capture.forget_unknown(&known) {
                tracing::warn!(%error, "could not free pods of a former agent");
            }
        })
        .await;
    }

    /// Forgets what was told of pods whose objects are gone.
    fn forget_expected(&self, snapshot: &Snapshot) {
        let known: HashSet<_> = snapshot.local().map(|pod| &pod.uid).collect();
        self.expected().forget_gone(|uid| known.contains(uid));
    }

    /// Begins to make this node's pods what they should be; when to try again what has failed.
    async fn reconcile(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        desired: &Desired,
        underway: &mut Underway,
    ) -> Option<Instant> {
        self.release(desired, underway).await;
        self.forget_expected(snapshot);
        let mut to_be_found = Vec::new();
        for workload in desired.values() {
            if underway.has(&workload.uid) {
                continue;
            }
            let task = self.task(workload);
            match (&task, self.told(workload)) {
                (Task::Nothing, _) => {}
                (_, Some(netns)) => self.see_to(workload, task, netns, underway),
                (_, None) => to_be_found.push((workload, task)),
            }
        }
        if !to_be_found.is_empty() {
            let wanted: HashSet<_> = to_be_found.iter().map(|(pod, _)| pod.uid.clone()).collect();
            let scanned = blocking(move || Sandboxes::scan(&wanted)).await;
            let mut sandboxes = scanned.unwrap_or_else(|error| {
                tracing::warn!(%error, "could not look for pods");
                Sandboxes::default()
            });
            for (workload, task) in to_be_found {
                let netns = sandboxes.netns_of(&workload.uid, &workload.ips);
                self.see_to(workload, task, netns, underway);
            }
        }
        self.publish();
        let pods = self.pods();
        let failed = pods.iter().filter(|(uid, _)| !underway.has(uid));
        let again = failed.filter_map(|(_, state)| match state {
            State::Failed(failed) => Some(failed.again),
            State::Captured(_) => None,
        });
        again.min()
    }

    /// Begins to enrol a pod in `netns`, unless it is there already.
    fn see_to(
        self: &Arc<Self>,
        workload: &Arc<Workload>,
        task: Task,
        netns: Result<Netns, CaptureError>,
        underway: &mut Underway,
    ) {
        if matches!(task, Task::Check) && self.is_still_in(workload, netns.as_ref().ok()) {
            return;
        }
        let (this, workload) = (self.clone(), workload.clone());
        underway.start(workload.uid.clone(), async move {
            match this.enroll(&workload, netns).await {
                Ok(enrolled) => this.enrolled(&workload, enrolled),
                // Another agent says what becomes of it.
                Err(CaptureError::NotInCharge) => {}
                Err(error) => this.failed(&workload, &error),
            }
            this.publish();
        });
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
                let same_addresses = known.ips.len() == workload.ips.len()
                    && known.ips.iter().all(|ip| workload.ips.contains(ip));
                if !same_addresses {
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

    /// Why a pod has no valid certificate; `None` when it has.
    fn missing(&self, workload: &Workload) -> Option<String> {
        self.proxy.identity.missing(&workload.principal).map(|missing| missing.to_string())
    }

    /// Sees which captured pods have no certificate, and says so where that is news.
    fn certify(&self) {
        for state in self.pods().values_mut() {
            if let State::Captured(captured) = state {
                captured.certificate(self.missing(&captured.pod.workload()), &self.events);
                captured.policies(&self.events);
            }
        }
    }

    /// Captures a pod: in the kernel, which closes it while nobody serves the listeners.
    async fn enroll(
        &self,
        workload: &Workload,
        netns: Result<Netns, CaptureError>,
    ) -> Result<Enrolled, CaptureError> {
        let netns = netns?;
        let inode = netns.inode();
        let (capture, uid, ips) =
            (self.capture.clone(), workload.uid.clone(), workload.ips.clone());
        let home = self.proxy.workers.home();
        let served_on = home.thread().clone();
        let pod = blocking(move || capture.enroll(&uid, netns, &ips, &served_on)).await?;
        Ok(Enrolled { netns: inode, home, pod })
    }

    /// Serves a pod that was just enrolled.
    fn enrolled(&self, workload: &Arc<Workload>, enrolled: Enrolled) {
        let Enrolled { netns, home, pod: EnrolledPod { outbound, inbound, dialer } } = enrolled;
        let tunnels = HbonePool::new(PoolOptions::default());
        let limits = self.proxy.limits.pod();
        let mut pod = LocalPod::new(workload.clone(), home, dialer, tunnels, limits);
        let mut pods = self.pods();
        let mut left = None;
        match pods.get(&workload.uid) {
            // What is open goes on, and ends with the pod.
            Some(State::Captured(former)) if former.netns == netns => {
                pod = pod.in_place_of(&former.pod);
            }
            Some(State::Captured(former)) => left = Some(former.pod.clone()),
            Some(State::Failed(Failed { told: Some(_), .. })) => {
                self.events.captured_at_last(workload);
            }
            Some(State::Failed(_)) | None => {}
        }
        let pod = Arc::new(pod);
        tracing::info!(pod = name_of(workload), principal = %workload.principal, "pod captured");
        let captured = Captured {
            pod: pod.clone(),
            told: workload.netns.clone(),
            netns,
            uncertified: None,
            cut: None,
            _serving: proxy::serve(self.proxy.clone(), pod, outbound, inbound),
        };
        pods.insert(workload.uid.clone(), State::Captured(captured));
        if let Some(left) = left {
            // Nothing in the namespace it had leads anywhere, and its connections would hold it.
            left.release();
        }
    }

    /// Notes that a pod could not be captured, or not anew: it is closed then.
    fn failed(&self, workload: &Arc<Workload>, error: &CaptureError) {
        let mut pods = self.pods();
        let former = match pods.get(&workload.uid) {
            Some(State::Failed(former)) => Some(former),
            Some(State::Captured(former)) => {
                former.pod.release();
                None
            }
            None => None,
        };
        let failed = Failed::new(workload, error.to_string(), former, &self.events);
        pods.insert(workload.uid.clone(), State::Failed(failed));
    }

    /// Lets go of every pod that is not `desired`, or is said to be in another namespace now.
    async fn release(&self, desired: &Desired, underway: &Underway) {
        let mut left = Vec::new();
        self.pods().retain(|uid, state| {
            let stays = desired.get(uid).is_some_and(|desired| match state {
                State::Captured(captured) => {
                    desired.netns == captured.told && !captured.has_moved()
                }
                // Perhaps closed, by an enrolment that failed half way: not to be opened.
                State::Failed(_) => true,
            });
            if stays || underway.has(uid) {
                return true;
            }
            let name = match state {
                State::Captured(captured) => {
                    captured.pod.release();
                    name_of(&captured.pod.workload())
                }
                State::Failed(failed) => name_of(&failed.workload),
            };
            left.push((uid.clone(), name));
            false
        });
        if left.is_empty() {
            return;
        }
        let capture = self.capture.clone();
        blocking(move || {
            for (uid, pod) in left {
                match capture.unenroll(&uid) {
                    Ok(()) => tracing::info!(pod, "pod released"),
                    Err(error) => tracing::warn!(pod, %error, "pod not released cleanly"),
                }
            }
        })
        .await;
    }

    /// Shows the data path which pods are captured here, and tells whoever waits for one.
    fn publish(&self) {
        self.proxy.pods.replace(self.pods().values().filter_map(|state| match state {
            State::Captured(captured) => Some(captured.pod.clone()),
            State::Failed(_) => None,
        }));
        self.progress.send_replace(());
    }

    /// Whether a pod is captured and has had its certificate; `None` as long as that cannot be told,
    /// because it was not tried, or it has none at the moment: that is no reason for peers to
    /// dial it in plaintext.
    pub(super) fn is_captured(&self, uid: &PodUid) -> Option<bool> {
        match self.pods().get(uid)? {
            State::Captured(captured) => {
                self.missing(&captured.pod.workload()).is_none().then_some(true)
            }
            State::Failed(_) => Some(false),
        }
    }

    /// Told of whenever a pod was seen to.
    pub(super) fn progress(&self) -> watch::Receiver<()> {
        self.progress.subscribe()
    }

    /// Told of whenever the CA has answered.
    pub(super) fn certificates(&self) -> watch::Receiver<()> {
        self.proxy.identity.subscribe()
    }

    fn expected(&self) -> MutexGuard<'_, Expected> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<PodUid, State>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work` on a thread that may block.
///
/// # Panics
/// As `work` does, and when the runtime shuts down.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
        // What was to wait for it goes the same way.
        Err(_cancelled) => std::future::pending().await,
    }
}
