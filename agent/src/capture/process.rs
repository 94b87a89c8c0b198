//! The processes that hold a socket.

use std::{
    fs, io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};

/// A process that holds a socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) id: u32,
    /// What `/proc/PID/cgroup` says: a line for each hierarchy.
    pub(super) cgroups: String,
}

/// Every process that holds the socket whose file is `inode`, as far as this one may see.
///
/// # Errors
/// When processes cannot be listed.
pub(super) fn holders(inode: u32) -> io::Result<Vec<Holder>> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")?.flatten() {
        let name = process.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end at any moment; then it holds nothing any more.
        if let Ok(Some(holder)) = holder(id, inode) {
            found.push(holder);
        }
    }
    Ok(found)
}

/// The process `id`, if it holds the socket.
///
/// # Errors
/// When it cannot be looked at, or is gone.
pub(super) fn holder(id: u32, inode: u32) -> io::Result<Option<Holder>> {
    // Everything is read through one descriptor, which leads to no other process that gets the
    // same number.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let descriptor = open(&Path::new("/proc").join(id.to_string()), flags, Mode::empty())?;
    let process = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    let wanted = format!("socket:[{inode}]");
    let holds = fs::read_dir(process.join("fd"))?.flatten().any(|held| {
        fs::read_link(held.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
    });
    if !holds {
        return Ok(None);
    }
    Ok(Some(Holder { id, cgroups: fs::read_to_string(process.join("cgroup"))? }))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::fs::MetadataExt};

    use nix::sys::stat::fstat;

    use super::*;

    #[test]
    fn who_holds_a_socket_is_found_with_its_cgroups() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = u32::try_from(fstat(&socket).unwrap().st_ino).unwrap();
        let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = Holder { id: std::process::id(), cgroups };
        assert_eq!(holders(inode).unwrap(), [own]);
        let file = fs::metadata("/proc/self/status").unwrap().ino();
        assert!(holders(file as u32).unwrap().is_empty());
    }
}
