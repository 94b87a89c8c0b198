//! What AuthorizationPolicies say about what has reached a pod, however it came.

use std::{
    fmt,
    future::{Future, pending},
    net::SocketAddr,
    sync::Arc,
};

use http::request::Parts;

use super::{LocalPod, Proxy, inbound::Arrival, refusal::Refusal};
use crate::{
    http::AnyRequest,
    mesh::{PodUid, Principal, SnapshotStore, Workload},
    policy::{Asks, Authorization, By, Claims, Connection, Request, Verdict},
    telemetry::{Judgement, Ruling},
};

/// Why something may not pass.
#[derive(Debug)]
pub(super) struct Unauthorized {
    why: String,
    /// For its span.
    pub(super) judgement: Option<Box<Judgement>>,
}

/// What there is to tell of something that may pass.
pub(super) type Told = Option<Box<Judgement>>;

impl fmt::Display for Unauthorized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Who has reached which pod.
struct Visit<'a> {
    principal: Option<&'a Principal>,
    client: SocketAddr,
    app: SocketAddr,
}

impl Visit<'_> {
    fn connection(&self) -> Connection<'_> {
        let Self { principal, client, app } = *self;
        Connection { principal, source: client.ip(), destination: app }
    }
}

impl Arrival {
    fn visit(&self) -> Visit<'_> {
        Visit { principal: self.principal.as_ref(), client: self.client, app: self.app }
    }
}

/// What the newest snapshot says about the pod, even while enrolment is busy with another one. A pod that
/// the snapshot has not, or not any more, is held to what was last said of it.
pub(super) fn newest(proxy: &Proxy, pod: &LocalPod) -> Arc<Workload> {
    newest_of(&proxy.snapshots, &pod.uid).unwrap_or_else(|| pod.workload())
}

/// By its UID: the address that was dialled may be one that nobody told of.
fn newest_of(snapshots: &SnapshotStore, uid: &PodUid) -> Option<Arc<Workload>> {
    snapshots.load().pod(uid).cloned()
}

/// Asks about a connection, whatever it will turn out to be.
pub(super) fn connection(
    proxy: &Proxy,
    pod: &LocalPod,
    arrival: &Arrival,
) -> Result<Told, Unauthorized> {
    let asks = Asks::<Parts>::Connection;
    judge(&arrival.visit(), &newest(proxy, pod).authorization, &asks)
}

/// Asks about a connection that is not looked into.
pub(super) fn opaque(
    proxy: &Proxy,
    pod: &LocalPod,
    arrival: &Arrival,
) -> Result<Told, Unauthorized> {
    judge(&arrival.visit(), &newest(proxy, pod).authorization, &Asks::<Parts>::Opaque)
}

/// Whether the authorizer of that number has to be asked about a request: its name, and the rule that says
/// so. The request has the path then that it is judged by.
pub(super) fn asks<'a>(
    authorization: &'a Authorization,
    authorizer: usize,
    arrival: &Arrival,
    request: &mut impl AnyRequest,
    claims: Option<&Claims>,
) -> Result<Option<(&'a Arc<str>, By<'a>)>, Refusal> {
    let visit = arrival.visit();
    let connection = visit.connection();
    if request.method() == b"CONNECT" && request.target().path.is_empty() {
        // Nobody can be asked about what comes behind it: it is denied below.
        return Ok(None);
    }
    read(authorization, request, claims, |asked| {
        Ok(authorization.asks(authorizer, &connection, asked))
    })
}

/// Asks about a request, whose token says `claims`. Where paths matter, it goes on with the path that was
/// judged: what the application makes of another way to write it could be another path. Whoever
/// CUSTOM policies want asked has been.
pub(super) fn request(
    authorization: &Authorization,
    arrival: &Arrival,
    request: &mut impl AnyRequest,
    claims: Option<&Claims>,
) -> Result<Told, Refusal> {
    let visit = arrival.visit();
    if authorization.is_empty() {
        return Ok(None);
    }
    if authorization.asks_requests()
        && request.method() == b"CONNECT"
        && request.target().path.is_empty()
    {
        // What comes behind it is not looked into.
        judge(&visit, authorization, &Asks::<Parts>::Opaque)?;
    }
    read(authorization, request, claims, |asked| {
        Ok(judge(&visit, authorization, &Asks::Permitted(asked))?)
    })
}

/// Has a request judged in the form in which policies read it, and gives it the path that was judged.
fn read<H: AnyRequest, T>(
    authorization: &Authorization,
    request: &mut H,
    claims: Option<&Claims>,
    judge: impl FnOnce(&Request<'_, H>) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let (said, path) = {
        let asked = authorization.reading(&*request).map_err(Refusal::no_path)?;
        let asked = asked.with_claims(claims);
        let said = judge(&asked)?;
        (said, asked.rewritten().map(<[u8]>::to_vec))
    };
    if let Some(path) = path {
        request.set_path(&path);
    }
    Ok(said)
}

/// Waits until nothing may pass any more that `arrival` would carry to `pod`. Holds neither of them, nor
/// who waits for either.
pub(super) fn revoked(
    proxy: &Proxy,
    pod: &LocalPod,
    arrival: &Arrival,
) -> impl Future<Output = ()> + Send + use<> {
    let snapshots = proxy.snapshots.clone();
    let mut changes = snapshots.subscribe_policies();
    let (principal, client, app) = (arrival.principal.clone(), arrival.client, arrival.app);
    let uid = pod.uid.clone();
    async move {
        let visit = Visit { principal: principal.as_ref(), client, app };
        // Once at first: it was let in some time ago.
        changes.mark_changed();
        while changes.changed().await.is_ok() {
            // Of a pod that has gone, its release tells.
            let Some(workload) = newest_of(&snapshots, &uid) else { continue };
            let asked = judge(&visit, &workload.authorization, &Asks::<Parts>::Connection);
            if let Err(unauthorized) = asked {
                tracing::info!(%client, %app, error = %unauthorized, "connection cut");
                return;
            }
        }
        pending().await
    }
}

fn judge<H: AnyRequest>(
    visit: &Visit<'_>,
    authorization: &Authorization,
    asks: &Asks<'_, H>,
) -> Result<Told, Unauthorized> {
    if authorization.is_empty() {
        return Ok(None);
    }
    let connection = visit.connection();
    let decision = authorization.decide(&connection, asks);
    let is_denied = decision.verdict == Verdict::Deny;
    let denied = decision.by.filter(|_| is_denied);
    let (audit, dry_run) = (decision.audit, decision.dry_run.map(|(by, _)| by));
    let judgement = (is_denied || audit.is_some() || dry_run.is_some()).then(|| {
        Box::new(Judgement {
            denied: denied.as_ref().map(ruling),
            dry_run: dry_run.as_ref().map(ruling),
            audit: audit.as_ref().map(ruling),
        })
    });
    match is_denied {
        true => Err(Unauthorized { why: decision.to_string(), judgement }),
        false => Ok(judgement),
    }
}

/// Logs what policies want noted of it, and what those on trial would do.
pub(super) fn note(arrival: &Arrival, judgement: Option<&Judgement>) {
    let Some(Judgement { audit, dry_run, .. }) = judgement else { return };
    let (client, app) = (arrival.client, arrival.app);
    let principal = arrival.principal.as_ref().map(tracing::field::display);
    if let Some(Ruling { policy, rule }) = audit {
        tracing::info!(%client, principal, %app, %policy, rule, "an AUDIT policy matches");
    }
    if let Some(Ruling { policy, rule }) = dry_run {
        tracing::info!(%client, principal, %app, %policy, rule, "a policy on trial would deny it");
    }
}

fn ruling(by: &By<'_>) -> Ruling {
    Ruling { policy: by.name().clone(), rule: by.rule }
}
