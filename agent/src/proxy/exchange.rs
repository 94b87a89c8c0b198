//! One HTTP request and its response under one span.

use std::{
    fmt,
    future::Future,
    mem,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri};

use super::{Proxy, cut::Cut};
use crate::{
    http::{
        Body, BodyError, Carried, End, SendError, Tap, Upgraded, becomes_streams, forwardable,
        forwardable_request, hold, plain, with_cause,
    },
    identity::IdentityError,
    limits::{Limit, Limits},
    telemetry::{Cause, Failure, Flow, HttpSpan, TcpSpan, Telemetry},
};

/// Why the agent answers a request itself.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) failure: Failure,
    pub(super) message: String,
}

impl Refusal {
    /// The next hop could not be reached or did not answer as HTTP.
    pub(super) fn unavailable(failure: Failure, cause: impl fmt::Display) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, failure, message: cause.to_string() }
    }

    /// A pod of this node has no valid certificate.
    pub(super) fn uncertified(missing: IdentityError) -> Self {
        Self::unavailable(Failure::CertificateMissing, missing)
    }
}

impl From<SendError<Refusal>> for Refusal {
    fn from(error: SendError<Refusal>) -> Self {
        match error {
            SendError::Connect(refusal) => refusal,
            SendError::Exchange(error) => Self {
                status: StatusCode::BAD_GATEWAY,
                failure: Failure::ResetRemote,
                message: format!("the server broke off: {}", with_cause(&error)),
            },
        }
    }
}

/// Answers a request that has a `place` of its own among connections, as each of HTTP/2 has: one
/// connection carries as many as its client likes. Without one, it is refused.
pub(super) async fn in_place<P, Answered>(
    proxy: &Proxy,
    place: Result<P, Limit>,
    flow: impl FnOnce() -> Arc<Flow>,
    cut: &Cut,
    request: Request<Body>,
    answer: impl FnOnce(Request<Body>) -> Answered,
) -> Response<Body>
where
    P: Send + Sync + 'static,
    Answered: Future<Output = Response<Body>>,
{
    match place {
        Ok(place) => {
            let connects = request.method() == Method::CONNECT;
            hold(place, connects, answer(request).await)
        }
        Err(limit) if proxy.limits.refused(limit) => {
            let flow = flow();
            tracing::warn!(client = %flow.client, server = %flow.server, pod = %flow.local.uid,
                reason = limit.as_str(), "requests are refused: {limit}");
            let refusal = Refusal::unavailable(limit.into(), limit);
            exchange(proxy, &flow, cut, request, |_| async { Err(refusal) }).await
        }
        Err(limit) => refused(StatusCode::SERVICE_UNAVAILABLE, limit.into()),
    }
}

/// No more than the kind: addresses and identities of the mesh are not for whoever asks. Span and
/// log have the rest.
fn refused(status: StatusCode, failure: Failure) -> Response<Body> {
    plain(status, format!("sluice: {}\n", failure.as_str()))
}

/// Passes `request` to `send` and its response back, recording both as one span on behalf of
/// the flow's local workload. The next hop becomes the span's child. `cut` says why where it does not get
/// to its end.
pub(super) async fn exchange<Sent>(
    proxy: &Proxy,
    flow: &Arc<Flow>,
    cut: &Cut,
    request: Request<Body>,
    send: impl FnOnce(Request<Body>) -> Sent,
) -> Response<Body>
where
    Sent: Future<Output = Result<Response<Body>, Refusal>>,
{
    let (mut parts, body) = request.into_parts();
    let span = proxy.telemetry.http_request(flow, &mut parts);
    forwardable_request(&mut parts.headers);
    name_the_host(&mut parts, flow.server);
    origin_form(&mut parts);
    if parts.version == http::Version::HTTP_10 {
        parts.version = http::Version::HTTP_11;
    }
    let sent = Arc::new(Progress::default());
    let limits = proxy.limits.clone();
    let connects = parts.method == Method::CONNECT;
    let mut watch = Watch {
        span: Some(span),
        sent: sent.clone(),
        received: 0,
        limits,
        flow: flow.clone(),
        cut: cut.clone(),
    };
    let request = Request::from_parts(parts, body.tapped(sent.clone()));
    match send(request).await {
        Ok(mut response) => {
            strip_connection_fields(&mut response);
            let (parts, body) = response.into_parts();
            watch.begin(&parts);
            let mut response = Response::from_parts(parts, body);
            if becomes_streams(connects, &response) {
                watch.upgraded(&proxy.telemetry, &mut response);
            }
            response.map(|body| body.tapped(watch))
        }
        Err(refusal) => {
            let Refusal { status, failure, message } = sent.explain(refusal);
            tracing::debug!(error = %message, "request refused");
            let (parts, body) = refused(status, failure).into_parts();
            watch.begin(&parts);
            watch.finish(Some(failure));
            Response::from_parts(parts, body)
        }
    }
}

/// How far the request's body came.
#[derive(Default)]
struct Progress {
    bytes: AtomicU64,
    broken: AtomicBool,
    overfull: AtomicBool,
}

impl Progress {
    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A request whose body broke off, or is not framed as HTTP says, ends the exchange with
    /// the server too. That is neither the server's doing nor what it was asked for.
    fn blame(&self, failure: Option<Failure>) -> Option<Failure> {
        match failure {
            _ if self.overfull.load(Ordering::Relaxed) => Some(Failure::BufferLimit),
            None | Some(Failure::ResetRemote) if self.broken.load(Ordering::Relaxed) => {
                Some(Failure::ResetLocal)
            }
            other => other,
        }
    }

    fn explain(&self, refusal: Refusal) -> Refusal {
        if self.blame(Some(refusal.failure)) == Some(refusal.failure) {
            return refusal;
        }
        if self.overfull.load(Ordering::Relaxed) {
            return Refusal::unavailable(Failure::BufferLimit, Limit::Buffered);
        }
        Refusal {
            status: StatusCode::BAD_REQUEST,
            failure: Failure::ResetLocal,
            message: "the request's body broke off or is not framed as HTTP says".into(),
        }
    }
}

impl Tap for Arc<Progress> {
    fn data(&mut self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn broken(&mut self, error: &BodyError) {
        let how = match error {
            BodyError::Broken(_) => &self.broken,
            BodyError::Overfull => &self.overfull,
        };
        how.store(true, Ordering::Relaxed);
    }
}

impl Carried for TcpSpan {
    fn moved(&mut self, sent: u64, received: u64) {
        self.moved(sent, received);
    }

    fn ended(self: Box<Self>, broke: Option<End>) {
        self.finish(broke.map(|end| match end {
            End::Client => Failure::ResetLocal,
            End::Server => Failure::ResetRemote,
        }));
    }
}

/// Follows a response body and ends the span with it.
struct Watch {
    span: Option<HttpSpan>,
    sent: Arc<Progress>,
    received: u64,
    flow: Arc<Flow>,
    limits: Arc<Limits>,
    cut: Cut,
}

impl Watch {
    fn begin(&mut self, response: &http::response::Parts) {
        if let Some(span) = &mut self.span {
            span.response(response);
        }
    }

    /// Ends the span at the head; what follows is a connection of its own.
    fn upgraded(&mut self, telemetry: &Telemetry, response: &mut Response<Body>) {
        let Some(http) = self.span.take() else { return };
        let connection = telemetry.upgraded_connection(&self.flow, &http);
        http.finish(self.sent.bytes(), 0, None);
        Upgraded::follow(response, connection.cut_by(self.cut.cause()));
    }

    fn finish(&mut self, failure: Option<Failure>) {
        let Some(span) = self.span.take() else { return };
        let failure = match self.sent.blame(failure) {
            // Neither end would have broken off.
            Some(Failure::ResetLocal | Failure::ResetRemote) if let Some(why) = self.cut.why() => {
                Some(why)
            }
            failure => failure,
        };
        if failure == Some(Failure::BufferLimit) {
            self.limits.overfull(&self.flow.local.uid);
        }
        span.finish(self.sent.bytes(), self.received, failure);
    }
}

impl Tap for Watch {
    fn data(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(span) = &mut self.span {
            span.trailers(trailers);
        }
    }

    fn complete(&mut self) {
        self.finish(None);
    }

    fn broken(&mut self, error: &BodyError) {
        self.finish(Some(match error {
            BodyError::Broken(_) => Failure::ResetRemote,
            BodyError::Overfull => Failure::BufferLimit,
        }));
    }
}

impl Drop for Watch {
    /// The client went away before the response was through, or it was cut.
    fn drop(&mut self) {
        self.finish(Some(Failure::ResetLocal));
    }
}

/// Every request names its host on the next hop: HTTP/1.0 need not, and HTTP/2 may do so with
/// a Host field instead of `:authority` (RFC 9113 §8.3.1).
fn name_the_host(parts: &mut http::request::Parts, dialled: SocketAddr) {
    if parts.uri.authority().is_some() {
        return;
    }
    let dialled = || HeaderValue::from_str(&dialled.to_string()).ok();
    let Some(host) = parts.headers.get(header::HOST).cloned().or_else(dialled) else { return };
    if parts.version == http::Version::HTTP_2 {
        let mut named = mem::take(&mut parts.uri).into_parts();
        named.scheme = Some(uri::Scheme::HTTP);
        named.authority = uri::Authority::try_from(host.as_bytes()).ok();
        parts.uri = Uri::from_parts(named).unwrap_or_default();
    } else {
        parts.headers.entry(header::HOST).or_insert(host);
    }
}

/// A server is asked in origin form (RFC 9112 §3.2.1); what an absolute target names replaces
/// the Host field (§3.2.2). HTTP/2 keeps its `:authority` and `:scheme`.
fn origin_form(parts: &mut http::request::Parts) {
    if parts.version == http::Version::HTTP_2 || parts.method == Method::CONNECT {
        return;
    }
    let Some(authority) = parts.uri.authority() else { return };
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        parts.headers.insert(header::HOST, host);
    }
    let mut origin = uri::Parts::default();
    origin.path_and_query =
        parts.uri.path_and_query().cloned().or_else(|| Some(uri::PathAndQuery::from_static("/")));
    if let Ok(origin) = Uri::from_parts(origin) {
        parts.uri = origin;
    }
}

fn strip_connection_fields(response: &mut Response<Body>) {
    // The server's framing of an HTTP/1.0 or chunked response ends at this hop; the
    // client's is chosen anew.
    forwardable(response.headers_mut());
    *response.version_mut() = http::Version::default();
}
