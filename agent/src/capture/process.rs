//! The node's processes, and those that hold a socket.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
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

/// A process. Everything is read through one descriptor, which leads to no other process that gets
/// the same number.
#[derive(Debug)]
pub(super) struct Process(OwnedFd);

impl Process {
    /// The process `id`.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn open(id: u32) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(open(&Path::new("/proc").join(id.to_string()), flags, Mode::empty())?))
    }

    /// Where a file is that tells of it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }

    /// What such a file says.
    ///
    /// # Errors
    /// When the process is gone, or may not be looked at.
    pub(super) fn text(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.file(name))
    }
}

/// The numbers of all processes, as far as this one sees them.
///
/// # Errors
/// When they cannot be listed.
pub(super) fn all() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|process| process.file_name().to_str()?.parse().ok()))
}

/// Every process that holds the socket whose file is `inode`, as far as this one may see.
///
/// # Errors
/// When processes cannot be listed.
pub(super) fn holders(inode: u32) -> io::Result<Vec<Holder>> {
    // A process may end at any moment; then it holds nothing any more.
    Ok(all()?.filter_map(|id| holder(id, inode).ok().flatten()).collect())
}

/// The process `id`, if it holds the socket.
///
/// # Errors
/// When it cannot be looked at, or is gone.
pub(super) fn holder(id: u32, inode: u32) -> io::Result<Option<Holder>> {
    let process = Process::open(id)?;
    let wanted = format!("socket:[{inode}]");
    let holds = fs::read_dir(process.file("fd"))?.flatten().any(|held| {
        fs::read_link(held.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
    });
    if !holds {
        return Ok(None);
    }
    Ok(Some(Holder { id, cgroups: process.text("cgroup")? }))
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
