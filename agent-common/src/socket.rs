//! What the kernel knows of a socket.

use core::ffi::c_int;

use rustix::{
    fd::AsFd,
    io,
    ioctl::{Getter, Opcode, ioctl},
};

/// `SIOCOUTQ` of linux/sockios.h, the same number as `TIOCOUTQ`.
const SIOCOUTQ: Opcode = 0x5411;

/// How many bytes were written to a TCP socket that the peer's kernel has not acknowledged, be
/// they sent or not (`tcp(7)`). A FIN counts as one.
///
/// # Errors
/// When it is not such a socket.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u32> {
    // SAFETY: of a TCP socket the kernel writes one int (`tcp_ioctl`), for which `Getter` makes
    // room, and reads nothing; of a terminal (`TIOCOUTQ`) the same.
    let bytes: c_int = unsafe { ioctl(socket, Getter::<SIOCOUTQ, c_int>::new()) }?;
    Ok(bytes.unsigned_abs())
}
