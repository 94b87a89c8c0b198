//! Socket options that no crate here has.

use std::{io, os::fd::AsRawFd};

use nix::libc;
use socket2::Socket;

/// The socket listens for TCP Fast Open too, once it listens.
///
/// # Errors
/// When the kernel lacks it.
pub fn fast_open_listener(socket: &Socket) -> io::Result<()> {
    const WAITING: libc::c_int = 16;
    set(socket, libc::TCP_FASTOPEN, WAITING)
}

/// The socket's connect() leaves the SYN to the first write, which goes with it (Linux 4.11).
///
/// # Errors
/// When the kernel lacks it.
pub fn fast_open_connect(socket: &Socket) -> io::Result<()> {
    set(socket, libc::TCP_FASTOPEN_CONNECT, 1)
}

fn set(socket: &Socket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes at `value`, which lives across the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
