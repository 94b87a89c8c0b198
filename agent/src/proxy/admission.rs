//! Who may come in: whether a pod's policy lets a connection through that has reached the pod.
//!
//! Asked of every connection, before a byte of it gets to the application. A client that
//! proved who it is, through HBONE or as a pod of this node that hands over in this process, is
//! let in by every mode of mutual TLS. Plaintext is not by STRICT, with one exception: the
//! kubelet, which probes containers and speaks no mutual TLS. It has to prove that it is this
//! node's, see [`NodeSockets`]. AuthorizationPolicies do not keep it out either.
//!
//! What policies say is asked again when they change: of connections here, of requests one by one.
//!
//! A pod that has no valid certificate lets nobody in and is not let out, whatever its policy says:
//! it belongs to the mesh, where nobody could tell who it is. The kubelet passes here too.

use std::{
    fmt,
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::StatusCode;
use tokio::{sync::watch, task::spawn_blocking};

use super::{
    LocalPod, Proxy, authentication,
    authorization::{self, Told, Unauthorized, newest, note},
    external::{More, permitted},
    inbound::Arrival,
    refusal::Refusal,
};
use crate::{
    capture::{NodeSockets, Stranger},
    http::AnyRequest,
    identity::IdentityError,
    mesh::{AppProtocol, PortMutualTls, Principal, Workload},
    telemetry::{Failure, Judgement},
};

/// A connection that was let in.
pub(super) enum Admitted {
    /// To be carried for as long as policy allows it.
    Traffic(Standing),
    /// One of the node itself, which policy would not let in otherwise: carried as it is, without
    /// spans, since probes would drown every trace.
    Probe,
}

/// Whether a connection may stay.
pub(super) struct Standing {
    /// Wakes when the answer may be another one.
    changes: watch::Receiver<()>,
    /// It is known to be no HTTP, of which each request is asked about.
    opaque: bool,
    /// What there is to tell of that.
    told: Told,
}

/// Why a connection is not let in, or no longer.
#[derive(Debug)]
pub(super) enum Denied {
    /// It came in plaintext.
    Plaintext {
        workload: Arc<Workload>,
        app: SocketAddr,
        rule: PortMutualTls,
        /// Why it does not pass for the kubelet's either.
        client: Stranger,
    },
    /// The pod has no valid certificate.
    Uncertified(IdentityError),
    /// An AuthorizationPolicy says so.
    Unauthorized(Unauthorized),
}

/// Who wanted to speak with a pod that has no valid certificate.
#[derive(Clone, Copy, Debug)]
pub(super) enum Party {
    /// The pod itself dialled.
    Own,
    /// Somebody of the mesh.
    Mesh,
    /// Somebody who came in plaintext.
    Plaintext,
}

/// Connections by what was decided about them, where policy had something to decide.
#[derive(Debug, Default)]
pub struct Admissions {
    probes: AtomicU64,
    refused: [AtomicU64; Stranger::WORDS.len()],
    uncertified: [AtomicU64; Party::WORDS.len()],
}

impl Admissions {
    /// Connections of the node itself that were let in although they came in plaintext.
    pub fn probes(&self) -> u64 {
        self.probes.load(Relaxed)
    }

    /// Connections that were refused or cut because they came in plaintext, by what the client
    /// was taken for.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.refused.iter().map(|count| count.load(Relaxed));
        Stranger::WORDS.into_iter().zip(counts)
    }

    /// Connections that were refused because the pod has no valid certificate, by who was at the
    /// other end.
    pub fn uncertified(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.uncertified.iter().map(|count| count.load(Relaxed));
        Party::WORDS.into_iter().zip(counts)
    }

    fn count(&self, client: &Stranger) {
        self.refused[client.index()].fetch_add(1, Relaxed);
    }
}

/// Decides about a connection that has just arrived at `pod`.
pub(super) async fn admit(
    proxy: &Proxy,
    pod: &LocalPod,
    arrival: &Arrival,
) -> Result<Admitted, Denied> {
    let who = pod.workload().principal.clone();
    if proxy.identity.missing(&who).is_some() {
        let party = match arrival.principal {
            Some(_) => Party::Mesh,
            // The kubelet does not wait for a certificate, nor does anybody for the kubelet.
            None if prove(proxy, arrival).await.is_ok() => {
                proxy.admissions.probes.fetch_add(1, Relaxed);
                return Ok(Admitted::Probe);
            }
            None => Party::Plaintext,
        };
        certified(proxy, &who, party).await.map_err(Denied::Uncertified)?;
    }
    // Before the question, so that no change after the answer is missed.
    let mut standing = Standing::of(proxy);
    if arrival.principal.is_none()
        && let Some(refusing) = refusing_plaintext(proxy, pod, arrival)
    {
        return match prove(proxy, arrival).await {
            Ok(()) => {
                proxy.admissions.probes.fetch_add(1, Relaxed);
                Ok(Admitted::Probe)
            }
            Err(client) => Err(refusing.denied(proxy, arrival, client)),
        };
    }
    let spoken = proxy.snapshots.load().spoken_at(arrival.app);
    let asked = match spoken {
        // Each request is answered for itself.
        AppProtocol::Http | AppProtocol::Http2 => Ok(None),
        AppProtocol::Opaque => {
            standing.opaque = true;
            authorization::opaque(proxy, pod, arrival)
        }
        AppProtocol::Unknown => authorization::connection(proxy, pod, arrival),
    };
    match asked {
        Ok(told) => Ok(Admitted::Traffic(Standing { told, ..standing })),
        Err(unauthorized) => excused(proxy, arrival, unauthorized).await.map(|()| Admitted::Probe),
    }
}

/// Lets what policy would not let in pass all the same where it is the kubelet's.
async fn excused(
    proxy: &Proxy,
    arrival: &Arrival,
    unauthorized: Unauthorized,
) -> Result<(), Denied> {
    if is_kubelet(proxy, arrival).await {
        return Ok(());
    }
    note(arrival, unauthorized.judgement.as_deref());
    Err(Denied::Unauthorized(unauthorized))
}

/// Whether something that policy would not let in is the kubelet's.
pub(super) async fn is_kubelet(proxy: &Proxy, arrival: &Arrival) -> bool {
    let is = arrival.principal.is_none() && prove(proxy, arrival).await.is_ok();
    if is {
        proxy.admissions.probes.fetch_add(1, Relaxed);
    }
    is
}

/// A request that may go on.
#[derive(Default)]
pub(super) struct Passes {
    /// What there is to tell of it.
    pub(super) told: Told,
    /// What its client is told beside the answer.
    pub(super) more: More,
}

/// Asks about a request.
pub(super) async fn admit_request(
    proxy: &Arc<Proxy>,
    pod: &Arc<LocalPod>,
    arrival: &Arrival,
    request: &mut (impl AnyRequest + Send),
) -> Result<Passes, Refusal> {
    match judge_request(proxy, pod, arrival, request).await {
        Err(refusal)
            if matches!(refusal.failure, Failure::AuthzDenied | Failure::JwtDenied)
                && is_kubelet(proxy, arrival).await =>
        {
            Ok(Passes::default())
        }
        Ok(passes) => {
            note(arrival, passes.told.as_deref());
            Ok(passes)
        }
        Err(refusal) => {
            note(arrival, refusal.judgement.as_deref());
            Err(refusal)
        }
    }
}

/// Who sends it, then those whom CUSTOM policies want asked, then the other policies, about what it is by
/// then.
async fn judge_request(
    proxy: &Arc<Proxy>,
    pod: &Arc<LocalPod>,
    arrival: &Arrival,
    request: &mut (impl AnyRequest + Send),
) -> Result<Passes, Refusal> {
    let mut workload = newest(proxy, pod);
    let mut claims = None;
    if let Some(asking) = authentication::asked(proxy, &workload, request) {
        claims = asking.await?;
        // Meanwhile policies may have changed.
        workload = newest(proxy, pod);
    }
    let claims = claims.as_ref();
    let mut more = More::default();
    if workload.authorization.authorizers() > 0 {
        // Boxed, as what few requests come to.
        more = Box::pin(permitted(proxy, pod, &workload, arrival, request, claims)).await?;
        workload = newest(proxy, pod);
    }
    let told = authorization::request(&workload.authorization, arrival, request, claims)?;
    Ok(Passes { told, more })
}

/// Asks about a connection that turns out not to be HTTP, which stays `standing`.
pub(super) async fn admit_opaque(
    proxy: &Proxy,
    pod: &LocalPod,
    arrival: &Arrival,
    standing: &mut Standing,
) -> Result<Told, Denied> {
    let asked = match std::mem::replace(&mut standing.opaque, true) {
        true => Ok(standing.told.take()),
        false => authorization::opaque(proxy, pod, arrival),
    };
    match asked {
        Ok(told) => {
            note(arrival, told.as_deref());
            Ok(told)
        }
        Err(unauthorized) => excused(proxy, arrival, unauthorized).await.map(|()| None),
    }
}

/// Asks about what one pod of this node hands over to another, before it is known what it is.
pub(super) async fn admit_handed_over(
    proxy: &Proxy,
    pod: &LocalPod,
    arrival: &Arrival,
) -> Result<(), Refusal> {
    both_certified(proxy, pod, arrival).await?;
    if arrival.same_node {
        let spoken = proxy.snapshots.load().spoken_at(arrival.app);
        let asked = match spoken {
            AppProtocol::Opaque => authorization::opaque(proxy, pod, arrival),
            _ => authorization::connection(proxy, pod, arrival),
        };
        if let Err(unauthorized) = asked {
            note(arrival, unauthorized.judgement.as_deref());
            return Err(unauthorized.into());
        }
    }
    Ok(())
}

/// Makes sure that a pod of this node has a certificate before it speaks with `party`; the first
/// one is waited for. Counts where it has none.
pub(super) async fn certified(
    proxy: &Proxy,
    who: &Principal,
    party: Party,
) -> Result<(), IdentityError> {
    let valid = proxy.identity.valid(who).await;
    if valid.is_err() {
        proxy.admissions.uncertified[party as usize].fetch_add(1, Relaxed);
    }
    valid
}

/// As [`certified`], for both ends of what one pod of this node hands over to another: no
/// handshake proves who they are.
pub(super) async fn both_certified(
    proxy: &Proxy,
    pod: &LocalPod,
    arrival: &Arrival,
) -> Result<(), Refusal> {
    if !arrival.same_node {
        return Ok(());
    }
    for who in arrival.principal.iter().chain([&pod.workload().principal]) {
        certified(proxy, who, Party::Mesh).await.map_err(Refusal::uncertified)?;
    }
    Ok(())
}

impl Party {
    /// Each in one word, for metrics.
    const WORDS: [&'static str; 3] = ["own", "mesh", "plaintext"];
}

impl Standing {
    /// Of a connection that is about to be let in.
    pub(super) fn of(proxy: &Proxy) -> Self {
        Self { changes: proxy.snapshots.subscribe_policies(), opaque: false, told: None }
    }

    /// Waits until the connection would not be let in any more.
    pub(super) async fn revoked(
        &mut self,
        proxy: &Proxy,
        pod: &LocalPod,
        arrival: &Arrival,
    ) -> Denied {
        loop {
            if self.changes.changed().await.is_err() {
                // The store is gone, and with it everything that could change.
                return pending().await;
            }
            // A probe under way may end in its own time.
            if arrival.principal.is_none()
                && let Some(refusing) = refusing_plaintext(proxy, pod, arrival)
                && let Err(client) = prove(proxy, arrival).await
            {
                return refusing.denied(proxy, arrival, client);
            }
            let asked = match self.opaque {
                true => authorization::opaque(proxy, pod, arrival),
                false => authorization::connection(proxy, pod, arrival),
            };
            if let Err(unauthorized) = asked
                && !is_kubelet(proxy, arrival).await
            {
                return Denied::Unauthorized(unauthorized);
            }
        }
    }
}

/// A workload with the rule by which it takes no plaintext.
struct Refusing {
    workload: Arc<Workload>,
    rule: PortMutualTls,
}

impl Refusing {
    fn denied(self, proxy: &Proxy, arrival: &Arrival, client: Stranger) -> Denied {
        proxy.admissions.count(&client);
        let Self { workload, rule } = self;
        Denied::Plaintext { workload, app: arrival.app, rule, client }
    }
}

fn refusing_plaintext(proxy: &Proxy, pod: &LocalPod, arrival: &Arrival) -> Option<Refusing> {
    let workload = newest(proxy, pod);
    let rule = workload.mtls.on(arrival.app.port()).clone();
    rule.mode.refuses_plaintext().then_some(Refusing { rule, workload })
}

/// Asked only where policy would say no otherwise, so that nobody else waits for the answer.
async fn prove(proxy: &Proxy, arrival: &Arrival) -> Result<(), Stranger> {
    let sockets: Arc<NodeSockets> = proxy.node_sockets.clone();
    let (client, app) = (arrival.client, arrival.app);
    let proof = spawn_blocking(move || sockets.prove(client, app)).await;
    proof.unwrap_or_else(|failed| Err(Stranger::unknown(failed)))
}

impl Denied {
    /// Whether the client connected and left, as probes of a port do that look for nothing more.
    /// It may have been the kubelet, and had its answer: nobody needs to hear of each.
    pub(super) fn is_of_nobody(&self) -> bool {
        matches!(self, Self::Plaintext { client: Stranger::Closed, .. })
    }

    /// What spans call it.
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::Plaintext { .. } => Failure::MutualTlsRequired,
            Self::Uncertified(_) => Failure::CertificateMissing,
            Self::Unauthorized(_) => Failure::AuthzDenied,
        }
    }

    /// What a peer's agent is told: policy is nothing that anybody could try again.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Plaintext { .. } | Self::Unauthorized(_) => StatusCode::FORBIDDEN,
            Self::Uncertified(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// What policy said, for a span.
    pub(super) fn judgement(&self) -> Option<Box<Judgement>> {
        match self {
            Self::Unauthorized(unauthorized) => unauthorized.judgement.clone(),
            Self::Plaintext { .. } | Self::Uncertified(_) => None,
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (workload, app, rule, client) = match self {
            Self::Plaintext { workload, app, rule, client } => (workload, app, rule, client),
            Self::Uncertified(missing) => return missing.fmt(f),
            Self::Unauthorized(unauthorized) => return unauthorized.fmt(f),
        };
        let (namespace, name, port) = (&workload.namespace, &workload.name, app.port());
        write!(
            f,
            "plaintext to {namespace}/{name} port {port} is refused: mutual TLS is {rule}, and \
             the client is not this node's kubelet: {client} (hint: enrol the client, or make the \
             port PERMISSIVE)"
        )
    }
}
