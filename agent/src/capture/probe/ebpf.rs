//! What the kernel's eBPF can do, and whether it takes the agent's own programs.

use std::{fs::File, io};

use aya::{
    Ebpf,
    maps::MapType,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, ProgramType, links::FdLink},
    sys::{BpfHelper, SyscallError, is_helper_supported, is_map_supported, is_program_supported},
};

use super::{network::POD, report::Area};
use crate::capture::{
    error::{CaptureError, Step},
    netns::Netns,
    programs::{self, CONNECT, KUBELET, Loader, STEER},
};

const KERNEL: &str = "Linux 5.10 or newer with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and \
                      CONFIG_INET; no kernel lockdown or security module that forbids eBPF";

const MEMORY: &str = "`ulimit -l unlimited` or CAP_SYS_RESOURCE where the cause is EPERM, more \
                      memory in the agent's cgroup where it is ENOMEM";

const MAPS: [(&str, MapType); 6] = [
    ("hash maps", MapType::Hash),
    ("LRU hash maps", MapType::LruHash),
    ("array maps", MapType::Array),
    ("per-CPU array maps", MapType::PerCpuArray),
    ("sockmaps", MapType::SockMap),
    ("ring buffers", MapType::RingBuf),
];

const CONNECT_TYPE: (&str, ProgramType) = ("cgroup_sock_addr", ProgramType::CgroupSockAddr);
const STEER_TYPE: (&str, ProgramType) = ("sk_lookup", ProgramType::SkLookup);

/// What the programs call that not every kernel has for their types.
const HELPERS: [((&str, ProgramType), &str, BpfHelper); 4] = [
    (CONNECT_TYPE, "bpf_get_netns_cookie", BpfHelper::BPF_FUNC_get_netns_cookie),
    (CONNECT_TYPE, "bpf_get_socket_cookie", BpfHelper::BPF_FUNC_get_socket_cookie),
    (CONNECT_TYPE, "bpf_setsockopt", BpfHelper::BPF_FUNC_setsockopt),
    (STEER_TYPE, "bpf_sk_assign", BpfHelper::BPF_FUNC_sk_assign),
];

/// The agent's programs as they were loaded here, with maps of their own.
pub(super) struct Object {
    pub(super) ebpf: Ebpf,
    /// Keeps the steer program in the throw-away namespace.
    _steer: FdLink,
}

/// Probes features one by one and then all of them together, by the programs themselves. What
/// comes back is the steer program at work in `netns`.
pub(super) fn probe(area: &mut Area<'_>, netns: Option<&Netns>) -> Option<Object> {
    for (name, kind) in MAPS {
        let there = is_map_supported(kind).map_err(|error| refused(name, &error));
        area.need(name, there.and_then(|there| known(there, name)), made, KERNEL);
    }
    for (name, kind) in [CONNECT_TYPE, STEER_TYPE] {
        let name = format!("{name} programs");
        let there = is_program_supported(kind).map_err(|error| refused(&name, &error));
        area.need(&name, there.and_then(|there| known(there, &name)), made, KERNEL);
    }
    for ((program, kind), name, helper) in HELPERS {
        let what = format!("{name} in {program} programs");
        let there = is_helper_supported(kind, helper).map_err(|error| refused(&what, &error));
        let there = there.and_then(|there| known(there, &what));
        area.need(name, there, |()| format!("in {program} programs"), KERNEL);
    }

    let mut loader = Loader::new(None);
    let maps = loader.object(Some(POD));
    let mut ebpf = area.need("the agent's maps", maps, |_| "fit into memory".into(), MEMORY)?;
    for name in CONNECT {
        let linked = programs::load_connect(&mut ebpf, name)
            .and_then(|program| can_be_linked(program, name));
        area.need(name, linked, |()| "loads, and can be linked to a cgroup".into(), KERNEL);
    }
    match programs::load_kubelet(&mut ebpf) {
        Ok(_) => area.ok(KUBELET, "loads"),
        Err(error) => area.falls_back(
            KUBELET,
            format!("the agent takes the kubelet's connections to pods itself: {error}"),
        ),
    }
    let Some(netns) = netns else {
        area.unknown(STEER, "no network namespace to load it for");
        return None;
    };
    let loaded = loader.steerable(Some(POD)).and_then(|mut steerable| {
        let link = programs::attach_steer(&mut steerable, netns)?;
        Ok((steerable, link))
    });
    let there = |_: &_| "loads and attaches by a link".into();
    let (ebpf, steer) = area.need(STEER, loaded, there, KERNEL)?;
    ingress(area, &loader);
    jit(area, &ebpf);
    Some(Object { ebpf, _steer: steer })
}

fn made((): &()) -> String {
    "can be made".to_owned()
}

fn refused(what: &str, error: &dyn std::error::Error) -> CaptureError {
    CaptureError::ebpf(format!("try {what}"), error)
}

fn known(there: bool, what: &str) -> Result<(), CaptureError> {
    let unknown = || io::Error::new(io::ErrorKind::Unsupported, "this kernel knows none");
    if there { Ok(()) } else { Err(refused(what, &unknown())) }
}

/// Whether cgroup programs attach by links. Every process of the node would pass through a
/// program that is attached to try, so it is offered something that is no cgroup: a kernel with
/// such links looks at that (EBADF), one without stops at the request itself (EINVAL).
fn can_be_linked(program: &mut CgroupSockAddr, name: &str) -> Result<(), CaptureError> {
    let no_cgroup = File::open("/dev/null").step("open /dev/null")?;
    match program.attach(no_cgroup, CgroupAttachMode::Single) {
        Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
            if io_error.raw_os_error() == Some(nix::libc::EBADF) =>
        {
            Ok(())
        }
        Err(error) => Err(CaptureError::ebpf(format!("link {name} to a cgroup"), &error)),
        // Attached to what is no cgroup: gone with the program, and links there are.
        Ok(_) => Ok(()),
    }
}

/// Without it SYNs pass that look like one of the agent's, for the time it is on its way.
fn ingress(area: &mut Area<'_>, loader: &Loader) {
    const INGRESS: &str = "ingress_ifindex";
    if loader.knows_ingress() {
        area.ok(INGRESS, "the agent's own connections to applications cannot be imitated");
    } else {
        area.falls_back(
            INGRESS,
            "not in sk_lookup programs before Linux 5.17: the agent's own connections to \
             applications are told by their addresses and ports alone",
        );
    }
}

/// A program that is interpreted works, slower.
fn jit(area: &mut Area<'_>, ebpf: &Ebpf) {
    const JIT: &str = "JIT";
    match ebpf.program(STEER).map(|program| program.info()) {
        Some(Ok(info)) if info.size_jitted() > 0 => area.ok(JIT, "programs run as machine code"),
        Some(Ok(_)) => area.falls_back(
            JIT,
            "off: programs are interpreted, and connect() takes longer (hint: `sysctl \
             net.core.bpf_jit_enable=1`)",
        ),
        Some(Err(error)) => area.falls_back(JIT, format!("not known whether it is on: {error}")),
        None => {}
    }
}
