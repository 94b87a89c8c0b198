//! HTTP/1.1 and HTTP/2, request by request.
//!
//! Enters: a byte stream whose first bytes are HTTP, and a [`Handler`] that judges
//! requests. Leaves: requests on upstream connections, in HTTP/1 the client's own and in HTTP/2
//! shared ones, bodies streamed and counted, upgrades. It knows no mesh, no eBPF and no TLS: where a request
//! goes is the [`Handler`]'s business.

mod h1;
pub mod h2;
mod handler;
mod message;
#[cfg(test)]
mod oracle;
mod prefixed;
mod sniff;
mod stream;
mod target;

pub use h1::{Served, Tunnel, request_head, serve as http1};
pub use handler::{Answer, Ended, Handler, Route, Watch};
pub use message::{AnyRequest, AnyResponse, Fields, Version};
pub use prefixed::Prefixed;
pub use sniff::{Protocol, Sniff, claims_http, is_likely_http, sniff};
pub use stream::Stream;
pub use target::Target;
