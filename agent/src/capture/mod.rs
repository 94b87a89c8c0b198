//! Turns a pod's `connect()`, and every SYN that reaches the pod, into an accepted socket.
//!
//! Enters: which pods to enrol, each with its network namespace and addresses. Leaves: two
//! listeners a pod, whose accepted sockets have the original destination as their local and
//! the real source as their peer address, and a [`PodDialer`] for sockets inside the pod.
//! Connections of the node's kubelet to these pods pass by, where its cgroup is proven. The kernel
//! half is `agent-ebpf`. This room knows no policy, no telemetry, and of the mesh only a pod's UID.
//! It works without iptables, and no program of it runs per packet of a pod.

mod cgroup;
mod cgroup_ids;
mod dial;
mod enrol;
mod error;
mod host;
mod inventory;
mod keeping;
mod kernel_types;
mod kubelet;
mod log;
mod maps;
mod netlink;
mod netns;
mod network;
mod owner;
mod pins;
mod pod_cgroup;
mod probe;
mod process;
mod procfs;
mod programs;
mod routing;
mod sandbox;
mod settings;
mod sock_diag;
mod sockets;
mod start;
mod succession;
mod uninstall;
mod watcher;

pub use dial::PodDialer;
pub use enrol::{Capture, EnrolledPod};
pub use error::CaptureError;
pub use host::need_root;
pub use inventory::inventory;
pub use kubelet::{KubeletCgroup, KubeletSearch, Unproven};
pub use netns::Netns;
pub use owner::{NodeSockets, Stranger};
pub use probe::{Finding, Report, State, probe};
pub use sandbox::Sandboxes;
pub use sockets::{Accepted, accept};
pub use start::{CaptureOptions, Prepared, UnknownPods};
pub use uninstall::uninstall;
