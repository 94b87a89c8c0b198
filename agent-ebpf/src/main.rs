//! The kernel side of capture.
//!
//! Three kinds of program, of which none runs per packet of a pod:
//! - `connect`: at `connect()`, marks sockets of enrolled pods so that their packets go to `lo`.
//! - `steer`: at the first SYN in a pod's netns, hands it to the agent's listener.
//! - `kubelet`: on the cgroup of the node's kubelet, tells `steer` of SYNs that are to pass.
//!
//! Enters and leaves through the maps in `maps`, whose layout is `agent-common`. Needs Linux
//! 5.10: sk_lookup programs (5.9), `bpf_get_netns_cookie` (5.7), ring buffer for logs (5.8).
#![no_std]
#![no_main]

mod address;
mod connect;
mod kubelet;
mod maps;
#[cfg(feature = "next-version")]
mod next;
mod steer;

/// Some of the helpers called are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
