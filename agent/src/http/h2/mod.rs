//! HTTP/2, stream by stream: one of a client's, and one of a server's for it.
//!
//! Enters: a client's connection ([`serve`]), and what decides about its requests. Leaves: each
//! request on a connection of the [`Pool`], DATA as it came, under flow control that couples both
//! sides: a reader that stands still holds back its own stream, and what waits for it is counted.
//! Resets, refusals and trailers pass as what they are. No PING asks whether anybody is there:
//! servers punish them, and a peer that vanished is noticed by TCP, or by the tunnel that leads to it.

mod answer;
mod beginning;
mod connection;
mod exchange;
mod farewell;
mod head;
mod limits;
mod passage;
mod passing;
mod piece;
mod pool;
mod serve;

#[cfg(test)]
mod tests;

pub use pool::{Pool, PoolKey, Shared};
pub use serve::serve;
