//! The first SYN of every connection in a pod's netns: hands it to the agent's listener.
//!
//! Runs once a connection, in place of the kernel's search for a listening socket. It is closed by
//! default: what it passes, for the kernel to look up as ever, is what stays within the pod, and
//! what the agent or the kubelet has announced.

use agent_common::{
    ANNOUNCEMENT_LIFETIME, Address, Counter, Dial, OwnAddress, inbound_slot, outbound_slot,
};
use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action},
    helpers::bpf_ktime_get_ns,
    macros::sk_lookup,
    programs::SkLookupContext,
};
use aya_log_ebpf::debug;

use crate::{
    address,
    maps::{DIALS, KNOWS_INGRESS, LISTENERS, OWN_ADDRESSES, POD, PROBES, count},
};

const PASS: u32 = sk_action::SK_PASS;
const DROP: u32 = sk_action::SK_DROP;

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;

/// The index of `lo` in every netns.
const LOOPBACK: u32 = 1;

/// How long a SYN may take from the kubelet to a pod of its node, in nanoseconds: a second, after
/// which it is sent again.
const PROBE_LIFETIME: u64 = 1_000_000_000;

/// The four-tuple of a SYN, as its receiver sees it. Ports in host byte order.
struct Tuple {
    local: Address,
    local_port: u16,
    remote: Address,
    remote_port: u16,
}

#[sk_lookup]
pub fn sluice_steer(ctx: SkLookupContext) -> u32 {
    // SAFETY: a read of the context's own field.
    if unsafe { (&raw const (*ctx.lookup).protocol).read_volatile() } != IPPROTO_TCP {
        return PASS;
    }
    if cfg!(feature = "broken-steer") {
        return PASS;
    }
    let Tuple { local, local_port, remote, remote_port } = tuple(ctx.lookup);
    let pod = POD.load();
    let (to_own, from_own) = (is_own(pod, &local), is_own(pod, &remote));
    if to_own && from_own {
        // The application dialled itself.
        return PASS;
    }
    if to_own {
        let dial =
            Dial { client: remote, app: local, client_port: remote_port, app_port: local_port };
        if is_announced(&ctx, &dial) {
            return PASS;
        }
        if is_kubelets(&dial) {
            count(Counter::PassedIn);
            return PASS;
        }
        debug!(&ctx, "steer in: {:i} to port {}", remote, local_port);
        return hand_over(&ctx, inbound_slot(pod), Counter::SteeredIn, Counter::DroppedIn);
    }
    if from_own {
        debug!(&ctx, "steer out: to {:i} port {}", local, local_port);
        return hand_over(&ctx, outbound_slot(pod), Counter::SteeredOut, Counter::DroppedOut);
    }
    // An address that the agent has not heard of yet, or a socket that takes any address for its
    // own: which way it goes cannot be told.
    debug!(&ctx, "refused: {:i} to {:i}, neither known", remote, local);
    count(Counter::UnknownAddress);
    DROP
}

/// Whether the pod's namespace holds the address. Nothing leaves by loopback ones, or comes in.
#[inline(always)]
fn is_own(slot: u32, address: &Address) -> bool {
    let own = OwnAddress { address: *address, slot };
    // SAFETY: nothing holds a reference into the map across an update of this element.
    address::is_loopback(address) || unsafe { OWN_ADDRESSES.get(own) }.is_some()
}

/// Whether the agent is about to send this. Where the kernel tells, it must have come by `lo`: what
/// others send from the same address and port comes by another interface.
#[inline(always)]
fn is_announced(ctx: &SkLookupContext, syn: &Dial) -> bool {
    // SAFETY: nothing holds a reference into the map across an update of this element.
    let Some(announced) = (unsafe { DIALS.get(syn) }) else { return false };
    // SAFETY: the helper reads a clock.
    let age = unsafe { bpf_ktime_get_ns() }.saturating_sub(announced.at);
    let on_loopback = announced.on_loopback != 0;
    age < ANNOUNCEMENT_LIFETIME && (!on_loopback || came_by_loopback(ctx))
}

/// Whether the SYN came in by `lo`; said of every one where the kernel does not tell.
#[inline(always)]
fn came_by_loopback(ctx: &SkLookupContext) -> bool {
    if KNOWS_INGRESS.load() == 0 {
        return true;
    }
    // SAFETY: a read of the context's own field, where the kernel has it.
    unsafe { (&raw const (*ctx.lookup).ingress_ifindex).read_volatile() == LOOPBACK }
}

/// Whether the kubelet has just sent this. Its note is good for one SYN: nobody else's that looks
/// the same passes behind it.
#[inline(always)]
fn is_kubelets(syn: &Dial) -> bool {
    // SAFETY: nothing holds a reference into the map across an update of this element.
    let Some(&sent) = (unsafe { PROBES.get(syn) }) else { return false };
    // SAFETY: the helper reads a clock.
    let age = unsafe { bpf_ktime_get_ns() }.saturating_sub(sent);
    PROBES.remove(syn).is_ok() && age < PROBE_LIFETIME
}

/// Gives the SYN to the listener in `slot`. Where no agent listens it is refused: passing it on
/// could hand it to the application, past identity and policy.
#[inline(always)]
fn hand_over(ctx: &SkLookupContext, slot: u32, handed: Counter, dropped: Counter) -> u32 {
    #[cfg(feature = "next-version")]
    crate::next::saw(crate::next::Event::Syn);
    if LISTENERS.redirect_sk_lookup(ctx, slot, 0).is_ok() {
        count(handed);
        PASS
    } else {
        count(dropped);
        DROP
    }
}

#[inline(always)]
fn tuple(context: *mut bpf_sk_lookup) -> Tuple {
    // Everything is read, whichever family the packet has: the fields of the other family are
    // zero. Were there a branch, the compiler would merge the reads of both arms into one at a
    // computed offset, which the verifier refuses. For the same reason the reads are volatile,
    // and in the sizes every kernel allows (`remote_port` was a word before 5.17).
    // SAFETY: reads of the context's own fields; nothing is written.
    unsafe {
        let v4 = (&raw const (*context).family).read_volatile() == AF_INET;
        let local_ip4 = (&raw const (*context).local_ip4).read_volatile();
        let remote_ip4 = (&raw const (*context).remote_ip4).read_volatile();
        let mapped = if v4 { u32::to_be(0xffff) } else { 0 };
        let [a, b, c, d] = address::read_v6!(context, local_ip6);
        let local = address::of_words([a, b, c | mapped, d | local_ip4]);
        let [a, b, c, d] = address::read_v6!(context, remote_ip6);
        let remote = address::of_words([a, b, c | mapped, d | remote_ip4]);
        let remote_port = (&raw const (*context).remote_port).cast::<u16>().read_volatile();
        Tuple {
            local,
            local_port: (&raw const (*context).local_port).read_volatile() as u16,
            remote,
            remote_port: u16::from_be(remote_port),
        }
    }
}
