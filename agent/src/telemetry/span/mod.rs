//! Spans: opened when a connection or request arrives, encoded once, when it ends.

mod described;
mod http;
mod tcp;
#[cfg(test)]
mod tests;
mod url;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use self::{
    http::HttpSpan,
    tcp::{Cause, TcpSpan},
};
use super::{
    context::{SpanContext, SpanId},
    flow::{Failure, Flow, Reporter},
    semconv as key,
    wire::{self, Attributes},
};

/// `Span.flags`: whether the parent is remote is known, and it is.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;
const STATUS_ERROR: u64 = 2;

/// A span's place in its trace and in time.
#[derive(Debug)]
struct Place {
    context: SpanContext,
    parent: Option<SpanId>,
    /// The local span this one continues; it is then the parent too.
    continues: Option<SpanContext>,
    began: SystemTime,
}

impl Place {
    /// Appends one `ScopeSpans.spans` field to `out`. `error` is what there is to say of a
    /// failure, which may be nothing.
    fn encode(
        &self,
        out: &mut Vec<u8>,
        reporter: Reporter,
        name: impl fmt::Display,
        lasted: Duration,
        error: Option<&str>,
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let Self { context, parent, continues, began } = self;
        let began = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        wire::nested(out, 2, |out| {
            wire::bytes(out, 1, &context.trace_id.0);
            wire::bytes(out, 2, &context.span_id.0);
            let state = context.state.as_str();
            if !state.is_empty() {
                wire::bytes(out, 3, state.as_bytes());
            }
            if let Some(parent) = parent {
                wire::bytes(out, 4, &parent.0);
            }
            wire::display(out, 5, name);
            wire::uint(
                out,
                6,
                match reporter {
                    Reporter::Destination => 2,
                    Reporter::Source => 3,
                },
            );
            wire::fixed64(out, 7, nanoseconds(began));
            wire::fixed64(out, 8, nanoseconds(began + lasted));
            attributes(&mut Attributes::new(out, 9));
            if let Some(other) = continues {
                wire::nested(out, 13, |out| {
                    wire::bytes(out, 1, &other.trace_id.0);
                    wire::bytes(out, 2, &other.span_id.0);
                    wire::fixed32(out, 6, u32::from(other.flags) | HAS_IS_REMOTE);
                });
            }
            if let Some(message) = error {
                wire::nested(out, 15, |out| {
                    if !message.is_empty() {
                        wire::bytes(out, 2, message.as_bytes());
                    }
                    wire::uint(out, 3, STATUS_ERROR);
                });
            }
            let remote = if parent.is_some() && continues.is_none() { IS_REMOTE } else { 0 };
            wire::fixed32(out, 16, u32::from(context.flags) | HAS_IS_REMOTE | remote);
        });
    }
}

/// Unix time in nanoseconds; u64 lasts until 2554.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What spans of both layers say about the connection.
fn connection_attributes(attributes: &mut Attributes<'_>, flow: &Flow) {
    attributes.display(key::NETWORK_PEER_ADDRESS, flow.peer.ip().to_canonical());
    attributes.int(key::NETWORK_PEER_PORT, flow.peer.port().into());
    if flow.reporter == Reporter::Destination {
        attributes.display(key::CLIENT_ADDRESS, flow.client.ip().to_canonical());
    }
    if let Some(principal) = &flow.source_principal {
        attributes.display(key::MESH_SOURCE_PRINCIPAL, principal);
    }
    if let Some(principal) = &flow.destination_principal {
        attributes.display(key::MESH_DESTINATION_PRINCIPAL, principal);
    }
    attributes.text(key::MESH_SECURITY_POLICY, flow.security.as_str());
    attributes.bool(key::MESH_SAME_NODE, flow.same_node);
}

/// `ipv4` or `ipv6`, as `network.type` has it.
fn network_type(address: SocketAddr) -> &'static str {
    match address.ip().to_canonical() {
        IpAddr::V4(_) => "ipv4",
        IpAddr::V6(_) => "ipv6",
    }
}

/// A server that refuses by policy has done its job: its span is no error.
fn is_error(failure: Failure, reporter: Reporter) -> bool {
    let is_verdict =
        matches!(failure, Failure::AuthzDenied | Failure::JwtDenied | Failure::ExtAuthzDenied);
    !(is_verdict && reporter == Reporter::Destination)
}
