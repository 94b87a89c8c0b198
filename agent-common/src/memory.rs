//! What the process has of memory and does not use.

/// Gives what was freed back to the kernel, where the C library is one that keeps it (glibc). Looks at all
/// that is free, which takes milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer and returns none, and locks what it looks at (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
