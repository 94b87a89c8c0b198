//! Sockets that belong to a pod or a node but are used by a test.
//!
//! A socket is of the namespace and the cgroup of the process that made it, for good. A small
//! process there makes them and passes them on; the test then speaks through them from ordinary
//! async code, and capture cannot tell it from any other process of that place.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::SocketAddr,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{fs::symlink, net::UnixStream},
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    unistd::{Uid, seteuid},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::{
    mesh_fixture::PATIENCE,
    process::{Place, Process},
};

/// How soon a port is tried again: nothing tells when it is free.
const AGAIN: Duration = Duration::from_millis(5);

/// Domain, type and protocol, as the kernel numbers them, and how many.
type Request = [u8; 16];
/// An errno; 0 comes with the sockets.
type Reply = [u8; 4];
/// How many sockets one message passes on. The kernel allows 253.
const AT_ONCE: usize = 128;

/// The sockets of one place. The process that makes them starts with the first.
#[derive(Debug)]
pub(crate) struct Sockets {
    place: Place,
    name: String,
    /// The user they are made by.
    user: u32,
    /// What the process is called that makes them; `pod-sockets` unless said otherwise.
    program: Option<&'static str>,
    opener: OnceLock<Opener>,
}

impl Sockets {
    /// Those of `place`, which logs know as `name`.
    pub(crate) fn of(place: Place, name: &str) -> Self {
        Self::of_user(place, name, 0, None)
    }

    /// Those of `place` that `user` makes, by a process of that name.
    pub(crate) fn of_user(
        place: Place,
        name: &str,
        user: u32,
        program: Option<&'static str>,
    ) -> Self {
        Self { place, name: name.to_owned(), user, program, opener: OnceLock::new() }
    }

    /// Starts the process that makes them, if it does not run.
    pub(crate) fn start(&self) -> anyhow::Result<&Opener> {
        if let Some(opener) = self.opener.get() {
            return Ok(opener);
        }
        let started = Opener::start(&self.place, &self.name, self.user, self.program)?;
        Ok(self.opener.get_or_init(|| started))
    }

    /// A socket of that place, non-blocking.
    pub(crate) fn open(
        &self,
        domain: Domain,
        kind: Type,
        protocol: Option<Protocol>,
    ) -> anyhow::Result<Socket> {
        let mut sockets = self.open_many(1, domain, kind, protocol)?;
        let socket = sockets.pop().context("no socket came")?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Sockets of that place, blocking.
    pub(crate) fn open_many(
        &self,
        count: usize,
        domain: Domain,
        kind: Type,
        protocol: Option<Protocol>,
    ) -> anyhow::Result<Vec<Socket>> {
        let opener = self.start()?;
        let mut sockets = Vec::with_capacity(count);
        while sockets.len() < count {
            let next = AT_ONCE.min(count - sockets.len());
            let opened = opener.open(next, domain, kind, protocol);
            sockets.extend(
                opened.with_context(|| format!("could not open a socket in {}", self.name))?,
            );
        }
        Ok(sockets)
    }

    /// Connects from there.
    pub(crate) async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.open(Domain::for_address(to), Type::STREAM, None);
        TcpSocket::from_std_stream(socket.map_err(io::Error::other)?.into()).connect(to).await
    }

    /// Listens there.
    pub(crate) fn listen(&self, address: SocketAddr) -> anyhow::Result<TcpListener> {
        // A listener that was just dropped lives on for a moment in processes that another test
        // is starting: between fork and exec they have a copy of everything.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let socket = self.open(Domain::for_address(address), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            if address.is_ipv6() {
                socket.set_only_v6(false)?;
            }
            match socket.bind(&address.into()).and_then(|()| socket.listen(1024)) {
                Ok(()) => return Ok(TcpListener::from_std(socket.into())?),
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline =>
                {
                    thread::sleep(AGAIN);
                }
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("could not listen on {address} in {}", self.name)
                    });
                }
            }
        }
    }
}

/// The process that makes sockets.
#[derive(Debug)]
pub(crate) struct Opener {
    channel: Mutex<UnixStream>,
    _process: Process,
}

impl Opener {
    fn start(place: &Place, name: &str, user: u32, called: Option<&str>) -> anyhow::Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("could not make a socket pair")?;
        let program = match called {
            // A process is called as the link by which its program was found.
            Some(called) => {
                let link = place.lab_directory().join(called);
                if !link.exists() {
                    symlink(program()?, &link)
                        .with_context(|| format!("could not make {}", link.display()))?;
                }
                link
            }
            None => program()?,
        };
        let mut command = Command::new(program);
        command.arg(user.to_string());
        let process = place.spawn_with(
            &format!("{name}-sockets"),
            command,
            Stdio::from(OwnedFd::from(theirs)),
        )?;
        Ok(Self { channel: Mutex::new(ours), _process: process })
    }

    /// As many as one message passes on.
    fn open(
        &self,
        count: usize,
        domain: Domain,
        kind: Type,
        protocol: Option<Protocol>,
    ) -> anyhow::Result<impl Iterator<Item = Socket> + use<>> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let mut request = Request::default();
        let count = i32::try_from(count)?;
        let numbers = [domain.into(), kind.into(), protocol.map_or(0, i32::from), count];
        for (field, number) in request.chunks_exact_mut(4).zip(numbers) {
            field.copy_from_slice(&i32::to_ne_bytes(number));
        }
        let fd = channel.as_raw_fd();
        sendmsg::<()>(fd, &[IoSlice::new(&request)], &[], MsgFlags::empty(), None)?;
        let mut reply = Reply::default();
        let mut space = nix::cmsg_space!([RawFd; AT_ONCE]);
        let mut parts = [IoSliceMut::new(&mut reply)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(fd, &mut parts, Some(&mut space), flags)?;
        if message.bytes == 0 {
            bail!("the process that opens sockets is gone");
        }
        let passed = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let Some(passed) = passed else {
            return Err(std::io::Error::from_raw_os_error(i32::from_ne_bytes(reply)).into());
        };
        // SAFETY: the kernel has just made each descriptor for this message; nothing else has it.
        let own = |fd| Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(passed.into_iter().map(own))
    }
}

/// Opens sockets for the test at the other end of the standard input, until it is gone; as the
/// user whose number is the first argument.
///
/// # Errors
/// When the standard input is no such channel, or there is no such argument.
pub fn serve() -> anyhow::Result<()> {
    let user = std::env::args().nth(1).context("no user was named")?.parse()?;
    seteuid(Uid::from_raw(user))?;
    let channel = std::io::stdin().as_fd().try_clone_to_owned()?;
    let fd = channel.as_raw_fd();
    loop {
        let mut request = Request::default();
        let mut parts = [IoSliceMut::new(&mut request)];
        let received = recvmsg::<()>(fd, &mut parts, None, MsgFlags::MSG_WAITALL)?.bytes;
        if received < size_of::<Request>() {
            return Ok(());
        }
        let [domain, kind, protocol, count] = [0, 4, 8, 12].map(|at| {
            i32::from_ne_bytes(request[at..at + 4].try_into().expect("each is four bytes"))
        });
        let open = |_| Socket::new(domain.into(), kind.into(), Some(protocol.into()));
        let opened = (0..count).map(open).collect::<io::Result<Vec<_>>>();
        let (reply, passed) = match &opened {
            Ok(sockets) => (0, Some(sockets.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>())),
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
