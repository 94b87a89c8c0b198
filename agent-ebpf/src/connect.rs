//! `connect()` on the agent's cgroup: marks what an enrolled pod dials.
//!
//! The destination is never rewritten. The mark makes the pod's own routing send the SYN to
//! `lo`, where `steer` finds it. Attaches to the cgroup2 root, so it also sees everything that
//! is not a pod, and gets out of its way after one or two map look-ups.

use agent_common::{Address, Counter, MARK, MARK_MASK, OwnInterface};
use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_setsockopt},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;

use crate::{
    address,
    maps::{AGENTS, CONFIG, OWN, OWN_INTERFACES, PODS, count},
};

const ALLOW: i32 = 1;
/// The application sees EPERM.
const DENY: i32 = 0;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
/// The index of `lo` in every netns.
const LOOPBACK: u32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn sluice_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a valid context.
    let destination =
        address::v4(unsafe { (&raw const (*ctx.sock_addr).user_ip4).read_volatile() });
    connect(&ctx, destination)
}

#[cgroup_sock_addr(connect6)]
pub fn sluice_connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a valid context.
    let words = unsafe { address::read_v6!(ctx.sock_addr, user_ip6) };
    connect(&ctx, address::of_words(words))
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, destination: Address) -> i32 {
    let context: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: both helpers only read the context the kernel passed.
    let (netns, socket) =
        unsafe { (bpf_get_netns_cookie(context.cast()), bpf_get_socket_cookie(context.cast())) };
    if let Some(seen_in) = OWN.get_ptr_mut(socket) {
        // SAFETY: map memory stays valid while the program runs. Only this socket's own
        // connect() writes here.
        unsafe { *seen_in = netns };
        count(Counter::Own);
        return ALLOW;
    }
    // SAFETY: reads of the context's own fields.
    let (kind, protocol) = unsafe {
        (
            (&raw const (*context).type_).read_volatile(),
            (&raw const (*context).protocol).read_volatile(),
        )
    };
    let tcp = kind == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP);
    let stays = address::is_loopback(&destination) || address::is_unspecified(&destination);
    if !tcp || stays {
        return ALLOW;
    }
    // SAFETY: nothing holds a reference into the map across an update of this element.
    let Some(&slot) = (unsafe { PODS.get(netns) }) else {
        return unknown(ctx, netns, &destination);
    };
    // SAFETY: reads of the context's own field and, through it, of the socket's, both as the
    // kernel offers them to such programs.
    let (device, own_mark) = unsafe {
        let socket = (&raw const (*context).__bindgen_anon_1.sk).read_volatile();
        (
            (&raw const (*socket).bound_dev_if).read_volatile(),
            (&raw const (*socket).mark).read_volatile(),
        )
    };
    // IPv4 takes whatever no route leads to for a neighbour on the device that a socket is bound
    // to: the mark alone would not keep it from leaving.
    if device != 0 && device != LOOPBACK && !is_captured(slot, device) {
        count(Counter::UnknownInterface);
        debug!(ctx, "denied: connect to {:i} by interface {}, not known yet", destination, device);
        return DENY;
    }
    let mut mark = MARK | own_mark & !MARK_MASK;
    // SAFETY: `mark` is four bytes, as SO_MARK wants.
    let failed = unsafe {
        bpf_setsockopt(
            context.cast(),
            SOL_SOCKET,
            SO_MARK,
            (&raw mut mark).cast(),
            size_of::<u32>() as i32,
        )
    };
    if failed != 0 {
        // Unmarked it would leave the node in plaintext.
        count(Counter::MarkFailed);
        return DENY;
    }
    count(Counter::Marked);
    #[cfg(feature = "next-version")]
    crate::next::saw(crate::next::Event::Connect);
    debug!(ctx, "marked: connect to {:i}", destination);
    ALLOW
}

/// Whether nothing that is marked leaves by the interface.
#[inline(always)]
fn is_captured(slot: u32, index: u32) -> bool {
    // SAFETY: nothing holds a reference into the map across an update of this element.
    unsafe { OWN_INTERFACES.get(OwnInterface { slot, index }) }.is_some()
}

/// A netns that is not enrolled: the host's, an agent's, another agent's pod, or a pod nobody
/// enrolled yet.
#[inline(always)]
fn unknown(ctx: &SockAddrContext, netns: u64, destination: &Address) -> i32 {
    match CONFIG.get(0) {
        Some(config)
            if config.deny_unknown != 0
                && netns != config.host_netns
                // SAFETY: nothing holds a reference into the map across an update of this element.
                && unsafe { AGENTS.get(netns) }.is_none() =>
        {
            count(Counter::Denied);
            debug!(ctx, "denied: connect to {:i} from an unknown pod", *destination);
            DENY
        }
        _ => ALLOW,
    }
}
