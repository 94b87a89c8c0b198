//! The certificates of this node's pods, renewed in the background.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{runtime::Handle, sync::watch, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{
    CertificateSource, IdentityError,
    renewal::{Renewal, Requests, State},
    tls::Issued,
};
use crate::mesh::{Principal, TrustDomain};

/// How long a connection waits for the first answer of the source. A pod that is new on the node
/// has its certificate a moment after it is captured; whoever dials in that moment is to notice
/// nothing. It is as long as an application may take to accept.
const PATIENCE: Duration = Duration::from_secs(10);

/// TLS configurations by principal.
///
/// The first request for a principal issues its certificate; from then on it is renewed
/// until [`IdentityStore::retain`] forgets it. Each has a task of its own: a source that is slow
/// with one holds up no other. A renewal swaps the configurations that new
/// connections are made with and touches no open one.
pub struct IdentityStore {
    source: Arc<dyn CertificateSource>,
    trust_domain: TrustDomain,
    /// Where certificates are asked for.
    on: Handle,
    kept: ArcSwap<HashMap<Principal, Arc<Kept>>>,
    /// Held by whoever changes which principals are kept.
    changing: Mutex<()>,
    requests: Arc<Requests>,
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

impl IdentityStore {
    /// A store that asks `source`, for workloads of `trust_domain`, on the runtime that calls.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(source: Arc<dyn CertificateSource>, trust_domain: TrustDomain) -> Arc<Self> {
        let kept = ArcSwap::default();
        let (changing, requests) = (Mutex::default(), Arc::default());
        Arc::new(Self { source, trust_domain, on: Handle::current(), kept, changing, requests })
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

    /// Whether `who` has a certificate that is valid. Waits where the source has been asked and was
    /// never heard of yet, for as long as a connection may.
    ///
    /// # Errors
    /// When there is none, with the reason the source gave.
    pub async fn valid(&self, who: &Principal) -> Result<(), IdentityError> {
        self.issued(who).await.map(drop)
    }

    /// Why `who` has no valid certificate now; `None` when there is one. Does not wait.
    pub fn missing(&self, who: &Principal) -> Option<IdentityError> {
        let kept = self.kept.load();
        let Some(kept) = kept.get(who) else {
            return Some(not_issued(who, "nobody has asked for it yet"));
        };
        kept.state.missing(who)
    }

    /// Sees to it that everyone of `principals` gets a certificate, all at once.
    pub fn ask_for(&self, principals: &HashSet<Principal>) {
        let kept = self.kept.load();
        for who in principals.iter().filter(|who| !kept.contains_key(*who)) {
            self.keep(who);
        }
    }

    /// Whether everyone of `principals` has a valid certificate now.
    pub fn has_all(&self, principals: &HashSet<Principal>) -> bool {
        principals.iter().all(|who| self.missing(who).is_none())
    }

    /// Wakes whenever the source has answered for anyone, or has failed to.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.requests.answered.subscribe()
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

    /// How often the source issued a certificate, and how often it did not.
    pub fn requests(&self) -> (u64, u64) {
        (self.requests.issued.load(Relaxed), self.requests.failed.load(Relaxed))
    }

    async fn issued(&self, who: &Principal) -> Result<Arc<Issued>, IdentityError> {
        let known = self.kept.load().get(who).cloned();
        // Held until the answer is there: whoever is forgotten meanwhile is still answered.
        let kept = known.unwrap_or_else(|| self.keep(who));
        let state = &kept.state;
        if state.current.load().is_none() {
            // Whoever gives up learns below that there is no answer yet.
            let _ = timeout(PATIENCE, state.first()).await;
        }
        match (state.current.load_full(), state.missing(who)) {
            (Some(issued), None) => Ok(issued),
            (_, Some(missing)) => Err(missing),
            (None, None) => unreachable!("what is not there is missing"),
        }
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
            let renewal = Renewal {
                source: self.source.clone(),
                trust_domain: self.trust_domain.clone(),
                who: who.clone(),
                state: state.clone(),
                requests: self.requests.clone(),
            };
            let renewal = self.on.spawn(renewal.run());
            Arc::new(Kept { state, _renewal: AbortOnDropHandle::new(renewal) })
        });
        let kept = kept.clone();
        self.kept.store(Arc::new(all));
        kept
    }
}

/// There is no certificate of `who`, because of `cause`.
pub(super) fn not_issued(who: &Principal, cause: impl Into<String>) -> IdentityError {
    IdentityError::NotIssued { principal: who.clone(), cause: cause.into() }
}

impl fmt::Debug for IdentityStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityStore")
            .field("trust_domain", &self.trust_domain)
            .field("certificates", &self.certificates())
            .finish_non_exhaustive()
    }
}
