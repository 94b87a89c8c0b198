//! The maps, all pinned by the agent so that they outlive it.

use agent_common::{
    Address, Announcement, Config, Counter, Dial, MAX_OWN, MAX_POD_IPS, MAX_PODS, OwnAddress,
    OwnInterface,
};
use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, SockMap},
};

/// The slot of the pod whose netns `steer` runs in. Every pod has a copy of that program with
/// its own number: a SYN between two enrolled pods of one node looks the same in both netns, and
/// an address on a packet proves nothing.
#[unsafe(no_mangle)]
pub static POD: Global<u32> = Global::new(u32::MAX);

/// 1: `steer` may read on which interface a SYN came in (Linux 5.17). Elsewhere that field does not
/// exist; the verifier takes this for the constant it is, and never looks at the read.
#[unsafe(no_mangle)]
pub static KNOWS_INGRESS: Global<u32> = Global::new(0);

/// What is the same for every pod; one element.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Enrolled pods: netns cookie to slot.
#[map]
pub static PODS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_PODS, 0);

/// Addresses that enrolled pods are known by to others, to slot.
#[map]
pub static POD_IPS: HashMap<Address, u32> = HashMap::with_max_entries(MAX_POD_IPS, 0);

/// Every address in the pods' network namespaces. By pod: link-local ones are the same in many.
#[map]
pub static OWN_ADDRESSES: HashMap<OwnAddress, u8> =
    HashMap::with_max_entries(MAX_OWN as u32 * MAX_PODS, BPF_F_NO_PREALLOC);

/// The interfaces there that marked packets cannot leave by.
#[map]
pub static OWN_INTERFACES: HashMap<OwnInterface, u8> =
    HashMap::with_max_entries(MAX_OWN as u32 * MAX_PODS, BPF_F_NO_PREALLOC);

/// Listeners of enrolled pods, two a pod. A listener that closes leaves by itself.
#[map]
pub static LISTENERS: SockMap = SockMap::with_max_entries(2 * MAX_PODS, 0);

/// The agent's own dials to applications, while their handshake lasts. What an agent that was killed
/// left behind ends by its time, and makes room.
#[map]
pub static DIALS: LruHashMap<Dial, Announcement> = LruHashMap::with_max_entries(65_536, 0);

/// SYNs of the kubelet on their way to captured pods, and when they left by the monotonic clock, in
/// nanoseconds. Most are there for microseconds; what got lost makes room in time.
#[map]
pub static PROBES: LruHashMap<Dial, u64> = LruHashMap::with_max_entries(4096, 0);

/// Sockets the agent is about to connect, by socket cookie; the netns cookie is written here.
/// A cookie is never used twice, so an entry that a dead agent left behind matches nothing.
#[map]
pub static OWN: LruHashMap<u64, u64> = LruHashMap::with_max_entries(65_536, 0);

/// Network namespaces that agents of this node run in, by cookie. A cookie is never used twice:
/// what a dead agent left matches nothing, and makes room in time.
#[map]
pub static AGENTS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(1024, 0);

/// Events by [`Counter`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

/// Counts one event.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(count) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the element is this CPU's own, and programs are not preempted by each other
        // on one CPU in a way that loses more than a count.
        unsafe { *count += 1 };
    }
}
