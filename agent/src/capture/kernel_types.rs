//! Spares a process the types of the kernel (BTF), of which the eBPF programs use none.
//!
//! aya's loader reads all of `/sys/kernel/btf/vmlinux` as soon as it is made, before it can be
//! told not to: nearly a third of the processor time that an agent's start takes.

use std::{io, panic::resume_unwind, thread};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Where Linux shows its types.
const TYPES: &str = "/sys/kernel/btf";

/// Runs `work` where the kernel's types are not to be seen, if the process may do that; where it
/// may not, all that is lost is time.
pub(super) fn unseen<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let hidden = || {
        let _ = hide();
        work()
    };
    thread::scope(|scope| scope.spawn(hidden).join().unwrap_or_else(|panic| resume_unwind(panic)))
}

/// Gives the calling thread mounts of its own, with nothing at [`TYPES`]; they go with it.
fn hide() -> io::Result<()> {
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is mounted from here on is mounted nowhere else.
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_SLAVE, NOTHING)?;
    mount(Some("none"), TYPES, Some("tmpfs"), MsFlags::MS_RDONLY, NOTHING)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn are_seen() -> bool {
        Path::new(TYPES).join("vmlinux").exists()
    }

    #[test]
    fn what_is_hidden_is_hidden_from_one_thread_alone() {
        let before = are_seen();
        // Only some may hide it.
        let seen = thread::spawn(|| hide().is_ok() && are_seen());
        assert!(!seen.join().expect("it does not panic"), "{TYPES} is there in spite of all");
        assert_eq!(unseen(|| 1 + 1), 2);
        assert_eq!(are_seen(), before);
    }
}
