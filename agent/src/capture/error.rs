//! What can go wrong with capture, and what to do about it.

use std::{io, path::PathBuf};

use crate::{causes::causes, mesh::PodUid};

/// Capture could not be started or a pod not be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The process lacks the rights.
    #[error("capture needs root (hint: run as root, e.g. with sudo)")]
    NotRoot,

    /// The process lacks a capability.
    #[error(
        "capture needs {name} {purpose} (hint: run as root with all of root's capabilities; in a \
         container, `securityContext: {{privileged: true}}`, or {name} among those added)"
    )]
    NoCapability {
        /// Its name, as in capabilities(7).
        name: &'static str,
        /// What for, as in "to enter pods".
        purpose: &'static str,
    },

    /// Nobody mounted cgroup2, and it cannot be mounted privately either.
    #[error(
        "no cgroup2 hierarchy is mounted, and none can be mounted privately: {cause} (hint: \
         `mount -t cgroup2 none /sys/fs/cgroup/unified`, or a kernel with CONFIG_CGROUP_BPF; \
         --cgroup names one that is elsewhere)"
    )]
    NoCgroup2 {
        /// The kernel's words.
        cause: io::Error,
    },

    /// `--cgroup` names something else.
    #[error("{path} is not a cgroup2 directory (hint: `findmnt -t cgroup2` lists where they are)")]
    NotCgroup2 {
        /// What was named.
        path: PathBuf,
    },

    /// `--bpffs` is not inside a BPF file system.
    #[error("{path} is not inside a BPF file system (hint: `mount -t bpf bpf /sys/fs/bpf`)")]
    NotBpffs {
        /// What was named.
        path: PathBuf,
    },

    /// What an agent uses cannot be removed under it.
    #[error(
        "another agent uses {path} (hint: stop it first; --bpffs gives this one pins of its own)"
    )]
    InUse {
        /// The directory of pins.
        path: PathBuf,
    },

    /// One agent can stand by, no more.
    #[error(
        "another agent is about to take over {path} (hint: beside the one in charge one can stand \
         by: stop that first; --bpffs gives this one pins of its own)"
    )]
    LineIsFull {
        /// The directory of pins.
        path: PathBuf,
    },

    /// The agent's own sockets are not seen by the programs it attached.
    #[error(
        "the agent runs outside the cgroup it captures, {cgroup} (hint: start it inside, or leave \
         --cgroup out to capture from the root of the hierarchy)"
    )]
    OutsideCgroup {
        /// The cgroup the programs are attached to.
        cgroup: String,
    },

    /// A pod's network namespace is not what its source said.
    #[error("{path} is not the pod's network namespace: {why}")]
    WrongNetns {
        /// The namespace's file.
        path: PathBuf,
        /// What gave it away, with a hint.
        why: String,
    },

    /// No process of the pod is in a namespace that could be the pod's.
    #[error(
        "no process of pod {uid} is in a network namespace of its own here (hint: it may still be \
         starting; in a container, the agent sees the node's processes with hostPID alone)"
    )]
    NoSandbox {
        /// The pod.
        uid: PodUid,
    },

    /// What reaches the pod goes on to a virtual machine, past every socket of its namespace.
    #[error(
        "it is a virtual machine, by its interface {interface}: what goes to and from it is forwarded \
         through its network namespace, which is not captured (hint: label the pod \
         istio.io/dataplane-mode=none, or run it without a machine of its own)"
    )]
    VirtualMachine {
        /// The interface that leads there.
        interface: String,
    },

    /// As many pods as the maps have room for are enrolled.
    #[error("{} pods are enrolled, the most one agent can have", agent_common::MAX_PODS)]
    Full,

    /// The pods are another agent's by now.
    #[error("another agent of this node is in charge")]
    NotInCharge,

    /// A pin of a pod that another version made.
    #[error(
        "`{}` was pinned by another version, which alone knows how to undo it (hint: \
         `sluice uninstall` of that version, or a reboot)", path.display()
    )]
    UnreadPin {
        /// The pin.
        path: PathBuf,
    },

    /// The kernel refused the programs, their maps or their links.
    #[error("could not {step}: {cause} (hint: `sluice check` says what this node lacks)")]
    Ebpf {
        /// What was tried, as in "load the eBPF maps".
        step: String,
        /// The kernel's or the loader's own words, with their causes.
        cause: String,
    },

    /// A step that the kernel refused.
    #[error("could not {step}: {cause}")]
    Kernel {
        /// What was tried, as in "read network settings".
        step: String,
        /// The kernel's or the loader's own words, with their causes.
        cause: String,
    },
}

/// Says of a failed step what was tried.
pub(super) trait Step<T> {
    /// Turns the failure into [`CaptureError::Kernel`].
    fn step(self, step: impl Into<String>) -> Result<T, CaptureError>;
}

impl<T, E: std::error::Error> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, CaptureError> {
        self.map_err(|error| CaptureError::kernel(step, &error))
    }
}

impl CaptureError {
    /// A refused step of loading or attaching, with everything that caused it.
    pub(super) fn ebpf(step: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::Ebpf { step: step.into(), cause: causes(error) }
    }

    /// A refused step with everything that caused it.
    pub(super) fn kernel(step: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::Kernel { step: step.into(), cause: causes(error) }
    }
}

/// What is gone is as good as removed. ESRCH is netlink's word for a route that is not there.
pub(super) fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    let is_gone = |error: &io::Error| {
        error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
    };
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn what_somebody_else_removed_first_is_no_failure() {
        for gone in [libc::ENOENT, libc::ESRCH] {
            assert!(gone_is_fine(Err(io::Error::from_raw_os_error(gone))).is_ok());
        }
        assert!(gone_is_fine(Err(io::Error::from_raw_os_error(libc::EPERM))).is_err());
    }
}
