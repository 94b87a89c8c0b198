//! The keys of issuers that are elsewhere: those that are known, and when to ask for others.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

use super::{KeySet, RemoteKeys, RemoteSource};

/// How long keys are good before they are asked for again, as in Istio.
pub(super) const REFRESH: Duration = Duration::from_secs(20 * 60);
/// How soon a token with an unknown key has keys asked for again: any client may send one.
const COOLDOWN: Duration = Duration::from_secs(10);
/// How soon a server that had no keys is asked again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Everybody who has keys for the tokens of this node's pods. Looking keys up takes no lock that anybody
/// holds for long, and nobody waits for a server whose keys are known.
#[derive(Default)]
pub struct Issuers {
    sources: papaya::HashMap<RemoteSource, Arc<Held>>,
    fetched: AtomicU64,
    failed: AtomicU64,
}

/// What is known of one source.
#[derive(Default)]
pub(super) struct Held {
    keys: ArcSwapOption<KeySet>,
    progress: Mutex<Progress>,
    /// Wakes whoever waits for an answer.
    rounds: watch::Sender<u64>,
    /// Wakes whoever asks the server.
    pub(super) wanted: Notify,
}

#[derive(Debug, Default)]
struct Progress {
    /// When the server was last asked to the end.
    ended: Option<Instant>,
    asking: bool,
    fetched_at: Option<SystemTime>,
    /// How often it had no keys since.
    failures: u32,
    error: Option<String>,
}

/// How one source is doing.
#[derive(Clone, Debug)]
pub struct IssuerState {
    /// How many keys are known.
    pub keys: usize,
    /// When they were fetched.
    pub fetched_at: Option<SystemTime>,
    /// Why the server has none, or no newer ones.
    pub error: Option<String>,
}

impl Issuers {
    pub(super) fn held(&self, source: &RemoteSource) -> Arc<Held> {
        let sources = self.sources.pin();
        match sources.get(source) {
            Some(held) => held.clone(),
            None => sources.get_or_insert_with(source.clone(), Arc::default).clone(),
        }
    }

    /// Forgets the keys of `source`.
    pub(super) fn forget(&self, source: &RemoteSource) {
        self.sources.pin().remove(source);
    }

    pub(super) fn count(&self, is_good: bool) {
        let count = if is_good { &self.fetched } else { &self.failed };
        count.fetch_add(1, Relaxed);
    }

    /// How often keys were asked for, by whether there were some.
    pub fn counts(&self) -> [(&'static str, u64); 2] {
        [("success", self.fetched.load(Relaxed)), ("failure", self.failed.load(Relaxed))]
    }

    /// How each source is doing.
    pub fn state(&self) -> BTreeMap<String, IssuerState> {
        let sources = self.sources.pin();
        let state = sources.iter().map(|(source, held)| {
            let progress = held.progress();
            let state = IssuerState {
                keys: held.keys.load().as_ref().map_or(0, |keys| keys.len()),
                fetched_at: progress.fetched_at,
                error: progress.error.clone(),
            };
            (source.to_string(), state)
        });
        state.collect()
    }
}

impl Held {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begins(&self) {
        self.progress().asking = true;
    }

    /// The server has answered; when to ask again.
    pub(super) fn answered(&self, answer: Result<KeySet, String>) -> Duration {
        let mut progress = self.progress();
        progress.asking = false;
        progress.ended = Some(Instant::now());
        let pause = match answer {
            Ok(keys) => {
                self.keys.store(Some(Arc::new(keys)));
                progress.fetched_at = Some(SystemTime::now());
                progress.failures = 0;
                progress.error = None;
                REFRESH
            }
            Err(error) => {
                // The last good ones stay.
                progress.error = Some(error);
                let doubled = FIRST_PAUSE * (1 << progress.failures.min(6));
                progress.failures += 1;
                doubled.min(LONGEST_PAUSE)
            }
        };
        drop(progress);
        self.rounds.send_modify(|round| *round += 1);
        pause
    }

    /// Whether there will be an answer soon: one is on its way, or is asked for now.
    fn ask(&self) -> bool {
        let mut progress = self.progress();
        if !progress.asking {
            if progress.ended.is_some_and(|ended| ended.elapsed() < COOLDOWN) {
                return false;
            }
            progress.asking = true;
            self.wanted.notify_one();
        }
        true
    }
}

impl RemoteKeys for Issuers {
    fn known(&self, source: &RemoteSource) -> Option<Arc<KeySet>> {
        self.sources.pin().get(source)?.keys.load_full()
    }

    async fn newer(
        &self,
        source: &RemoteSource,
        known: Option<&Arc<KeySet>>,
    ) -> Option<Arc<KeySet>> {
        let held = self.held(source);
        let others = || {
            let keys = held.keys.load_full()?;
            known.is_none_or(|known| !Arc::ptr_eq(known, &keys)).then_some(keys)
        };
        let mut rounds = held.rounds.subscribe();
        if let Some(keys) = others() {
            return Some(keys);
        }
        if !held.ask() {
            return None;
        }
        // Twice as long where the issuer is asked first where its keys are.
        let patience = source.timeout * if source.discovers { 2 } else { 1 };
        let _ = timeout(patience, rounds.changed()).await;
        others()
    }
}

impl fmt::Display for RemoteSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.discovers {
            true => write!(f, "{} (discovery)", self.uri),
            false => f.write_str(&self.uri),
        }
    }
}

impl fmt::Debug for Issuers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.state()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::testing::Issuer;

    fn source() -> RemoteSource {
        let timeout = Duration::from_secs(5);
        RemoteSource { uri: "https://a.example".into(), discovers: false, timeout }
    }

    fn keys() -> KeySet {
        KeySet::parse(Issuer::new("k").jwks().as_bytes()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_keys_are_waited_for_and_only_as_long_as_their_server_may_take() {
        let issuers = Arc::new(Issuers::default());
        let began = Instant::now();
        assert!(issuers.newer(&source(), None).await.is_none());
        assert_eq!(began.elapsed(), source().timeout);
        let waiting = tokio::spawn({
            let issuers = issuers.clone();
            async move { issuers.newer(&source(), None).await }
        });
        tokio::task::yield_now().await;
        issuers.held(&source()).answered(Ok(keys()));
        assert!(waiting.await.unwrap().is_some());
        assert!(issuers.known(&source()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_keys_have_a_server_asked_now_and_then_and_no_request_waits_in_between() {
        let issuers = Issuers::default();
        let held = issuers.held(&source());
        held.begins();
        assert_eq!(held.answered(Ok(keys())), REFRESH);
        let known = issuers.known(&source());
        let began = Instant::now();
        for _ in 0..10 {
            assert!(issuers.newer(&source(), known.as_ref()).await.is_none());
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "it was asked just now");
        tokio::time::advance(COOLDOWN).await;
        let other = async {
            held.wanted.notified().await;
            held.answered(Ok(keys()));
        };
        let source = source();
        let (newer, ()) = tokio::join!(issuers.newer(&source, known.as_ref()), other);
        let newer = newer.unwrap();
        assert!(!Arc::ptr_eq(&newer, known.as_ref().unwrap()));
        // Whoever has missed that is told at once.
        assert!(issuers.newer(&source, known.as_ref()).await.is_some());
    }

    #[test]
    fn a_server_without_keys_is_asked_again_ever_more_seldom_and_the_last_good_ones_stay() {
        let issuers = Issuers::default();
        let held = issuers.held(&source());
        held.answered(Ok(keys()));
        let pauses: Vec<_> = (0..8).map(|_| held.answered(Err("gone".into())).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(issuers.known(&source()).is_some());
        let state = &issuers.state()["https://a.example"];
        assert_eq!((state.keys, state.error.as_deref()), (1, Some("gone")));
        assert_eq!(held.answered(Ok(keys())), REFRESH);
        assert_eq!(issuers.state()["https://a.example"].error, None);
    }
}
