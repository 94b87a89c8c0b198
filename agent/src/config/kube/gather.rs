//! Where the changes of all watches meet and become snapshots.

use std::{
    io,
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
        ConfigError,
        compile::{Claim, Conflict, Key},
        error::{Place, Problem},
        object::named,
        state::{Origin, SourceState},
    },
    mesh::{RootNamespace, SnapshotStore, TrustDomain},
};

/// Changes that follow one another this closely are one change.
const QUIET: Duration = Duration::from_millis(10);
/// A stream of changes that never gets quiet is compiled this long after the first.
const AT_MOST: Duration = Duration::from_millis(100);
/// How long the API server may take at start before the saved copy is used. A watch that fails
/// tells sooner.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often facts that change all the time are saved.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// Turns changes into snapshots.
pub(super) struct Gather {
    work: Work,
    report: Sender<SourceState>,
}

/// What compiling and saving need; it moves to a thread that may block, and back.
struct Work {
    tables: Tables,
    saved: SavedFacts,
    trust_domain: TrustDomain,
    root_namespace: RootNamespace,
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
        trust_domain: TrustDomain,
        root_namespace: RootNamespace,
        store: Arc<SnapshotStore>,
        report: Sender<SourceState>,
    ) -> Self {
        let tables = Tables::default();
        let work = Work { tables, saved, trust_domain, root_namespace, store };
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
        let mut save_at = Instant::now();
        let mut unsaved = false;
        let mut saving = None;
        let mut questions = Questions::default();
        loop {
            tokio::select! {
                arrived = either(&mut changes, &mut told) => {
                    match arrived {
                        Arrived::Change(None) => return,
                        Arrived::Change(Some(change)) => {
                            work.tables.apply(change);
                            take_what_follows(&mut changes, &mut work.tables).await;
                        }
                        // A container runtime waits.
                        Arrived::Told(first) => take(first, &mut work.tables, &mut questions),
                    }
                    while let Ok(next) = told.try_recv() {
                        take(next, &mut work.tables, &mut questions);
                    }
                    if !work.tables.are_complete() {
                        continue;
                    }
                    copy = None;
                    let Some((back, outcome)) = blocking(work, Work::compile).await else { return };
                    work = back;
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
                    let Some((back, encoded)) = blocking(work, Work::encode).await else { return };
                    work = back;
                    unsaved = false;
                    // Beside everything else: a disk may stand still for longer than pods can wait.
                    let saved = work.saved.clone();
                    saving = Some(spawn_blocking(move || save(&saved, encoded)));
                }
                Some(_) = OptionFuture::from(saving.as_mut()) => {
                    saving = None;
                    save_at = Instant::now() + SAVE_EVERY;
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
                self.tables = Tables::from_former(facts);
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

    /// Compiles everything and publishes it if it is news.
    fn compile(&mut self) -> Outcome {
        let former = self.store.load();
        let compiled = self.tables.facts.compile(&former, &self.root_namespace);
        let mut problems = self.tables.problems();
        problems.extend(compiled.conflicts.iter().map(problem_of));
        let complete = self.tables.are_complete();
        let published =
            former.version == 0 || former.complete != complete || !compiled.is_in(&former);
        if published {
            let mut snapshot = compiled.snapshot(self.trust_domain.clone(), former.version + 1);
            snapshot.complete = complete;
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

    fn encode(&mut self) -> io::Result<Vec<u8>> {
        self.saved.encode(&self.tables.facts)
    }
}

/// Saves what was encoded. Blocks for as long as the disk does.
fn save(saved: &SavedFacts, encoded: io::Result<Vec<u8>>) {
    if let Err(error) = encoded.and_then(|encoded| saved.write(&encoded)) {
        let path = saved.path().display();
        tracing::warn!(%path, %error,
            "could not save the snapshot on this node (hint: --state-dir names another place)");
    }
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

/// Takes in the changes that come close behind one another.
async fn take_what_follows(changes: &mut Receiver<Change>, tables: &mut Tables) {
    let last = Instant::now() + AT_MOST;
    // A timeout alone would not do: it never strikes while there is a change at hand.
    while Instant::now() < last {
        match timeout_at((Instant::now() + QUIET).min(last), changes.recv()).await {
            Ok(Some(change)) => tables.apply(change),
            Ok(None) | Err(_) => break,
        }
    }
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

fn take(told: Told, tables: &mut Tables, questions: &mut Questions) {
    let Told { uid, ips, asks } = told;
    if let Some(asks) = asks {
        questions.ask(uid.clone(), asks);
    }
    tables.apply(Change::Addresses(uid, ips));
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
