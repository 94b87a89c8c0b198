//! What the kubelet sends: notes its SYNs to captured pods, for `steer` to pass them.
//!
//! The one program that runs per packet, of what leaves the cgroup it is attached to: that of the
//! node's kubelet, which user space has proven. Nobody else passes through it, and most of what
//! does goes on after three reads. It runs behind the node's address translation, so that the
//! tuple is the one the pod will see. What is sent again passes here again, so that a note may be
//! good for once.

use agent_common::{Address, Dial};
use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::cgroup_skb, programs::SkBuffContext};

use crate::{
    address,
    maps::{POD_IPS, PROBES},
};

/// The packet goes its way, whatever it is.
const ALLOW: i32 = 1;

const IPPROTO_TCP: u8 = 6;
/// Where the protocol is in an IPv4 header, and the next header in an IPv6 one.
const PROTOCOL: (usize, usize) = (9, 6);
/// The size of an IPv6 header. SYNs have no extension in between unless their socket asks for it.
const V6_HEADER: usize = 40;
/// Where the flags are in a TCP header.
const FLAGS: usize = 13;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

#[cgroup_skb(egress)]
pub fn sluice_kubelet(ctx: SkBuffContext) -> i32 {
    // Whoever else runs in that cgroup: the node's root is meant, as where the agent asks.
    if let Some(probe) = syn(&ctx)
        && ctx.get_socket_uid() == 0
    {
        // SAFETY: the helper reads a clock.
        let now = unsafe { bpf_ktime_get_ns() };
        #[cfg(feature = "next-version")]
        crate::next::saw(crate::next::Event::Probe);
        // Where there is no room the agent takes the connection and finds out whose it is.
        let _ = PROBES.insert(probe, now, 0);
    }
    ALLOW
}

/// The tuple of the packet, where that is the first of a connection to a captured pod.
#[inline(always)]
fn syn(ctx: &SkBuffContext) -> Option<Dial> {
    // The packet begins with its network header here.
    let first: u8 = ctx.load(0).ok()?;
    let (protocol, tcp) = match first >> 4 {
        4 => (PROTOCOL.0, usize::from(first & 0xf) * 4),
        6 => (PROTOCOL.1, V6_HEADER),
        _ => return None,
    };
    if ctx.load::<u8>(protocol).ok()? != IPPROTO_TCP {
        return None;
    }
    if ctx.load::<u8>(tcp + FLAGS).ok()? & (SYN | ACK) != SYN {
        return None;
    }
    let (client, app): (Address, Address) = if protocol == PROTOCOL.0 {
        (address::v4(ctx.load(12).ok()?), address::v4(ctx.load(16).ok()?))
    } else {
        (ctx.load(8).ok()?, ctx.load(24).ok()?)
    };
    // SAFETY: nothing holds a reference into the map across an update of this element.
    unsafe { POD_IPS.get(app) }?;
    let [client_port, app_port]: [u16; 2] = ctx.load(tcp).ok()?;
    let (client_port, app_port) = (u16::from_be(client_port), u16::from_be(app_port));
    Some(Dial { client, app, client_port, app_port })
}
