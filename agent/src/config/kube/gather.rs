//! Where the changes of all watches meet and become snapshots.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::OptionFuture;
use k8s_openapi::api::core::v1::{Pod, Service};
use tokio::{
    sync::{
        mpsc::{Receiver, UnboundedReceiver},
        watch::{self, Sender},
    },
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    addresses::{Questions, Told},
    saved::SavedFacts,
    tables::{Change, Tables},
};
use crate::{
    config::{
        ConfigError, MeshSettings,
        compile::{Claim, Conflict, Facts, Key},
        error::{Place, Problem},
        object::named,
        state::{Origin, SourceState},
    },
    mesh::SnapshotStore,
};

/// The least time between one snapshot and the next: a change is in force at once, and those that
/// follow it closely are together. Whoever reads snapshots looks at each.
const BETWEEN: Duration = Duration::from_millis(10);
/// How long the API server may take at start before the saved copy is used. A watch that fails
/// tells sooner.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often facts that change all the time are saved, unless that takes long.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// Saving takes this part of the time: those of a large cluster are saved less often, but not so
/// seldom that a disk which stood still once leaves an old copy there.
const SAVING: u32 = 100;
const SAVE_AT_LEAST: Duration = Duration::from_secs(600);

/// Turns changes into snapshots.
pub(super) struct Gather {
    work: Work,
    report: Sender<SourceState>,
}

/// What compiling and saving need; it moves to a thread that may block, and back.
struct Work {
    tables: Tables,
    saved: SavedFacts,
    store: Arc<SnapshotStore>,
}

/// What came of compiling.
struct Outcome {
    published: bool,
    problems: Vec<Problem>,
}

impl Gather {
    pub(super) fn new(
        saved: SavedFacts,
        settings: MeshSettings,
        store: Arc<SnapshotStore>,
        report: Sender<SourceState>,
    ) -> Self {
        let work = Work { tables: Tables::new(settings), saved, store };
        Self { work, report }
    }

    /// Follows `changes` until the watches are gone, and what is `told` of pods from elsewhere.
    pub(super) async fn run(
        self,
        mut changes: Receiver<Change>,
        mut told: UnboundedReceiver<Told>,
    ) {
        let Self { work, report } = self;
        let Some((mut work, mut copy)) = blocking(work, Work::recall).await else { return };
        let mut troubles = report.subscribe();
        let late = Instant::now() + PATIENCE;
        let mut compiled_at = Instant::now();
        let mut save_at = Instant::now();
        let mut unsaved = false;
        let mut saving = None;
        let mut questions = Questions::default();
        loop {
            tokio::select! {
                arrived = either(&mut changes, &mut told) => {
                    let mut news = match arrived {
                        Arrived::Change(None) => return,
                        Arrived::Change(Some(change)) => {
                            what_follows(change, &mut changes, compiled_at + BETWEEN).await
                        }
                        // A container runtime waits.
                        Arrived::Told(first) => vec![taken(first, &mut questions)],
                    };
                    while let Ok(next) = told.try_recv() {
                        news.push(taken(next, &mut questions));
                    }
                    let taken = blocking(work, |work| work.take(news)).await;
                    let Some((back, outcome)) = taken else { return };
                    work = back;
                    let Some(outcome) = outcome else { continue };
                    copy = None;
                    compiled_at = Instant::now();
                    questions.answer(&work.tables);
                    unsaved |= outcome.published;
                    tell(&report, Origin::Cluster, SystemTime::now(), outcome);
                }
                () = silence(&mut troubles, late), if copy.is_some() => {
                    let Some((back, outcome)) = blocking(work, Work::compile).await else { return };
                    work = back;
                    let saved_at = copy.take().expect("the branch is for a copy that is there");
                    tell(&report, Origin::Saved, saved_at, outcome);
                }
                () = sleep_until(save_at), if unsaved && saving.is_none() => {
                    unsaved = false;
                    // Beside everything else, by a copy that shares all of it: a disk may stand still
                    // for longer than pods can wait.
                    let (saved, facts) = (work.saved.clone(), work.tables.compiler.facts().clone());
                    saving = Some(spawn_blocking(move || save(&saved, &facts)));
                }
                Some(took) = OptionFuture::from(saving.as_mut()) => {
                    saving = None;
                    let (took, is_saved) = took.unwrap_or_default();
                    unsaved |= !is_saved;
                    save_at = Instant::now() + (took * SAVING).clamp(SAVE_EVERY, SAVE_AT_LEAST);
                }
            }
        }
    }
}

impl Work {
    /// Begins with the facts saved on this node, if there are any; when they were saved.
    fn recall(&mut self) -> Option<SystemTime> {
        match self.saved.load() {
            Ok(Some((facts, saved_at))) => {
                self.tables.recall(facts);
                Some(saved_at)
            }
            Ok(None) => None,
            Err(error) => {
                let path = self.saved.path().display();
                tracing::warn!(%path, error, "the snapshot saved on this node is of no use");
                None
            }
        }
    }

    /// Takes `news` in, and compiles what they change; `None` while not everything was listed.
    fn take(&mut self, news: Vec<Change>) -> Option<Outcome> {
        news.into_iter().for_each(|change| self.tables.apply(change));
        self.tables.are_complete().then(|| self.compile())
    }

    /// Compiles what has changed, and publishes it if it is news.
    fn compile(&mut self) -> Outcome {
        let former = self.store.load();
        let changed = self.tables.compiler.compile();
        let mut problems = self.tables.problems();
        problems.extend(self.tables.compiler.conflicts().iter().map(problem_of));
        let complete = self.tables.are_complete();
        let published = former.version == 0 || former.complete != complete || changed;
        if published {
            let mut snapshot = self.tables.compiler.snapshot().clone();
            (snapshot.version, snapshot.complete) = (former.version + 1, complete);
            tracing::debug!(
                version = snapshot.version,
                workloads = snapshot.workloads().len(),
                services = snapshot.services().len(),
                "snapshot in force"
            );
            self.store.publish(snapshot);
        }
        Outcome { published, problems }
    }
}

/// Saves `facts`, which blocks for as long as the disk does; how long that took, and whether they are
/// saved.
fn save(saved: &SavedFacts, facts: &Facts) -> (Duration, bool) {
    let began = Instant::now();
    let result = saved.save(facts);
    if let Err(error) = &result {
        let path = saved.path().display();
        tracing::warn!(%path, %error,
            "could not save the snapshot on this node (hint: --state-dir names another place)");
    }
    (began.elapsed(), result.is_ok())
}

/// Runs `job` on a thread that may block; `None` when the runtime shuts down, or it panicked.
async fn blocking<T: Send + 'static>(
    mut work: Work,
    job: impl FnOnce(&mut Work) -> T + Send + 'static,
) -> Option<(Work, T)> {
    let result = spawn_blocking(move || {
        let result = job(&mut work);
        (work, result)
    });
    match result.await {
        Ok(result) => Some(result),
        Err(ended) => {
            if !ended.is_cancelled() {
                tracing::error!(%ended, "snapshots are no longer made (hint: restart the agent)");
            }
            None
        }
    }
}

/// A change, those that are there already, and those that come `until` then.
async fn what_follows(
    first: Change,
    changes: &mut Receiver<Change>,
    until: Instant,
) -> Vec<Change> {
    let mut news = vec![first];
    while let Ok(next) = changes.try_recv() {
        news.push(next);
    }
    // A timeout alone would not do: it never strikes while there is a change at hand.
    while Instant::now() < until {
        match timeout_at(until, changes.recv()).await {
            Ok(Some(next)) => news.push(next),
            Ok(None) | Err(_) => break,
        }
    }
    news
}

/// What there is to do next.
enum Arrived {
    /// `None` when the watches are gone.
    Change(Option<Change>),
    Told(Told),
}

async fn either(changes: &mut Receiver<Change>, told: &mut UnboundedReceiver<Told>) -> Arrived {
    tokio::select! {
        change = changes.recv() => Arrived::Change(change),
        Some(told) = told.recv() => Arrived::Told(told),
    }
}

/// What is told of a pod as a change; whoever asks about it is noted.
fn taken(told: Told, questions: &mut Questions) -> Change {
    let Told { uid, ips, asks } = told;
    if let Some(asks) = asks {
        questions.ask(uid.clone(), asks);
    }
    Change::Addresses(uid, ips)
}

/// Waits until a watch is in trouble, or it is `late`.
async fn silence(state: &mut watch::Receiver<SourceState>, late: Instant) {
    let trouble = state.wait_for(|state| state.watches.iter().any(|watch| watch.error.is_some()));
    let _ = timeout_at(late, trouble).await;
}

/// Reports what came of compiling the facts that `origin` told at `read_at`.
fn tell(report: &Sender<SourceState>, origin: Origin, read_at: SystemTime, outcome: Outcome) {
    let Outcome { published, problems } = outcome;
    report.send_modify(|state| {
        if state.origin != origin {
            match origin {
                Origin::Saved => tracing::warn!(
                    saved = %humantime::format_rfc3339_seconds(read_at),
                    "the API server does not answer: starting from the snapshot saved on this node"
                ),
                _ => tracing::info!("every kind was listed: the API server's state is in force"),
            }
        }
        if published || state.origin != origin {
            state.loaded_at = read_at;
        }
        state.origin = origin;
        state.rejected = problems.len();
        let error = (!problems.is_empty()).then(|| ConfigError::Invalid(problems).to_string());
        state.report(error);
    });
}

fn problem_of(conflict: &Conflict) -> Problem {
    let Conflict { claim, owner, claimant } = conflict;
    let pod = |(namespace, name): &Key| named::<Pod>(namespace, name);
    let service = |(namespace, name): &Key| named::<Service>(namespace, name);
    let (claimant, owner, what) = match claim {
        Claim::PodUid(uid) => (pod(claimant), pod(owner), format!("metadata.uid {uid}")),
        Claim::PodAddress(ip) => (pod(claimant), pod(owner), format!("status.podIPs {ip}")),
        Claim::ClusterIp(ip) => (service(claimant), service(owner), format!("spec.clusterIP {ip}")),
    };
    Problem::new(Place::object(&claimant), format!("{what} belongs to {owner} too, which has it"))
        .hint("this one is left out until one of them changes")
}
