//! Types shared by the eBPF programs and the agent that loads them.
//!
//! Everything here crosses the kernel boundary as plain bytes: fixed layout, no padding, no
//! pointers. A change of layout or meaning is a change of [`ABI`].
//!
//! With it is what userspace asks of a socket and of the C library, and no safe interface has.
#![no_std]

#[cfg(feature = "user")]
mod memory;
#[cfg(feature = "user")]
mod socket;

#[cfg(feature = "user")]
pub use {memory::give_back, socket::unacknowledged};

/// Version of the maps' layout; pins of another version are never reused.
pub const ABI: u32 = 2;

/// The mark that sends a packet to `lo`, by the rules in its pod's netns. What a socket was marked
/// with before stays in the other bits.
pub const MARK: u32 = 0x3900_0000;
/// The bits of a mark that are capture's.
pub const MARK_MASK: u32 = 0xff00_0000;
/// The routing table in the pod's netns for packets that are marked.
pub const TABLE: u32 = 0x539;
/// That for marked packets of sockets that are bound to a device.
pub const DEVICE_TABLE: u32 = 0x53a;

/// Most pods one agent can enrol. Kubernetes nodes are limited to a few hundred.
pub const MAX_PODS: u32 = 4096;
/// Most addresses all of them may have together.
pub const MAX_POD_IPS: u32 = 4 * MAX_PODS;

/// Most addresses of one pod's network namespace, of interfaces in it, that are known to the
/// programs. What leads to or from others is refused.
pub const MAX_OWN: usize = 64;

/// An address as the programs compare it: IPv4 as IPv4-mapped IPv6, network byte order.
pub type Address = [u8; 16];

/// A connection towards an application whose SYN belongs to the application: a dial of the agent's
/// own, or a probe of the kubelet's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    /// The client's address; the agent dials from it.
    pub client: Address,
    /// The application's address.
    pub app: Address,
    /// The client's port, host byte order.
    pub client_port: u16,
    /// The application's port, host byte order.
    pub app_port: u16,
}

/// An address that the network namespace of the pod in `slot` holds, whoever gave it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    /// The address.
    pub address: Address,
    /// The pod's slot.
    pub slot: u32,
}

/// An interface in the network namespace of the pod in `slot` whose traffic is captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnInterface {
    /// The pod's slot.
    pub slot: u32,
    /// The interface's index.
    pub index: u32,
}

/// What the agent says of a dial it is about to make.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// When, by the monotonic clock, in nanoseconds.
    pub at: u64,
    /// 1: the SYN arrives on `lo`, where nobody else's can come from.
    pub on_loopback: u64,
}

/// How long an announcement is good for, in nanoseconds: what an agent that was killed left behind
/// is soon worth nothing. Longer than any dial may take.
pub const ANNOUNCEMENT_LIFETIME: u64 = 15_000_000_000;

/// What the programs need to know that is the same for every pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Cookie of the node's own netns, which is never a pod's.
    pub host_netns: u64,
    /// 1: connections from a netns that is not enrolled are refused.
    pub deny_unknown: u32,
    /// Keeps the size a multiple of eight without padding.
    pub reserved: u32,
}

/// The slot in the listeners' map where the listener for connections *from* a pod is.
pub const fn outbound_slot(pod: u32) -> u32 {
    2 * pod
}

/// The slot in the listeners' map where the listener for connections *to* a pod is.
pub const fn inbound_slot(pod: u32) -> u32 {
    2 * pod + 1
}

/// What the programs count, as indices of the counters' map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// `connect()` of an enrolled pod marked for capture.
    Marked,
    /// `connect()` refused because the mark could not be set.
    MarkFailed,
    /// `connect()` refused because its netns is not enrolled.
    Denied,
    /// `connect()` of the agent itself, left alone.
    Own,
    /// SYNs from a pod handed to the agent.
    SteeredOut,
    /// SYNs to a pod handed to the agent.
    SteeredIn,
    /// SYNs from a pod refused because no agent listens.
    DroppedOut,
    /// SYNs to a pod refused because no agent listens.
    DroppedIn,
    /// SYNs of the kubelet to a pod, passed to the application.
    PassedIn,
    /// `connect()` refused because the socket is bound to an interface that is not known yet.
    UnknownInterface,
    /// SYNs refused because neither of their addresses is known to be the pod's.
    UnknownAddress,
}

impl Counter {
    /// Every counter with its name.
    pub const ALL: [(Counter, &'static str); 11] = [
        (Counter::Marked, "marked"),
        (Counter::MarkFailed, "mark_failed"),
        (Counter::Denied, "denied"),
        (Counter::Own, "own"),
        (Counter::SteeredOut, "steered_out"),
        (Counter::SteeredIn, "steered_in"),
        (Counter::DroppedOut, "dropped_out"),
        (Counter::DroppedIn, "dropped_in"),
        (Counter::PassedIn, "passed_in"),
        (Counter::UnknownInterface, "unknown_interface"),
        (Counter::UnknownAddress, "unknown_address"),
    ];
}

#[cfg(feature = "user")]
mod pod {
    //! Proof to aya that the types may be copied to and from the kernel.

    // SAFETY: `repr(C)`, only integers and byte arrays, no padding (16 + 16 + 2 + 2).
    unsafe impl aya::Pod for super::Dial {}
    // SAFETY: `repr(C)`, only integers and byte arrays, no padding (16 + 4).
    unsafe impl aya::Pod for super::OwnAddress {}
    // SAFETY: `repr(C)`, only integers, no padding (4 + 4).
    unsafe impl aya::Pod for super::OwnInterface {}
    // SAFETY: `repr(C)`, only integers, no padding (8 + 8).
    unsafe impl aya::Pod for super::Announcement {}
    // SAFETY: `repr(C)`, only integers, no padding (8 + 4 + 4).
    unsafe impl aya::Pod for super::Config {}
}
