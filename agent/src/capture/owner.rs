//! Whether a connection comes from the node itself.
//!
//! An address proves nothing: whoever may send raw packets can have any. What proves something is
//! the socket at the client's end, and the kernel is asked for that: exactly this four-tuple, in
//! the node's own network namespace. It knows which user made the socket, and in which cgroup,
//! which tells the node's processes from those of pods that use the node's network.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{
    cgroup,
    cgroup_ids::CgroupIds,
    error::{CaptureError, Step},
    netns::Netns,
    pod_cgroup,
    process::{self, Holder},
    sock_diag::{self, TcpSocket},
};
use crate::mesh::PodUid;

/// The sockets of the node's own network.
#[derive(Debug)]
pub struct NodeSockets {
    netns: Netns,
    /// `None` where no cgroup2 hierarchy can be seen.
    cgroups: Option<CgroupIds>,
    /// The last process that proved to be the node's. Held while searching: one at a time.
    known: Mutex<Option<u32>>,
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
        Ok(Self { netns, cgroups, known: Mutex::default() })
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

    /// The pod that the socket is of, if it is of one.
    fn pod_of(&self, socket: &TcpSocket) -> Result<Option<PodUid>, Stranger> {
        let path = match (socket.cgroup, &self.cgroups) {
            (Some(id), Some(cgroups)) => cgroups.path(id).map_err(Stranger::unknown)?,
            _ => None,
        };
        let several = cgroup::are_several().map_err(Stranger::unknown)?;
        match by_cgroup(path.as_deref(), several) {
            ByCgroup::Pod(uid) => Ok(Some(uid)),
            ByCgroup::Node => Ok(None),
            ByCgroup::Undecided => self.by_process(socket.inode),
        }
    }

    /// The pod of any process that holds the socket. Whoever proved to be the node's before is
    /// looked at first: that is the kubelet, nearly every time, and a search through all processes
    /// takes milliseconds.
    fn by_process(&self, inode: u32) -> Result<Option<PodUid>, Stranger> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = known.and_then(|id| process::holder(id, inode).ok().flatten());
        let holders = match holder {
            Some(holder) => vec![holder],
            None => process::holders(inode).map_err(Stranger::unknown)?,
        };
        let verdict = pod_of_holders(&holders)?;
        if verdict.is_none() {
            *known = holders.first().map(|holder| holder.id);
        }
        Ok(verdict)
    }
}

/// What the cgroup tells in which a socket was made.
#[derive(Debug, PartialEq, Eq)]
enum ByCgroup {
    Pod(PodUid),
    Node,
    Undecided,
}

/// `path` is in the hierarchy of version 2, where there may be several: then a pod's processes
/// may be in the pod's cgroup in the others alone, and in the runtime's own here.
fn by_cgroup(path: Option<&Path>, several: bool) -> ByCgroup {
    let Some(path) = path else { return ByCgroup::Undecided };
    match pod_cgroup::pod_of_path(&path.to_string_lossy()) {
        Some(uid) => ByCgroup::Pod(uid),
        None if several => ByCgroup::Undecided,
        None => ByCgroup::Node,
    }
}

fn pod_of_holders(holders: &[Holder]) -> Result<Option<PodUid>, Stranger> {
    if holders.is_empty() {
        return Err(Stranger::unknown(
            "no process that can be seen here holds it (hint: in a container, hostPID and \
             CAP_SYS_PTRACE)",
        ));
    }
    Ok(holders.iter().find_map(|holder| pod_cgroup::any_pod_of(&holder.cgroups)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11";
    const OTHER: &str = "0c1a2b3c-0000-4000-8000-000000000000";
    const NODE: &str = "0::/system.slice/kubelet.service\n";

    fn pod_of(holders: &[&str]) -> Result<Option<String>, String> {
        let holder = |(id, cgroups): (u32, &&str)| Holder { id, cgroups: (*cgroups).to_owned() };
        let holders: Vec<_> = (1..).zip(holders).map(holder).collect();
        let pod = pod_of_holders(&holders).map_err(|stranger| stranger.to_string())?;
        Ok(pod.map(|uid| uid.to_string()))
    }

    #[test]
    fn one_holder_in_a_pod_is_enough_to_be_a_pods_and_none_is_nobodys() {
        assert_eq!(pod_of(&[NODE]), Ok(None));
        let ours = format!("0::/kubepods/pod{UID}/a\n");
        assert_eq!(pod_of(&[NODE, &ours]), Ok(Some(UID.to_owned())));
        // Hierarchies that disagree name no one pod, and a pod all the same.
        let two = format!("{ours}1:cpu:/kubepods/pod{OTHER}/a\n");
        assert_eq!(pod_of(&[&two]), Ok(Some(UID.to_owned())));
        let old = format!("1:cpu:/kubepods/pod{OTHER}/a\n0::/system.slice/containerd.service\n");
        assert_eq!(pod_of(&[&old]), Ok(Some(OTHER.to_owned())));
        assert!(pod_of(&[]).unwrap_err().contains("(hint: "));
    }

    #[test]
    fn a_cgroup_of_version_2_decides_alone_only_where_it_is_the_only_one() {
        let runtime = Some(Path::new("/sys/fs/cgroup/system.slice/containerd.service"));
        assert_eq!(by_cgroup(runtime, false), ByCgroup::Node);
        assert_eq!(by_cgroup(runtime, true), ByCgroup::Undecided);
        let path = format!("/sys/fs/cgroup/unified/kubepods/burstable/pod{UID}/a");
        let uid = PodUid::new(UID).unwrap();
        for several in [false, true] {
            assert_eq!(by_cgroup(Some(Path::new(&path)), several), ByCgroup::Pod(uid.clone()));
            assert_eq!(by_cgroup(None, several), ByCgroup::Undecided);
        }
    }
}
