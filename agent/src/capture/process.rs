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

/// What `/proc/PID/cgroup` says of each process that holds the socket whose file is `inode`, as
/// far as this process may see.
///
/// # Errors
/// When processes cannot be listed.
pub(super) fn cgroups_of_holders(inode: u32) -> io::Result<Vec<String>> {
    let wanted = format!("socket:[{inode}]");
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")?.flatten() {
        let name = process.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // A process may end at any moment; then it holds nothing any more.
        if let Ok(Some(cgroups)) = cgroups_of_holder(&process.path(), &wanted) {
            found.push(cgroups);
        }
    }
    Ok(found)
}

/// The cgroups of the process at `path`, a directory of /proc, if it holds the socket. Everything
/// is read through one descriptor, which leads to no other process that gets the same number.
fn cgroups_of_holder(path: &Path, wanted: &str) -> io::Result<Option<String>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let descriptor = open(path, flags, Mode::empty())?;
    let process = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    let holds = fs::read_dir(process.join("fd"))?
        .flatten()
        .any(|held| fs::read_link(held.path()).is_ok_and(|target| target.as_os_str() == wanted));
    holds.then(|| fs::read_to_string(process.join("cgroup"))).transpose()
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
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        assert_eq!(cgroups_of_holders(inode).unwrap(), [own]);
        let file = fs::metadata("/proc/self/status").unwrap().ino();
        assert!(cgroups_of_holders(file as u32).unwrap().is_empty());
    }
}
