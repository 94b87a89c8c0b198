//! Whether a connection comes from the node itself.
//!
//! An address proves nothing: whoever may send raw packets can have any. What proves something is
//! the socket at the client's end, and the kernel is asked for that: exactly this four-tuple, in
//! the node's own network namespace. It knows which user made the socket, and in which cgroup,
//! which tells the node's processes from those of pods that use the node's network.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{
    cgroup,
    cgroup_ids::CgroupIds,
    error::{CaptureError, Step},
    netns::Netns,
    pod_cgroup, process,
    sock_diag::{self, TcpSocket},
};
use crate::mesh::PodUid;

/// The sockets of the node's own network.
#[derive(Debug)]
pub struct NodeSockets {
    netns: Netns,
    /// `None` where no cgroup2 hierarchy can be seen.
    cgroups: Option<CgroupIds>,
    /// One search through all processes at a time.
    searching: Mutex<()>,
}

/// Why a connection does not count as the node's own.
#[derive(Debug, thiserror::Error)]
pub enum Stranger {
    /// Another node's, a pod's, or one whose address was changed on its way.
    #[error("no socket of this node's own network is at the client's end")]
    Elsewhere,
    /// The client did not wait.
    #[error("the client has closed its socket, and whose it was cannot be told any more")]
    Closed,
    /// Of the node, and not of root.
    #[error("the client's socket is of user {uid} of this node, not of root")]
    NotRoot {
        /// The user.
        uid: u32,
    },
    /// Of a pod that uses the node's network.
    #[error("the client's socket is of pod {uid}, which uses the node's network")]
    Pod {
        /// The pod.
        uid: PodUid,
    },
    /// The kernel did not tell enough.
    #[error("whose the client's socket is cannot be told: {why}")]
    Unknown {
        /// What is missing, with a hint.
        why: String,
    },
}

impl Stranger {
    /// In one word, for metrics.
    pub fn as_str(&self) -> &'static str {
        Self::WORDS[self.index()]
    }

    /// Every word there is.
    pub const WORDS: [&'static str; 5] = ["elsewhere", "closed", "not_root", "pod", "unknown"];

    /// Which of [`Self::WORDS`] it is.
    pub fn index(&self) -> usize {
        match self {
            Self::Elsewhere => 0,
            Self::Closed => 1,
            Self::NotRoot { .. } => 2,
            Self::Pod { .. } => 3,
            Self::Unknown { .. } => 4,
        }
    }

    /// No answer counts as a no.
    pub fn unknown(why: impl ToString) -> Self {
        Self::Unknown { why: why.to_string() }
    }
}

impl NodeSockets {
    /// Those of the namespace at `netns`, or of the agent's own; cgroups are looked for below
    /// `cgroup`, or where cgroup2 is mounted.
    ///
    /// # Errors
    /// When `netns` is no network namespace.
    pub fn open(netns: Option<&Path>, cgroup: Option<&Path>) -> Result<Self, CaptureError> {
        let path = netns.unwrap_or(Path::new("/proc/self/ns/net"));
        let step = || format!("enter the node's network namespace at {}", path.display());
        let netns = Netns::open(path).step(step())?;
        netns.run(|| Ok(())).step(step())?;
        let cgroups: Option<PathBuf> = cgroup.map(Path::to_owned).or_else(cgroup::mounted);
        let cgroups = cgroups.map(CgroupIds::below);
        Ok(Self { netns, cgroups, searching: Mutex::default() })
    }

    /// Proves that the connection from `client` to `server` is one of a root process of the node
    /// itself, outside every pod. May block: on searches through cgroups or processes.
    ///
    /// # Errors
    /// When it is not, or that cannot be told.
    pub fn prove(&self, client: SocketAddr, server: SocketAddr) -> Result<(), Stranger> {
        let found = self.netns.run(|| sock_diag::find(client, server)).map_err(|error| {
            Stranger::unknown(format!("{error} (hint: `sluice check` tries sock_diag)"))
        })?;
        let socket = found.ok_or(Stranger::Elsewhere)?;
        if !socket.is_open {
            return Err(Stranger::Closed);
        }
        if socket.uid != 0 {
            return Err(Stranger::NotRoot { uid: socket.uid });
        }
        match self.pod_of(&socket)? {
            None => Ok(()),
            Some(uid) => Err(Stranger::Pod { uid }),
        }
    }

    /// The pod in which the socket was made; where the kernel does not name its cgroup, the pod of
    /// any process that holds it.
    fn pod_of(&self, socket: &TcpSocket) -> Result<Option<PodUid>, Stranger> {
        if let (Some(id), Some(cgroups)) = (socket.cgroup, &self.cgroups) {
            let found = cgroups.path(id).map_err(Stranger::unknown)?;
            if let Some(path) = found {
                return Ok(pod_cgroup::pod_of_path(&path.to_string_lossy()));
            }
        }
        let holders = {
            let _one = self.searching.lock().unwrap_or_else(PoisonError::into_inner);
            process::cgroups_of_holders(socket.inode)
        };
        pod_of_holders(holders)
    }
}

fn pod_of_holders(holders: io::Result<Vec<String>>) -> Result<Option<PodUid>, Stranger> {
    let holders = holders.map_err(Stranger::unknown)?;
    if holders.is_empty() {
        return Err(Stranger::unknown(
            "no process that can be seen here holds it (hint: in a container, hostPID and \
             CAP_SYS_PTRACE)",
        ));
    }
    Ok(holders.iter().find_map(|cgroups| pod_cgroup::any_pod_of(cgroups)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "0::/kubepods/pod6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11/a\n";
    const OTHER: &str = "1:cpu:/kubepods/pod0c1a2b3c-0000-4000-8000-000000000000/a\n";
    const NODE: &str = "0::/system.slice/kubelet.service\n";

    fn verdict(holders: &[&str]) -> Result<Option<String>, String> {
        let holders = holders.iter().map(|&holder| holder.to_owned()).collect();
        let pod = pod_of_holders(Ok(holders)).map_err(|stranger| stranger.to_string())?;
        Ok(pod.map(|uid| uid.to_string()))
    }

    #[test]
    fn one_holder_in_a_pod_is_enough_to_be_a_pods_and_none_is_nobodys() {
        assert_eq!(verdict(&[NODE]), Ok(None));
        let uid = Some("6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11".to_owned());
        assert_eq!(verdict(&[NODE, POD]), Ok(uid.clone()));
        // Hierarchies that disagree name no one pod, and a pod all the same.
        assert_eq!(verdict(&[&format!("{POD}{OTHER}")]), Ok(uid));
        assert!(verdict(&[]).unwrap_err().contains("(hint: "));
        let error = pod_of_holders(Err(io::ErrorKind::PermissionDenied.into())).unwrap_err();
        assert_eq!(error.as_str(), "unknown");
    }
}
