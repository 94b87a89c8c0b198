//! Where snapshots come from.
//!
//! Enters: what users write, today Kubernetes YAML in a directory ([`files`]). Leaves:
//! [`crate::mesh::Snapshot`]s, published into a store, and the reason when the newest
//! change is not in force. A source alone parses configuration; it knows no sockets, no
//! eBPF and no TLS, and decides nothing about traffic.

mod compile;
mod directory;
mod error;
pub mod files;
mod manifest;
mod protocol;
mod service;
mod strict;
#[cfg(test)]
mod tests;
mod watch;
mod workload;
mod yaml;

pub use error::{ConfigError, Problem};
