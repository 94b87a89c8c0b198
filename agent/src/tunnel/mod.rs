//! HBONE: byte streams between nodes, in mutual TLS and HTTP/2 CONNECT.
//!
//! Enters: a TCP connection or the means to dial one, and a TLS configuration. Leaves:
//! [`HboneStream`]s, each to one address beyond the peer, and who the peer is. Knows no
//! eBPF, no snapshot and no policy.

mod ahead;
mod connection;
mod error;
mod limits;
mod pool;
mod server;
mod stream;
mod unsent;
mod usage;
mod window;

#[cfg(test)]
mod tests;

pub use connection::ConnectRequest;
pub use error::TunnelError;
pub use limits::SEND_BUFFER;
pub use pool::{HbonePool, Made, PoolKey, PoolOptions};
pub use server::{Connect, serve};
pub use stream::HboneStream;
