//! The first SYN of every connection in a pod's netns: hands it to the agent's listener.
//!
//! Runs once a connection, in place of the kernel's search for a listening socket. What it
//! passes, the kernel looks up as ever.

use agent_common::{Address, Counter, Dial, inbound_slot, outbound_slot};
use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action},
    helpers::bpf_ktime_get_ns,
    macros::sk_lookup,
    programs::SkLookupContext,
};
use aya_log_ebpf::debug;

use crate::{
    address,
    maps::{DIALS, LISTENERS, POD, POD_IPS, PROBES, count},
};

const PASS: u32 = sk_action::SK_PASS;
const DROP: u32 = sk_action::SK_DROP;

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;

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
    if is_of(pod, &local) {
        if local == remote {
            // The application dialled itself.
            return PASS;
        }
        let dial =
            Dial { client: remote, app: local, client_port: remote_port, app_port: local_port };
        // SAFETY: nothing holds a reference into the map across an update of this element.
        if unsafe { DIALS.get(dial) }.is_some() {
            return PASS;
        }
        if is_kubelets(&dial) {
            count(Counter::PassedIn);
            return PASS;
        }
        debug!(&ctx, "steer in: {:i} to port {}", remote, local_port);
        return hand_over(&ctx, inbound_slot(pod), Counter::SteeredIn, Counter::DroppedIn);
    }
    if is_of(pod, &remote) {
        if address::is_loopback(&local) {
            return PASS;
        }
        debug!(&ctx, "steer out: to {:i} port {}", local, local_port);
        return hand_over(&ctx, outbound_slot(pod), Counter::SteeredOut, Counter::DroppedOut);
    }
    PASS
}

#[inline(always)]
fn is_of(pod: u32, address: &Address) -> bool {
    // SAFETY: nothing holds a reference into the map across an update of this element.
    unsafe { POD_IPS.get(address) }.is_some_and(|owner| *owner == pod)
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
