//! Writing network settings, also where `/proc/sys` cannot be written to.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

const PROC: &str = "/proc";

/// Sets the setting at `path`, below `/proc/sys`, of the calling thread's netns.
///
/// Container runtimes mount `/proc/sys` read-only unless the container is privileged. Another
/// mount of proc (Linux 5.2) has the same settings and is not; detached, it appears in no mount
/// table and goes with its descriptor.
pub(super) fn write(path: &str, value: &str) -> io::Result<()> {
    match fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            let below = Path::new(path).strip_prefix(PROC).map_err(io::Error::other)?;
            let file = openat(mount()?, below, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            File::from(file).write_all(value.as_bytes())
        }
        done => done,
    }
}

fn mount() -> io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
