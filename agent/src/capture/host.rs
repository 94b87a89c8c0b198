//! What capture needs of the node: rights and bpffs.

use std::{fs, path::Path};

use nix::{
    sys::{
        resource::{RLIM_INFINITY, Resource, setrlimit},
        statfs::{BPF_FS_MAGIC, statfs},
    },
    unistd::{AccessFlags, access, geteuid},
};
use rustix::thread::{CapabilitySet, capabilities};

use super::error::{CaptureError, Step};

/// A capability and what it is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capability {
    pub(super) name: &'static str,
    pub(super) purpose: &'static str,
    flag: CapabilitySet,
}

/// What the agent cannot do without. `CAP_BPF` is not among them: `CAP_SYS_ADMIN` has to be
/// there for the namespaces and holds all of it.
pub(super) const NEEDED: [Capability; 2] = [
    Capability {
        name: "CAP_SYS_ADMIN",
        purpose: "to load eBPF programs and to enter pods",
        flag: CapabilitySet::SYS_ADMIN,
    },
    Capability {
        name: "CAP_NET_ADMIN",
        purpose: "to attach programs, and for marks and routes in pods",
        flag: CapabilitySet::NET_ADMIN,
    },
];

/// Finds a pod's namespace by a process of it that another user runs.
pub(super) const TRACE: Capability = Capability {
    name: "CAP_SYS_PTRACE",
    purpose: "to find a pod's namespace by its processes",
    flag: CapabilitySet::SYS_PTRACE,
};

impl Capability {
    /// Whether this process has it, in effect.
    ///
    /// # Errors
    /// When it has not.
    pub(super) fn need(self) -> Result<(), CaptureError> {
        let Self { name, purpose, flag } = self;
        match capabilities(None).step("read the process's capabilities")? {
            has if has.effective.contains(flag) => Ok(()),
            _ => Err(CaptureError::NoCapability { name, purpose }),
        }
    }
}

/// Refuses to go on without root and its rights, and lifts the limit kernels before 5.11 charge
/// maps to.
///
/// # Errors
/// When the process is not root's, or lacks a capability.
pub fn need_root() -> Result<(), CaptureError> {
    need_user_root()?;
    NEEDED.into_iter().try_for_each(Capability::need)?;
    // Newer kernels do not need it, so a refusal is no error here; loading tells.
    let _ = lift_memory_limit();
    Ok(())
}

/// Refuses every user but root: the files the agent works on are root's.
pub(super) fn need_user_root() -> Result<(), CaptureError> {
    if geteuid().is_root() { Ok(()) } else { Err(CaptureError::NotRoot) }
}

/// Lifts the limit of locked memory, which kernels before 5.11 charge maps to.
pub(super) fn lift_memory_limit() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)
}

/// Makes sure that `directory` is inside a BPF file system that can be written to, whether it
/// exists yet or not.
pub(super) fn need_bpffs(directory: &Path) -> Result<(), CaptureError> {
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    if !statfs(existing).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Err(CaptureError::NotBpffs { path: directory.to_owned() });
    }
    access(existing, AccessFlags::W_OK).step(format!("write to {}", existing.display()))
}

/// Creates `directory` inside a BPF file system.
pub(super) fn bpffs(directory: &Path) -> Result<(), CaptureError> {
    need_bpffs(directory)?;
    fs::create_dir_all(directory).step(format!("create {}", directory.display()))
}
