//! Where snapshots come from.
//!
//! Enters: what users write, as Kubernetes YAML in a directory ([`files`]) or as objects of an API
//! server ([`kube`]). Leaves: [`crate::mesh::Snapshot`]s, published into a store, and the reason
//! when the newest change is not in force. Both sources read objects into the same facts, whose
//! changes are compiled in one way into patches of the snapshot before. A source alone parses configuration; it knows no eBPF, no mesh
//! TLS and no pod's sockets, and decides nothing about traffic.

mod authorization_policy;
mod compile;
mod directory;
mod error;
mod facts;
pub mod files;
mod foreign;
mod in_force;
pub mod kube;
mod manifest;
mod mesh_config;
mod network_policy;
mod object;
pub mod offline;
mod peer_authentication;
mod protocol;
mod request_authentication;
#[cfg(test)]
mod schemas;
mod security_kind;
mod selection;
mod service;
mod shared;
mod state;
mod strict;
mod template;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod validate;
pub(crate) mod watch;
mod workload;
mod yaml;

pub use error::{ConfigError, Problem};
pub use state::{Origin, SourceState, WatchState};

use std::sync::Arc;

use tokio::sync::watch::Receiver;

use crate::mesh::{RootNamespace, TrustDomain};

/// What every source needs to know beside what it reads.
#[derive(Clone, Debug, Default)]
pub struct MeshSettings {
    /// The root of trust of the cluster's workloads.
    pub trust_domain: TrustDomain,
    /// The namespace whose policies hold for all.
    pub root_namespace: RootNamespace,
    /// The name of the agent's node, whose pods more is to be known of than of others.
    pub node: Arc<str>,
}

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
