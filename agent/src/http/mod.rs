//! HTTP/1.1 and HTTP/2, request by request.
//!
//! Enters: a byte stream whose first bytes are HTTP, and a [`Handler`] that answers
//! requests. Leaves: requests on pooled upstream connections, bodies streamed and
//! counted, upgrades relayed. It knows no mesh, no eBPF and no TLS: where a request
//! goes is the [`Handler`]'s business.

mod body;
mod farewell;
mod fields;
mod h1;
mod handler;
mod message;
mod pool;
mod prefixed;
mod prompt;
mod received;
mod requests;
mod serve;
mod sniff;
mod stream;
mod target;
#[cfg(test)]
mod tests;

pub use body::{Body, Tap};
pub use fields::{forwardable, forwardable_request};
pub use h1::{Served, serve as http1};
pub use handler::{Answer, Ended, Handler, Route, Watch};
pub use message::{AnyRequest, AnyResponse, Fields, Version};
pub use pool::{Pool, PoolKey, SendError, with_cause};
pub use prefixed::Prefixed;
pub use received::BodyError;
pub use serve::{Handler as Http2Handler, Upgraded, hold, plain, serve};
pub use sniff::{LONGEST_REQUEST_LINE, Protocol, Sniff, sniff};
pub use stream::Stream;
pub use target::Target;
