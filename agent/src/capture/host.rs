//! What capture needs of the node: rights, cgroup2 and bpffs.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use nix::{
    sys::{
        resource::{RLIM_INFINITY, Resource, setrlimit},
        statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
    },
    unistd::geteuid,
};

use super::error::{CaptureError, Step};

/// Refuses to go on without root, and lifts the limit kernels before 5.11 charge maps to.
///
/// # Errors
/// When the process is not root's.
pub fn need_root() -> Result<(), CaptureError> {
    if !geteuid().is_root() {
        return Err(CaptureError::NotRoot);
    }
    // Newer kernels do not need it, so a refusal is no error here; loading tells.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    Ok(())
}

/// The cgroup2 directory to attach to: the one asked for, else the root of the hierarchy.
pub(super) fn cgroup(asked: Option<&Path>) -> Result<(PathBuf, File), CaptureError> {
    let path = match asked {
        Some(path) => path.to_owned(),
        None => mounted_cgroup2().ok_or(CaptureError::NoCgroup2)?,
    };
    if !statfs(&path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        return Err(CaptureError::NotCgroup2 { path });
    }
    let directory = File::open(&path).step(format!("open {}", path.display()))?;
    Ok((path, directory))
}

fn mounted_cgroup2() -> Option<PathBuf> {
    first_cgroup2(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// The first mount point of type cgroup2 (proc_pid_mountinfo(5): the file system type is the
/// first field after the dash).
fn first_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next() == Some("cgroup2"))
            .then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Creates `directory` inside a BPF file system.
pub(super) fn bpffs(directory: &Path) -> Result<(), CaptureError> {
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    if !statfs(existing).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Err(CaptureError::NotBpffs { path: directory.to_owned() });
    }
    fs::create_dir_all(directory).step(format!("create {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_on_unified_and_hybrid_nodes() {
        let unified = "24 30 0:22 / /proc rw shared:5 - proc proc rw\n\
                       30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(first_cgroup2(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = "31 23 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      32 31 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      33 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(first_cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(first_cgroup2("32 31 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw\n"), None);
    }
}
