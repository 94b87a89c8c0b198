//! Another program on a cgroup's connect(), as a node has with Cilium's socket load balancer.
//!
//! It is assembled here by hand and loaded by bpf(2), so that nothing of it is the agent's: not
//! its compiler, not its loader. In C, for a service that has moved:
//!
//! ```c
//! int connect(struct bpf_sock_addr *ctx)
//! {
//!     if (ctx->user_ip4 == SERVICE && ctx->user_port == PORT) {
//!         ctx->user_ip4 = BACKEND;
//!         ctx->user_port = BACKEND_PORT;
//!     }
//!     return 1;
//! }
//! ```

use std::{
    ffi::CStr,
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::Context;
use nix::{
    libc,
    sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
};

/// What the program does.
#[derive(Clone, Copy, Debug)]
pub enum OnConnect {
    /// Lets everything pass as it is.
    Allow,
    /// Refuses connections to one address with EPERM.
    Deny(SocketAddr),
    /// Leads connections to the first address to the second, as a load balancer in the socket
    /// layer does. Both are of one family.
    Redirect(SocketAddr, SocketAddr),
}

/// How a program gets its place beside others on the cgroup.
#[derive(Clone, Copy, Debug)]
pub enum Attachment {
    /// For as long as the cgroup lives, or until it is detached: all there was before Linux 5.7.
    Program,
    /// For as long as the link lives.
    Link,
}

/// A program on a cgroup, until dropped.
#[derive(Debug)]
pub struct CgroupProgram {
    hook: u32,
    cgroup: File,
    program: OwnedFd,
    link: Option<OwnedFd>,
}

impl CgroupProgram {
    /// Attaches a program for connections of one family to `cgroup`, after those that are there.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn attach(
        cgroup: &Path,
        how: Attachment,
        ipv6: bool,
        does: OnConnect,
    ) -> anyhow::Result<Self> {
        let hook = if ipv6 { BPF_CGROUP_INET6_CONNECT } else { BPF_CGROUP_INET4_CONNECT };
        let program = load(hook, &does.assemble()).with_context(|| format!("load {does:?}"))?;
        let cgroup = File::open(cgroup)?;
        let (target, source) = (cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32);
        let link = match how {
            Attachment::Program => {
                let attach = Attach { target, source, hook, flags: BPF_F_ALLOW_MULTI };
                bpf(BPF_PROG_ATTACH, &attach).context("attach a program to a cgroup")?;
                None
            }
            Attachment::Link => {
                // The same fields in another order; links are always beside others.
                let create = Attach { target: source, source: target, hook, flags: 0 };
                let link = bpf(BPF_LINK_CREATE, &create).context("link a program to a cgroup")?;
                // SAFETY: the kernel has just made this descriptor; nothing else has it.
                Some(unsafe { OwnedFd::from_raw_fd(link) })
            }
        };
        Ok(Self { hook, cgroup, program, link })
    }
}

impl Drop for CgroupProgram {
    fn drop(&mut self) {
        // A cgroup that is gone has no programs either.
        let _ = match &self.link {
            // Closed, it would live on in whatever program another test is about to start, until
            // that has come from fork() to exec().
            Some(link) => bpf(BPF_LINK_DETACH, &link.as_raw_fd()),
            None => {
                let (target, source) = (self.cgroup.as_raw_fd(), self.program.as_raw_fd());
                let (target, source) = (target as u32, source as u32);
                bpf(BPF_PROG_DETACH, &Attach { target, source, hook: self.hook, flags: 0 })
            }
        };
    }
}

/// Where `struct bpf_sock_addr` has what connect() was asked for. Addresses and the port are in
/// network byte order.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;

/// One instruction: operation, registers (target in the low half), offset, value.
type Instruction = [u8; 8];

/// The context is the first argument.
const CONTEXT: u8 = 1;
const SCRATCH: u8 = 2;
const RESULT: u8 = 0;

fn instruction(operation: u8, target: u8, source: u8, offset: i16, value: u32) -> Instruction {
    let [low, high] = offset.to_ne_bytes();
    let [a, b, c, d] = value.to_ne_bytes();
    [operation, target | source << 4, low, high, a, b, c, d]
}

/// `SCRATCH = *(u32 *)(CONTEXT + offset)`
fn load_word(offset: i16) -> Instruction {
    instruction(0x61, SCRATCH, CONTEXT, offset, 0)
}

/// `*(u32 *)(CONTEXT + offset) = SCRATCH`
fn store_word(offset: i16) -> Instruction {
    instruction(0x63, CONTEXT, SCRATCH, offset, 0)
}

/// `register = value`
fn set(register: u8, value: u32) -> Instruction {
    instruction(0xb4, register, 0, 0, value)
}

/// `if (SCRATCH != value) skip the next instructions`
fn skip_unless(value: u32, skipped: usize) -> Instruction {
    instruction(0x56, SCRATCH, 0, i16::try_from(skipped).expect("programs are short"), value)
}

fn exit() -> Instruction {
    instruction(0x95, 0, 0, 0, 0)
}

impl OnConnect {
    fn assemble(self) -> Vec<Instruction> {
        let pass = [set(RESULT, 1), exit()];
        let (matched, action) = match self {
            Self::Allow => return pass.into(),
            Self::Deny(to) => (to, vec![set(RESULT, 0), exit()]),
            Self::Redirect(service, backend) => {
                let store = |(offset, word)| [set(SCRATCH, word), store_word(offset)];
                (service, words(backend).into_iter().flat_map(store).collect())
            }
        };
        let words = words(matched);
        let mut program = Vec::new();
        for (done, (offset, word)) in words.iter().enumerate() {
            let left = 2 * (words.len() - done - 1);
            program.extend([load_word(*offset), skip_unless(*word, left + action.len())]);
        }
        program.extend(action);
        program.extend(pass);
        program
    }
}

/// The words of an address in the context, each with its offset.
fn words(address: SocketAddr) -> Vec<(i16, u32)> {
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("four bytes a word"));
    let mut words = match address.ip() {
        IpAddr::V4(ip) => vec![(USER_IP4, word(&ip.octets()))],
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            (USER_IP6..).step_by(4).zip(octets.chunks_exact(4).map(word)).collect()
        }
    };
    words.push((USER_PORT, u16::from_ne_bytes(address.port().to_be_bytes()).into()));
    words
}

// From linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_DETACH: libc::c_int = 34;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_CGROUP_INET6_CONNECT: u32 = 11;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The attributes of `BPF_PROG_LOAD`, up to the last one needed here.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attachment: u32,
}

/// The attributes of `BPF_PROG_ATTACH`, `BPF_PROG_DETACH` and `BPF_LINK_CREATE`.
#[repr(C)]
struct Attach {
    target: u32,
    source: u32,
    hook: u32,
    flags: u32,
}

fn load(hook: u32, program: &[Instruction]) -> io::Result<OwnedFd> {
    const LICENSE: &CStr = c"Apache-2.0";
    let attributes = Load {
        kind: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        expected_attachment: hook,
        ..Load::default()
    };
    let loaded = without_memory_limit(|| bpf(BPF_PROG_LOAD, &attributes))?;
    // SAFETY: the kernel has just made this descriptor; nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(loaded) })
}

/// Kernels before 5.11 charge programs to this limit; others refuse nothing for it. It is put
/// back: what is started later is to find it as the machine has it. Only what is started in the
/// very moment, by another test, has no limit either.
fn without_memory_limit<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    // Who may not lift it may lack nothing all the same.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let done = work();
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
    done
}

/// One call of bpf(2); `attributes` has the layout that `command` asks for.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads `size` bytes of plain integers at `attributes`. Addresses among
    // them are of memory that outlives the call, and it writes nowhere.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
