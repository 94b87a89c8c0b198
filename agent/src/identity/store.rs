//! The certificates of this node's pods, renewed in the background.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{CertificateSource, IdentityError, tls::Issued};
use crate::mesh::{Principal, TrustDomain};

/// How long a source may take for one certificate.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause after a failure: doubled each time, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// A renewal is due by the wall clock too, which goes on while a machine is suspended.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// TLS configurations by principal.
///
/// The first request for a principal issues its certificate; from then on it is renewed
/// until [`IdentityStore::retain`] forgets it. A renewal swaps the configurations that new
/// connections are made with and touches no open one.
pub struct IdentityStore {
    source: Arc<dyn CertificateSource>,
    trust_domain: TrustDomain,
    kept: ArcSwap<HashMap<Principal, Arc<Kept>>>,
    /// Held by whoever changes which principals are kept.
    changing: Mutex<()>,
}

/// One certificate as `sluice status` shows it.
#[derive(Clone, Debug)]
pub struct CertificateStatus {
    /// Whose it is.
    pub principal: Principal,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// When it expires.
    pub not_after: SystemTime,
    /// When it will be renewed, or should have been.
    pub renewal: SystemTime,
    /// Why the last renewal failed, if it did.
    pub error: Option<String>,
}

/// One principal's certificate, and the task that renews it.
struct Kept {
    state: Arc<State>,
    _renewal: AbortOnDropHandle<()>,
}

struct State {
    current: ArcSwapOption<Issued>,
    /// How the newest attempt ended; `None` before the first has.
    outcome: watch::Sender<Option<Result<(), IdentityError>>>,
}

impl IdentityStore {
    /// A store that asks `source`, for workloads of `trust_domain`.
    pub fn new(source: Arc<dyn CertificateSource>, trust_domain: TrustDomain) -> Arc<Self> {
        let kept = ArcSwap::default();
        Arc::new(Self { source, trust_domain, kept, changing: Mutex::default() })
    }

    /// What `who` accepts HBONE connections with: TLS 1.3, clients of the trust domain only.
    ///
    /// # Errors
    /// When there is no valid certificate for `who`, with the reason the source gave.
    pub async fn server_config(
        &self,
        who: &Principal,
    ) -> Result<Arc<rustls::ServerConfig>, IdentityError> {
        Ok(self.issued(who).await?.server.clone())
    }

    /// What `who` connects to `peer` with: nobody else is accepted at the other end.
    ///
    /// The same configuration is returned until the certificate is renewed.
    ///
    /// # Errors
    /// When there is no valid certificate for `who`, with the reason the source gave.
    pub async fn client_config(
        &self,
        who: &Principal,
        peer: &Principal,
    ) -> Result<Arc<rustls::ClientConfig>, IdentityError> {
        self.issued(who).await?.client(peer)
    }

    /// Forgets everyone but `principals`, and renews theirs alone.
    pub fn retain(&self, principals: &HashSet<Principal>) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = HashMap::clone(&self.kept.load());
        kept.retain(|principal, _| principals.contains(principal));
        self.kept.store(Arc::new(kept));
    }

    /// The certificates held now, by principal. A first certificate that could not be issued
    /// is not among them: whoever asked for it got the reason.
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        let kept = self.kept.load();
        let mut all: Vec<_> = kept
            .iter()
            .filter_map(|(principal, kept)| {
                let issued = kept.state.current.load_full()?;
                Some(CertificateStatus {
                    principal: principal.clone(),
                    serial: issued.facts.serial.clone(),
                    not_after: issued.facts.not_after,
                    renewal: issued.renewal(),
                    error: kept.state.error().map(|error| error.to_string()),
                })
            })
            .collect();
        all.sort_by_cached_key(|status| status.principal.to_string());
        all
    }

    async fn issued(&self, who: &Principal) -> Result<Arc<Issued>, IdentityError> {
        let known = self.kept.load().get(who).cloned();
        // Held until the answer is there: whoever is forgotten meanwhile is still answered.
        let kept = known.unwrap_or_else(|| self.keep(who));
        let state = &kept.state;
        let issued = match state.current.load_full() {
            Some(issued) => issued,
            None => state.first().await?,
        };
        if issued.facts.not_after <= SystemTime::now() {
            let not_after = humantime::format_rfc3339_seconds(issued.facts.not_after);
            let cause = match state.error() {
                Some(error) => format!("the last one expired at {not_after}; {error}"),
                None => format!("the last one expired at {not_after}"),
            };
            return Err(IdentityError::NotIssued { principal: who.clone(), cause });
        }
        Ok(issued)
    }

    /// Starts to keep a certificate for `who`.
    fn keep(&self, who: &Principal) -> Arc<Kept> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = HashMap::clone(&self.kept.load());
        let kept = all.entry(who.clone()).or_insert_with(|| {
            let state = Arc::new(State {
                current: ArcSwapOption::empty(),
                outcome: watch::Sender::new(None),
            });
            let renewal =
                renew(self.source.clone(), self.trust_domain.clone(), who.clone(), state.clone());
            Arc::new(Kept { state, _renewal: AbortOnDropHandle::new(tokio::spawn(renewal)) })
        });
        let kept = kept.clone();
        self.kept.store(Arc::new(all));
        kept
    }
}

impl fmt::Debug for IdentityStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityStore")
            .field("trust_domain", &self.trust_domain)
            .field("certificates", &self.certificates())
            .finish_non_exhaustive()
    }
}

impl State {
    /// Waits until the first attempt to issue has ended.
    async fn first(&self) -> Result<Arc<Issued>, IdentityError> {
        let mut outcome = self.outcome.subscribe();
        let outcome = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        match (self.current.load_full(), outcome) {
            (Some(issued), _) => Ok(issued),
            (None, Ok(Some(Err(error)))) => Err(error),
            (None, _) => unreachable!("the sender lives in self, and success stores first"),
        }
    }

    fn error(&self) -> Option<IdentityError> {
        self.outcome.borrow().as_ref()?.as_ref().err().cloned()
    }
}

/// Issues and renews one certificate, for ever.
async fn renew(
    source: Arc<dyn CertificateSource>,
    trust_domain: TrustDomain,
    who: Principal,
    state: Arc<State>,
) {
    let mut pause = RETRY.0;
    loop {
        let issued = match timeout(ISSUE_TIMEOUT, source.issue(&who)).await {
            Ok(Ok(certificate)) => Issued::new(&who, trust_domain.clone(), certificate),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(IdentityError::NotIssued {
                principal: who.clone(),
                cause: format!("its source did not answer within {ISSUE_TIMEOUT:?}"),
            }),
        };
        match issued {
            Ok(issued) => {
                pause = RETRY.0;
                let issued = Arc::new(issued);
                let renewal = issued.renewal();
                tracing::info!(
                    principal = %who, serial = issued.facts.serial,
                    expires = %humantime::format_rfc3339_seconds(issued.facts.not_after),
                    "certificate issued"
                );
                state.current.store(Some(issued));
                state.outcome.send_replace(Some(Ok(())));
                // However short its life, the source is not asked without a pause.
                tokio::join!(until(renewal), sleep(RETRY.0));
            }
            Err(error) => {
                let jittered = pause.mul_f64(jitter());
                tracing::warn!(
                    principal = %who, %error, retry_in = ?jittered, "certificate not issued"
                );
                state.outcome.send_replace(Some(Err(error)));
                sleep(jittered).await;
                pause = (pause * 2).min(RETRY.1);
            }
        }
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
