//! Sockets that belong to a pod but are used by a test.
//!
//! A socket is of the namespace and the cgroup of the process that made it, for good. A small
//! process in the pod makes them and passes them on; the test then speaks through them from
//! ordinary async code, and capture cannot tell it from the pod's own processes.

use std::{
    io::{IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, bail};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};

use crate::process::{Place, Process};

/// Domain and type, as the kernel numbers them.
type Request = [u8; 8];
/// An errno; 0 comes with a socket.
type Reply = [u8; 4];

/// The process in the pod.
#[derive(Debug)]
pub(crate) struct Sockets {
    channel: Mutex<UnixStream>,
    _process: Process,
}

impl Sockets {
    pub(crate) fn start(place: &Place, pod: &str) -> anyhow::Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("could not make a socket pair")?;
        let command = Command::new(program()?);
        let process = place.spawn_with(
            &format!("{pod}-sockets"),
            command,
            Stdio::from(OwnedFd::from(theirs)),
        )?;
        Ok(Self { channel: Mutex::new(ours), _process: process })
    }

    pub(crate) fn open(&self, domain: Domain, kind: Type) -> anyhow::Result<Socket> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let mut request = Request::default();
        request[..4].copy_from_slice(&i32::from(domain).to_ne_bytes());
        request[4..].copy_from_slice(&i32::from(kind).to_ne_bytes());
        let fd = channel.as_raw_fd();
        sendmsg::<()>(fd, &[IoSlice::new(&request)], &[], MsgFlags::empty(), None)?;
        let mut reply = Reply::default();
        let mut space = nix::cmsg_space!(RawFd);
        let mut parts = [IoSliceMut::new(&mut reply)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(fd, &mut parts, Some(&mut space), flags)?;
        if message.bytes == 0 {
            bail!("the process that opens the pod's sockets is gone");
        }
        let passed = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        let Some(passed) = passed else {
            return Err(std::io::Error::from_raw_os_error(i32::from_ne_bytes(reply)).into());
        };
        // SAFETY: the kernel has just made this descriptor for this message; nothing else has it.
        let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(passed) });
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// Opens sockets for the test at the other end of the standard input, until it is gone.
///
/// # Errors
/// When the standard input is no such channel.
pub fn serve() -> anyhow::Result<()> {
    let channel = std::io::stdin().as_fd().try_clone_to_owned()?;
    let fd = channel.as_raw_fd();
    loop {
        let mut request = Request::default();
        let mut parts = [IoSliceMut::new(&mut request)];
        let received = recvmsg::<()>(fd, &mut parts, None, MsgFlags::MSG_WAITALL)?.bytes;
        if received < size_of::<Request>() {
            return Ok(());
        }
        let [domain, kind] = [0, 4].map(|at| {
            i32::from_ne_bytes(request[at..at + 4].try_into().expect("both are four bytes"))
        });
        let opened = Socket::new(domain.into(), kind.into(), None::<Protocol>);
        let (reply, passed) = match &opened {
            Ok(socket) => (0, Some([socket.as_raw_fd()])),
            Err(error) => (error.raw_os_error().unwrap_or(nix::libc::EIO), None),
        };
        let rights = passed.as_ref().map(|fds| ControlMessage::ScmRights(fds));
        let reply: Reply = i32::to_ne_bytes(reply);
        sendmsg::<()>(fd, &[IoSlice::new(&reply)], rights.as_slice(), MsgFlags::empty(), None)?;
    }
}

/// `pod-sockets`, which cargo builds beside the tests and the demo.
fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("could not tell where this program is")?;
    let program = own.ancestors().skip(1).take(2).map(|folder| folder.join("pod-sockets"));
    program.into_iter().find(|path| path.is_file()).with_context(|| {
        format!("no pod-sockets near {} (hint: cargo build --package sluice-tests)", own.display())
    })
}
