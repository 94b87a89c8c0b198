//! The maps, all pinned by the agent so that they outlive it.

use agent_common::{Address, Config, Counter, Dial, MAX_POD_IPS, MAX_PODS};
use aya_ebpf::{
    Global,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, SockMap},
};

/// The slot of the pod whose netns `steer` runs in. Every pod has a copy of that program with
/// its own number: a SYN between two enrolled pods of one node looks the same in both netns, and
/// an address on a packet proves nothing.
#[unsafe(no_mangle)]
pub static POD: Global<u32> = Global::new(u32::MAX);

/// What is the same for every pod; one element.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Enrolled pods: netns cookie to slot.
#[map]
pub static PODS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_PODS, 0);

/// Addresses of enrolled pods, to slot.
#[map]
pub static POD_IPS: HashMap<Address, u32> = HashMap::with_max_entries(MAX_POD_IPS, 0);

/// Listeners of enrolled pods, two a pod. A listener that closes leaves by itself.
#[map]
pub static LISTENERS: SockMap = SockMap::with_max_entries(2 * MAX_PODS, 0);

/// The agent's own dials to applications, while their handshake lasts.
#[map]
pub static DIALS: HashMap<Dial, u8> = HashMap::with_max_entries(65_536, 0);

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
