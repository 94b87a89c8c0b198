//! Processes on a node's own network that are not the node's root in its own cgroup: of another
//! user, of a pod that uses the node's network, or where the agent sees no cgroup of theirs.

use std::{io, net::SocketAddr, process::Command};

use anyhow::Context;
use tokio::net::TcpStream;

use crate::{
    node::Node,
    pod::uid_named,
    process::{Place, Process},
    sockets::Sockets,
};

/// What a process on a node's network is.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostProcess {
    /// Of a pod with `hostNetwork`, by its cgroup.
    pub in_pod: bool,
    /// The user who runs it; 0 is root.
    pub user: u32,
    /// In a cgroup beside the one that the node's agent is told of.
    pub out_of_sight: bool,
}

/// A process on a node's network, to connect from.
#[derive(Debug)]
pub struct HostPod {
    uid: String,
    name: String,
    place: Place,
    sockets: Sockets,
}

impl HostPod {
    /// Makes one on `node`.
    ///
    /// # Errors
    /// When the name is taken on the node, or the kernel refuses.
    pub fn on(node: &Node, name: &str, process: HostProcess) -> anyhow::Result<Self> {
        let uid = uid_named(&format!("{}-{name}", node.netns().name()));
        let cgroup = if process.in_pod {
            format!("kubepods/besteffort/pod{uid}/{name}")
        } else {
            name.to_owned()
        };
        let place = node.place_in(&cgroup, process.out_of_sight);
        let place = place.with_context(|| format!("could not make {name} on {}", node.name()))?;
        let sockets = Sockets::of_user(place.clone(), name, process.user);
        Ok(Self { uid, name: name.to_owned(), place, sockets })
    }

    /// The UID of the pod, where it is one.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Starts a process there, as root. What it connects, it holds itself; what comes from
    /// [`Self::connect`] was made there and is held by the test.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: Command) -> anyhow::Result<Process> {
        self.place.spawn(&self.name, command)
    }

    /// Connects from there.
    ///
    /// # Errors
    /// As `connect()` does, and when no socket can be had.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.sockets.connect(to).await
    }
}
