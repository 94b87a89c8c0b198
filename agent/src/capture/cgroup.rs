//! The cgroup2 directory whose processes are captured, also where nobody mounted cgroup2.

use std::{
    cmp::Reverse,
    fmt,
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsmount, fsopen,
};

use super::error::{CaptureError, Step};

/// Where the kernel lists the mounts that this process sees, and those that the node's own
/// first process sees.
const MOUNTS: &str = "/proc/self/mountinfo";
const MOUNTS_OF_INIT: &str = "/proc/1/mountinfo";

/// Options that belong to the hierarchy and not to one mount of it.
const HIERARCHY_OPTIONS: [&str; 6] = [
    "nsdelegate",
    "favordynmods",
    "memory_localevents",
    "memory_recursiveprot",
    "memory_hugetlb_accounting",
    "pids_localevents",
];

/// The number every kernel gives the first cgroup namespace (`PROC_CGROUP_INIT_INO`).
const FIRST_NAMESPACE: &str = "cgroup:[4026531835]";

/// An open cgroup2 directory, for programs to attach to.
#[derive(Debug)]
pub(super) struct Cgroup {
    place: Place,
    directory: OwnedFd,
    /// Taken for the root of the hierarchy and perhaps only the root of what is seen of it.
    is_partial: bool,
}

#[derive(Debug)]
enum Place {
    Mounted(PathBuf),
    /// The root of the hierarchy, by a mount that only this process has.
    Private,
}

impl Cgroup {
    /// The directory asked for, else the root of the hierarchy.
    pub(super) fn open(asked: Option<&Path>) -> Result<Self, CaptureError> {
        if let Some(path) = asked {
            return Self::at(path.to_owned(), false);
        }
        match widest_cgroup2(&mounts(MOUNTS)) {
            Some(mount) => {
                let is_partial = is_in_namespace() && mount.levels_above() == 0;
                Self::at(mount.point.into(), is_partial)
            }
            None => Self::mount(),
        }
    }

    fn at(path: PathBuf, is_partial: bool) -> Result<Self, CaptureError> {
        if !statfs(&path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            return Err(CaptureError::NotCgroup2 { path });
        }
        let directory = File::open(&path).step(format!("open {}", path.display()))?.into();
        Ok(Self { place: Place::Mounted(path), directory, is_partial })
    }

    /// A node may run cgroup version 1 alone. Its kernel has the version 2 hierarchy all the
    /// same, with every process in its root; there is just no directory to attach to. A detached
    /// mount (Linux 5.2) is one that appears in no mount table and goes with its descriptor. All
    /// it leaves is the line `0::` of the hierarchy in `/proc/PID/cgroup`.
    fn mount() -> Result<Self, CaptureError> {
        let mount = || -> io::Result<OwnedFd> {
            let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
            // Every mount sets the options of the whole hierarchy anew. One that is mounted
            // where this process cannot see it, outside its container, keeps what it has.
            for option in hierarchy_options(&mounts(MOUNTS_OF_INIT)) {
                fsconfig_set_flag(&context, option)?;
            }
            fsconfig_create(&context)?;
            Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
        };
        let directory = mount().map_err(|cause| CaptureError::NoCgroup2 { cause })?;
        Ok(Self { place: Place::Private, directory, is_partial: is_in_namespace() })
    }

    /// What whoever runs the agent should know about it.
    pub(super) fn caveats(&self) -> impl Iterator<Item = &'static str> {
        let private = matches!(self.place, Place::Private)
            .then_some("cgroup2 is mounted nowhere: the agent mounts it for itself alone");
        let partial = self.is_partial.then_some(
            "this is a cgroup namespace: pods outside of it are not captured (hint: run in the \
             host's cgroup namespace, or give a mount of the host's as --cgroup)",
        );
        private.into_iter().chain(partial)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl fmt::Display for Cgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Mounted(path) => path.display().fmt(f),
            Place::Private => f.write_str("the root of the hierarchy"),
        }
    }
}

/// Where the calling process sees cgroup2 mounted.
pub(super) fn mounted() -> Option<PathBuf> {
    widest_cgroup2(&mounts(MOUNTS)).map(|mount| mount.point.into())
}

/// Whether there are hierarchies beside version 2's, mounted here or not: each process has a
/// cgroup in every one.
pub(super) fn are_several() -> io::Result<bool> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    Ok(own.lines().any(|line| !line.starts_with("0::")))
}

/// Whether hierarchies of version 1 are mounted.
pub(super) fn has_version_1() -> bool {
    of_type(&mounts(MOUNTS), "cgroup").next().is_some()
}

/// Whether the calling process sees a part of the hierarchy only, as containers do.
fn is_in_namespace() -> bool {
    fs::read_link("/proc/self/ns/cgroup")
        .is_ok_and(|namespace| namespace.as_os_str() != FIRST_NAMESPACE)
}

fn mounts(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Where most of the hierarchy is seen: a container may have the host's mount beside its own.
fn widest_cgroup2(mountinfo: &str) -> Option<Mount<'_>> {
    of_type(mountinfo, "cgroup2").min_by_key(|mount| Reverse(mount.levels_above()))
}

/// The options of the hierarchy, if it is mounted.
fn hierarchy_options(mountinfo: &str) -> Vec<&str> {
    let options = of_type(mountinfo, "cgroup2").next().map_or("", |mount| mount.options);
    options.split(',').filter(|option| HIERARCHY_OPTIONS.contains(option)).collect()
}

struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    options: &'a str,
}

impl Mount<'_> {
    /// How far above the reader's own cgroup namespace a mount begins: its root is then written
    /// `/../..` (cgroup_namespaces(7)).
    fn levels_above(&self) -> usize {
        self.root.split('/').filter(|part| *part == "..").count()
    }
}

/// The mounts of one type of file system (proc_pid_mountinfo(5): the root is the fourth field, the
/// mount point the fifth; the type is the first after the dash, the file system's options are the
/// third).
fn of_type<'a>(mountinfo: &'a str, kind: &'a str) -> impl Iterator<Item = Mount<'a>> {
    mountinfo.lines().filter_map(move |line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        (after.next() == Some(kind)).then(|| {
            let mut before = before.split(' ').skip(3);
            let (root, point) = (before.next()?, before.next()?);
            Some(Mount { root, point, options: after.nth(1).unwrap_or_default() })
        })?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "24 30 0:22 / /proc rw shared:5 - proc proc rw\n\
         30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 \
         rw,seclabel,nsdelegate,memory_recursiveprot\n";
    const HYBRID: &str = "31 23 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
         32 31 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
         33 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const VERSION_1: &str = "32 31 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw\n";

    /// A container's own mount, and the host's in a volume.
    const CONTAINER: &str = "40 39 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
         41 39 0:26 /../../.. /host/cgroup rw - cgroup2 cgroup2 rw\n";

    fn found(mountinfo: &str) -> Option<(&str, usize)> {
        widest_cgroup2(mountinfo).map(|mount| (mount.point, mount.levels_above()))
    }

    #[test]
    fn cgroup2_is_found_on_unified_and_hybrid_nodes() {
        assert_eq!(found(UNIFIED), Some(("/sys/fs/cgroup", 0)));
        assert_eq!(found(HYBRID), Some(("/sys/fs/cgroup/unified", 0)));
        assert_eq!(found(VERSION_1), None);
    }

    #[test]
    fn a_mount_of_the_hosts_wins_over_the_containers_own() {
        assert_eq!(found(CONTAINER), Some(("/host/cgroup", 3)));
    }

    #[test]
    fn the_options_of_the_hierarchy_are_kept_and_no_others() {
        assert_eq!(hierarchy_options(UNIFIED), ["nsdelegate", "memory_recursiveprot"]);
        assert!(hierarchy_options(HYBRID).is_empty());
        assert!(hierarchy_options(VERSION_1).is_empty());
    }
}
