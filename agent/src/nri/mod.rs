//! NRI, the container runtime's interface for plugins: learns of a pod's network namespace
//! before the pod's first container starts, so that its first connection is captured already.
//!
//! Enters: the runtime's socket. Leaves: [`Sandbox`]es, each of which the runtime holds back until
//! the handler is done with it. A trunk (`trunk.rs`) carries two logical connections, each
//! of which speaks ttrpc (`rpc.rs`); `messages.rs` is the part of NRI's protocol that we need,
//! from its `api.proto` (v1alpha1, the one there is; containerd 1.7 and CRI-O 1.26 have it,
//! containerd 2.0 has it on by default). This room knows nothing of capture and of the mesh.

mod messages;
mod plugin;
mod rpc;
#[cfg(test)]
mod tests;
mod trunk;

pub use plugin::{Plugin, PodEvents, Sandbox};

/// What ends a session with the runtime.
#[derive(Debug, thiserror::Error)]
pub enum NriError {
    /// No runtime listens there.
    #[error(
        "could not reach the container runtime's NRI socket {path}: {error} (hint: containerd 2 \
         and CRI-O listen there unless NRI is disabled in their configuration; in a container \
         the folder has to be mounted)"
    )]
    Unreachable {
        /// The socket.
        path: std::path::PathBuf,
        /// Why not.
        error: std::io::Error,
    },

    /// The connection broke, which a restart of the runtime does as well.
    #[error("the connection to the container runtime broke: {0}")]
    Broken(#[from] std::io::Error),

    /// The runtime closed the connection in order.
    #[error("the container runtime closed the connection")]
    Closed,

    /// What arrived is no NRI.
    #[error("the container runtime sent {0}")]
    Malformed(&'static str),

    /// The runtime does not want this plugin.
    #[error("the container runtime refused the plugin: {0}")]
    Refused(String),
}
