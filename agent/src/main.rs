//! The `sluice` binary; everything it does is in the library.

use std::process::ExitCode;

/// Buffers are often made on one thread and given back on another, which costs glibc's allocator a
/// lock and its memory fragments.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sluice::cli::run()
}
