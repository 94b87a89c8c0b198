//! What every test bed does with the machine's cgroups: finds the hierarchies, and kills whatever is
//! in a tree of them.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A hierarchy of cgroups that is mounted somewhere.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    /// Where.
    pub root: PathBuf,
    /// Whether it is version 2's.
    pub unified: bool,
}

/// Every hierarchy of the machine, once.
///
/// # Errors
/// When the machine does not tell of its mounts.
pub fn hierarchies() -> anyhow::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("could not read the mounts")?;
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(root), Some(kind)) = (fields.next(), fields.next()) else { continue };
        let unified = kind == "cgroup2";
        let again = found.iter().any(|known| known.root == Path::new(root));
        if (unified || kind == "cgroup") && !again {
            found.push(Hierarchy { root: root.into(), unified });
        }
    }
    Ok(found)
}

/// A cgroup and all below it, deepest first.
pub fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(tree(&entry.path()));
        }
    }
    all.push(folder.to_path_buf());
    all
}

/// Kills every process in a cgroup of version 2 and below, until none is left. Not by
/// `cgroup.kill`, which Linux 5.10 lacks.
///
/// # Errors
/// When some live on until `deadline`.
pub fn kill_all(folder: &Path, deadline: Instant) -> anyhow::Result<()> {
    loop {
        // Reading arms the poll; between this and that no change is lost.
        let events = fs::File::open(folder.join("cgroup.events"))?;
        if io::read_to_string(&events)?.contains("populated 0") {
            return Ok(());
        }
        for folder in tree(folder) {
            // One that goes meanwhile has none.
            let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            for process in processes.lines().filter_map(|line| line.parse().ok()) {
                // Gone already is as good.
                let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("processes in {} do not die", folder.display());
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout)?;
    }
}
