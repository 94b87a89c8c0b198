//! Requests, each judged and sent on by itself.
//!
//! Enters: a connection that speaks HTTP, or is declared to. Leaves: its requests, at the application
//! or on their way to one, and the spans of each. [`departing`] is the client's side and [`arriving`]
//! the server's; on one node a request passes both in one go. How HTTP itself works is
//! [`crate::http`]'s business.

mod arriving;
mod departing;
mod report;
mod upstream;

pub(super) use arriving::arriving;
pub(super) use departing::{First, asked_here, departing};
pub(super) use upstream::Upstream;

use std::{future::Future, sync::Arc};

use bytes::BytesMut;
use http::HeaderName;

use report::Report;

use super::{
    Io, Proxy,
    cut::Cut,
    refusal::Refusal,
    relay::{Early, relay},
};
use crate::{
    http::{Answer, AnyRequest, Ended, Fields, Target, Version},
    limits::{Limit, Share},
    telemetry::{Failure, Flow, TcpSpan},
};

/// Why an exchange did not end as its two ends wanted.
fn failure_of(ended: &Ended) -> Option<Failure> {
    match ended {
        Ended::Through => None,
        Ended::Unsent => Some(Failure::ConnectFailure),
        Ended::ClientGone(_) => Some(Failure::ResetLocal),
        Ended::ClientMalformed(_) => Some(Failure::MalformedRequest),
        Ended::Unanswered(_) | Ended::ServerGone(_) => Some(Failure::ResetRemote),
        Ended::ServerMalformed(_) => Some(Failure::MalformedResponse),
        Ended::Overfull => Some(Failure::BufferLimit),
    }
}

/// No more than the kind: addresses and identities of the mesh are not for whoever asks. Span and
/// log have the rest.
fn answer(status: u16, failure: Failure) -> Answer {
    let text = match failure {
        // As Envoy words it, and without a line's end.
        Failure::AuthzDenied => "RBAC: access denied".to_owned(),
        // As Envoy has it, which says nothing.
        Failure::ExtAuthzDenied | Failure::ExtAuthzError => String::new(),
        failure => format!("sluice: {}\n", failure.as_str()),
    };
    Answer::new(status, text)
}

/// Refuses a request that is one too many: each of HTTP/2 has a place of its own among connections,
/// since one connection carries as many as its client likes.
fn over(
    proxy: &Arc<Proxy>,
    cut: &Cut,
    limit: Limit,
    flow: impl FnOnce() -> Arc<Flow>,
    request: &mut impl AnyRequest,
) -> Answer {
    if !proxy.limits.refused(limit) {
        return answer(503, limit.into());
    }
    let flow = flow();
    tracing::warn!(client = %flow.client, server = %flow.server, pod = %flow.local.uid,
        reason = limit.as_str(), "requests are refused: {limit}");
    Report::new(proxy, cut.clone(), flow, request).refuse(Refusal::unavailable(limit.into(), limit))
}

/// Moves bytes between two ends that have agreed on something else than HTTP, until both are done or
/// `left` says that one is not there any more; what was read with the last heads comes first.
async fn tunnel(
    (client, from_client): (Io, BytesMut),
    (server, from_server): (Upstream, BytesMut),
    mut spans: Vec<TcpSpan>,
    buffered: &Arc<Share>,
    left: impl Future<Output = Failure>,
) -> Option<Limit> {
    let (from_client, from_server) = (from_client.freeze(), from_server.freeze());
    let early = Early { from_client, from_server, broke: None };
    let failure = relay(client, server.into_inner(), early, buffered, &mut spans, left).await;
    for span in spans {
        span.finish(failure);
    }
    (failure == Some(Failure::BufferLimit)).then_some(Limit::Buffered)
}

/// Stands for a request that could not be read.
struct Unreadable;

impl AnyRequest for Unreadable {
    fn method(&self) -> &[u8] {
        b""
    }

    fn target(&self) -> Target<'_> {
        Target::default()
    }

    fn version(&self) -> Version {
        Version::Http11
    }

    fn set_path(&mut self, _path: &[u8]) {}

    fn set_query(&mut self, _query: Option<&[u8]>) {}
}

impl Fields for Unreadable {
    fn values_of<'a>(&'a self, _name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        std::iter::empty()
    }

    fn remove(&mut self, _name: &str) {}

    fn add(&mut self, _name: &'static str, _value: &[u8]) {}

    fn add_field(&mut self, _name: &HeaderName, _value: &[u8]) {}

    fn each(&self, _show: &mut dyn FnMut(&[u8], &[u8])) {}
}
