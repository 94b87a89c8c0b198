//! How many files the agent may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit as far as it goes, and returns what it is then. A connection needs two
/// descriptors, and programs start with a soft limit of 1,024 on most machines, for the sake of
/// `select()`; nothing here uses that.
pub(super) fn allow_all() -> u64 {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
    // What every process has, where it cannot even be asked for.
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}
