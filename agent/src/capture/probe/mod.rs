//! What capture needs of a node, found by trying it.
//!
//! Enters: the options that capture is started with. Leaves: a [`Report`]. Nothing is judged by
//! a version number, since distributions move features both ways: each is used, on throw-away
//! maps, programs and a network namespace without a name, all gone with the process or before.
//! Nothing is pinned, attached to a cgroup or locked, so an agent at work does not notice.
//!
//! What the agent needs, since which kernel, and what it does without it:
//!
//! | What | What for | Linux | Without it |
//! |---|---|---|---|
//! | cgroup2 | where the connect programs attach | 4.5 | none |
//! | a mount of cgroup2 | to name that place | | the agent mounts it for itself: `fsopen` (5.2) |
//! | bpffs | capture outlives the agent | 4.4 | none |
//! | `cgroup_sock_addr` programs, `connect4` and `connect6` | to mark what pods dial | 4.17 | none |
//! | `bpf_setsockopt` in them | the mark itself | 5.8 | none |
//! | `bpf_get_netns_cookie` in them | to know whose socket it is | 5.7 | none |
//! | `bpf_get_socket_cookie` in them | to know the agent's own | 4.18 | none |
//! | links of cgroup programs | to pin and replace them | 5.7 | none |
//! | `sk_lookup` programs with links, `bpf_sk_assign` in them | to hand SYNs to the agent | 5.9 | none |
//! | sockmaps that hold listeners | the agent's listeners | 5.7 | none |
//! | hash, LRU hash, array and per-CPU array maps | what the programs know | 4.10 | none |
//! | ring buffers | lines that the programs log | 5.8 | none |
//! | policy routing by mark, IPv4 and IPv6 | marked packets stay in the pod | 2.6 | none |
//! | `tcp_fwmark_accept`, `fwmark_reflect` | so do the answers to them | 3.16 | none |
//! | transparent sockets | both ends see each other's addresses | 2.6.28 | none |
//! | `cgroup_skb` programs, `bpf_get_socket_uid` in them | the kubelet's connections reach pods past the agent | 4.12 | the agent takes them |
//! | `sock_diag` for TCP | to know the kubelet's probes | 3.3 | those of pods under STRICT are refused |
//! | IPv6 | IPv6 of pods | 2.6 | IPv4 is captured; there is no IPv6 to capture |
//! | locked memory without limit | room for maps before Linux 5.11 | | newer kernels do not count it |
//! | BTF | to relocate programs | 5.2 | the programs need no relocation |
//! | JIT for eBPF | speed at `connect()` | 3.18 | the kernel interprets the programs |
//! | `CAP_SYS_PTRACE` | namespaces by their processes | | namespaces by their names in `/run/netns` |
//!
//! All that has no substitute is in Linux 5.10, the oldest kernel that is tested.

mod ebpf;
mod network;
mod node;
mod report;

use std::path::Path;

pub use report::{Finding, Report, State};

use super::{error::Step, netns::Netns};

/// Probes the node for a capture of `cgroup` with its pins at `bpffs`.
pub fn probe(cgroup: Option<&Path>, bpffs: &Path) -> Report {
    let mut report = Report::default();
    node::kernel(&mut report.area("kernel"));
    node::rights(&mut report.area("rights"));
    report.rights_are_known();
    node::file_systems(&mut report.area("file systems"), cgroup, bpffs);
    let netns = Netns::throw_away().step("make a network namespace");
    let object = ebpf::probe(&mut report.area("eBPF"), netns.as_ref().ok());
    network::probe(&mut report.area("network of a pod"), netns, object);
    report
}
