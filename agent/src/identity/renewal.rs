//! One certificate, from its first request on.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{CertificateSource, IdentityError, Roots, store::not_issued, tls::Issued};
use crate::mesh::{Principal, TrustDomain};

/// How long a source may take for one certificate.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause after a failure: doubled each time, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// A renewal is due by the wall clock too, which goes on while a machine is suspended.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// What the source was asked so far, over all principals.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) issued: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Told of every answer, and of every failure.
    pub(super) answered: watch::Sender<()>,
}

/// What is known of one certificate, for whoever needs it.
pub(super) struct State {
    pub(super) current: ArcSwapOption<Issued>,
    /// How the newest attempt ended; `None` before the first has.
    pub(super) outcome: watch::Sender<Option<Result<(), IdentityError>>>,
}

/// Issues and renews one certificate, for ever.
pub(super) struct Renewal {
    pub(super) source: Arc<dyn CertificateSource>,
    pub(super) trust_domain: TrustDomain,
    pub(super) who: Principal,
    pub(super) state: Arc<State>,
    pub(super) requests: Arc<Requests>,
}

impl State {
    /// Waits until the first attempt to issue has ended.
    pub(super) async fn first(&self) {
        // The sender lives in `self`.
        let _ = self.outcome.subscribe().wait_for(Option::is_some).await;
    }

    /// Why there is no certificate of `who` that is valid now; `None` when there is.
    pub(super) fn missing(&self, who: &Principal) -> Option<IdentityError> {
        let not_after = match &*self.current.load() {
            Some(issued) => issued.facts.not_after,
            None => {
                let unheard = || not_issued(who, "it was asked for, and there is no answer yet");
                return Some(self.error().unwrap_or_else(unheard));
            }
        };
        if not_after > SystemTime::now() {
            return None;
        }
        let not_after = humantime::format_rfc3339_seconds(not_after);
        Some(match self.error() {
            Some(error) => not_issued(who, format!("the last one expired at {not_after}; {error}")),
            None => not_issued(who, format!("the last one expired at {not_after}")),
        })
    }

    pub(super) fn error(&self) -> Option<IdentityError> {
        self.outcome.borrow().as_ref()?.as_ref().err().cloned()
    }
}

impl Renewal {
    pub(super) async fn run(self) {
        let who = &self.who;
        let mut roots = self.source.roots();
        let mut pause = RETRY.0;
        loop {
            match self.issue().await {
                Ok(issued) => {
                    pause = RETRY.0;
                    self.requests.issued.fetch_add(1, Relaxed);
                    let issued = Arc::new(issued);
                    let renewal = issued.renewal();
                    tracing::info!(
                        principal = %who, serial = issued.facts.serial,
                        expires = %humantime::format_rfc3339_seconds(issued.facts.not_after),
                        "certificate issued"
                    );
                    match &mut roots {
                        Some(roots) => self.trust(&issued, &roots.borrow_and_update()),
                        None => self.state.current.store(Some(issued.clone())),
                    }
                    self.state.outcome.send_replace(Some(Ok(())));
                    self.requests.answered.send_replace(());
                    // However short its life, the source is not asked without a pause.
                    let due = async { tokio::join!(until(renewal), sleep(RETRY.0)) };
                    tokio::select! {
                        _ = due => {}
                        never = self.follow(&issued, &mut roots) => match never {},
                    }
                }
                Err(error) => {
                    self.requests.failed.fetch_add(1, Relaxed);
                    let jittered = pause.mul_f64(jitter());
                    tracing::warn!(
                        principal = %who, %error, retry_in = ?jittered, "certificate not issued"
                    );
                    self.state.outcome.send_replace(Some(Err(error)));
                    self.requests.answered.send_replace(());
                    self.pause(jittered, &mut roots).await;
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }

    async fn issue(&self) -> Result<Issued, IdentityError> {
        match timeout(ISSUE_TIMEOUT, self.source.issue(&self.who)).await {
            Ok(certificate) => Issued::new(&self.who, self.trust_domain.clone(), certificate?),
            Err(_) => {
                let cause = format!("its source did not answer within {ISSUE_TIMEOUT:?}");
                Err(not_issued(&self.who, cause))
            }
        }
    }

    /// Waits after a failure. What is trusted goes on to follow the roots, with the certificate
    /// that is left.
    async fn pause(&self, pause: Duration, roots: &mut Option<watch::Receiver<Roots>>) {
        match self.state.current.load_full() {
            Some(issued) => tokio::select! {
                () = sleep(pause) => {}
                never = self.follow(&issued, roots) => match never {},
            },
            None => sleep(pause).await,
        }
    }

    /// Trusts what there is to trust, as it changes.
    async fn follow(
        &self,
        issued: &Arc<Issued>,
        roots: &mut Option<watch::Receiver<Roots>>,
    ) -> Infallible {
        if let Some(roots) = roots {
            while roots.changed().await.is_ok() {
                self.trust(issued, &roots.borrow_and_update());
            }
        }
        std::future::pending().await
    }

    /// Puts `issued` in force, for peers of `roots` too.
    fn trust(&self, issued: &Arc<Issued>, roots: &Roots) {
        let trusting = issued.trusting(roots).map(Arc::new).unwrap_or_else(|error| {
            tracing::warn!(principal = %self.who, %error, "further roots are not trusted");
            issued.clone()
        });
        self.state.current.store(Some(trusting));
    }
}

/// Sleeps until `time` by the wall clock or by the timer, whichever gets there first.
async fn until(time: SystemTime) {
    let due = Instant::now() + time.duration_since(SystemTime::now()).unwrap_or_default();
    while Instant::now() < due && SystemTime::now() < time {
        sleep(CLOCK_CHECK.min(due - Instant::now())).await;
    }
}

/// Between a half and one, so that pods that failed together do not retry together.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds every `RandomState` anew; no more randomness is needed here.
    let random = RandomState::new().hash_one(0) >> 11;
    0.5 + 0.5 * (random as f64 / (1_u64 << 53) as f64)
}
