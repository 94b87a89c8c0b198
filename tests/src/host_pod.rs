//! Processes on a node's own network that are not the node's root in its own cgroup: the kubelet,
//! processes of another user, of a pod that uses the node's network, or where the agent sees no
//! cgroup of theirs.

use std::{io, net::SocketAddr, os::fd::AsFd, path::Path, process::Command};

use anyhow::Context;
use nix::unistd::{Uid, fchown};
use socket2::{Domain, Type};
use tokio::net::{TcpSocket, TcpStream};

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
    /// What it is called, where somebody cares.
    pub called: Option<&'static str>,
}

impl HostProcess {
    /// The node's kubelet.
    pub const KUBELET: Self =
        Self { in_pod: false, user: 0, out_of_sight: false, called: Some("kubelet") };
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
    /// Starts one on `node`, in a cgroup that has its name.
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
        let sockets = Sockets::of_user(place.clone(), name, process.user, process.called);
        sockets.start()?;
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

    /// Its cgroup.
    pub fn cgroup(&self) -> &Path {
        self.place.cgroup().path()
    }

    /// Kills what runs there and removes the cgroup, as a service manager does when it stops a
    /// service.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn stop(self) -> anyhow::Result<()> {
        self.place.cgroup().delete()
    }

    /// Connects from there, with a socket that belongs to `user`, whoever made it.
    ///
    /// # Errors
    /// As `connect()` does, and when no socket can be had.
    pub async fn connect_as(&self, user: u32, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.sockets.open(Domain::for_address(to), Type::STREAM, None);
        let socket = socket.map_err(io::Error::other)?;
        fchown(socket.as_fd(), Some(Uid::from_raw(user)), None)?;
        TcpSocket::from_std_stream(socket.into()).connect(to).await
    }

    /// Connects from there.
    ///
    /// # Errors
    /// As `connect()` does, and when no socket can be had.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.sockets.connect(to).await
    }
}
