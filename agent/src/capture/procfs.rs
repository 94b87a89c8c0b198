//! `/proc/sys/net` of the calling thread's network namespace, to be read and written.
//!
//! Container runtimes mount `/proc/sys` read-only, whatever the container may do. There, the
//! agent mounts a procfs of its own: detached (Linux 5.2), so that it appears in no mount table
//! and goes with the process. Which network namespace a file below `sys/net` is about is decided
//! when it is opened, by who opens it.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

use nix::{
    fcntl::{OFlag, open, openat},
    sys::{
        stat::Mode,
        statvfs::{FsFlags, statvfs},
    },
};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// What a setting says; `None` where the kernel has no such setting.
pub(super) fn setting(name: &str) -> io::Result<Option<String>> {
    let mut text = String::new();
    match file(name, OFlag::O_RDONLY).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Changes a setting that is there.
pub(super) fn set(name: &str, value: &str) -> io::Result<()> {
    file(name, OFlag::O_WRONLY)?.write_all(value.as_bytes())
}

fn file(name: &str, how: OFlag) -> io::Result<File> {
    let path = format!("sys/{name}");
    Ok(openat(proc()?, path.as_str(), how | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

/// The root of a procfs whose settings can be written.
fn proc() -> io::Result<BorrowedFd<'static>> {
    static PROC: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(proc) = PROC.get() {
        return Ok(proc.as_fd());
    }
    let is_read_only = statvfs("/proc/sys")?.flags().contains(FsFlags::ST_RDONLY);
    let proc = if is_read_only {
        mount().map_err(|error| {
            let what = "/proc/sys is read-only, and no other procfs can be mounted";
            io::Error::new(error.kind(), format!("{what}: {error}"))
        })?
    } else {
        open("/proc", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?
    };
    Ok(PROC.get_or_init(|| proc).as_fd())
}

fn mount() -> io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let restricted = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, restricted)?)
}
