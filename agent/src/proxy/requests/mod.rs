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
pub(super) use departing::{First, departing};
use upstream::Upstream;

use std::{future::Future, sync::Arc};

use bytes::BytesMut;

use super::{
    Io,
    relay::{Early, Outcome, relay},
};
use crate::{
    http::{Answer, AnyRequest, Ended, Fields, Target, Version},
    limits::{Limit, Share},
    telemetry::{Failure, TcpSpan},
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
    Answer { status, text: format!("sluice: {}\n", failure.as_str()) }
}

/// Moves bytes between two ends that have agreed on something else than HTTP, until both are done or
/// `cut` says why they must be; what was read with the last heads comes first.
async fn tunnel(
    (client, from_client): (Io, BytesMut),
    (server, from_server): (Upstream, BytesMut),
    spans: Vec<TcpSpan>,
    buffered: &Arc<Share>,
    cut: impl Future<Output = Failure>,
) -> Option<Limit> {
    let early = Early { from_client: from_client.freeze(), from_server: from_server.freeze() };
    let Outcome { sent, received, failure } =
        relay(client, server.into_inner(), early, buffered, cut).await;
    for span in spans {
        span.finish(sent, received, failure);
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
}

impl Fields for Unreadable {
    fn values_of<'a>(&'a self, _name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        std::iter::empty()
    }

    fn remove(&mut self, _name: &str) {}

    fn add(&mut self, _name: &'static str, _value: &[u8]) {}
}
