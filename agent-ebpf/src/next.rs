//! What a next version could come with: a map that the pins of this one lack, and programs that use
//! it. For `cargo xtask kube test`, which upgrades a cluster to it and back.

use aya_ebpf::{macros::map, maps::PerCpuArray};

/// What was seen of enrolled pods, by [`Event`].
#[map]
pub static SEEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(3, 0);

/// An index of [`SEEN`].
#[repr(u32)]
pub enum Event {
    Connect,
    Syn,
    Probe,
}

/// Counts one event.
#[inline(always)]
pub fn saw(event: Event) {
    if let Some(count) = SEEN.get_ptr_mut(event as u32) {
        // SAFETY: as in `maps::count`.
        unsafe { *count += 1 };
    }
}
