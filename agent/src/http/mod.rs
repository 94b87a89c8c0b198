//! HTTP/1.1 and HTTP/2, request by request.
//!
//! Enters: a byte stream whose first bytes are HTTP, and a [`Handler`] that answers
//! requests. Leaves: requests on pooled upstream connections, bodies streamed and
//! counted, upgrades relayed. It knows no mesh, no eBPF and no TLS: where a request
//! goes is the [`Handler`]'s business.

mod body;
mod farewell;
mod fields;
mod pool;
mod prefixed;
mod prompt;
mod received;
mod requests;
mod serve;
mod sniff;
#[cfg(test)]
mod tests;
mod upgraded;

pub use body::{Body, Tap};
pub use fields::{forwardable, forwardable_request};
pub use pool::{Leaving, Pool, PoolKey, SendError, Stream, with_cause};
pub use prefixed::Prefixed;
pub use received::BodyError;
pub use serve::{Handler, becomes_streams, hold, plain, serve};
pub use sniff::{LONGEST_REQUEST_LINE, Protocol, Sniff, claims_http, is_likely_http, sniff};
pub use upgraded::{Carried, End, Upgraded};
