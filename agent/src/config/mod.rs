//! Where snapshots come from.
//!
//! Enters: what users write, as Kubernetes YAML in a directory ([`files`]) or as objects of an API
//! server ([`kube`]). Leaves: [`crate::mesh::Snapshot`]s, published into a store, and the reason
//! when the newest change is not in force. Both sources read objects into the same facts, and
//! those are compiled in one way. A source alone parses configuration; it knows no eBPF, no mesh
//! TLS and no pod's sockets, and decides nothing about traffic.

mod compile;
mod directory;
mod endpoints;
mod error;
mod facts;
pub mod files;
pub mod kube;
mod manifest;
mod network_policy;
mod object;
mod peer_authentication;
mod protocol;
mod service;
mod shared;
mod state;
mod strict;
#[cfg(test)]
mod tests;
pub(crate) mod watch;
mod workload;
mod yaml;

pub use error::{ConfigError, Problem};
pub use state::{Origin, SourceState, WatchState};

use tokio::sync::watch::Receiver;

/// What keeps the snapshot up to date, until it is dropped.
#[derive(Debug)]
pub enum Source {
    /// A directory.
    Files(files::FileSource),
    /// An API server.
    Kube(kube::KubeSource),
}

impl Source {
    /// How it is doing, now and whenever that changes.
    pub fn state(&self) -> Receiver<SourceState> {
        match self {
            Self::Files(source) => source.state(),
            Self::Kube(source) => source.state(),
        }
    }
}
