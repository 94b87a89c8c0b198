//! The record of a lab: a file its owner holds locked, so that anyone can tell an orphan.
//!
//! Everything a lab makes can be found by its name alone, and a lock goes with the process that
//! holds it. A lab that nobody holds belonged to a process that was killed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};

use crate::{bpffs, cgroup, netns};

/// Records and working directories of labs.
pub(crate) const FOLDER: &str = "/run/sluice-lab";
const RECORD: &str = "lock";
const REGISTRY: &str = "registry";

/// While this is held, no record is made, taken for an orphan or removed, by any process.
#[derive(Debug)]
pub struct Registry {
    _held: Flock<File>,
}

impl Registry {
    /// Waits until nobody else has it.
    ///
    /// # Errors
    /// Without root.
    pub fn hold() -> anyhow::Result<Self> {
        fs::create_dir_all(FOLDER)
            .with_context(|| format!("could not make {FOLDER} (hint: labs need root)"))?;
        let _held = lock(&Path::new(FOLDER).join(REGISTRY), FlockArg::LockExclusive)?;
        Ok(Self { _held })
    }
}

/// A lab's name, held for as long as this lives.
#[derive(Debug)]
pub(crate) struct Record {
    name: String,
    _held: Flock<File>,
}

impl Record {
    /// Removes what dead labs left, then takes a name that nobody has.
    pub(crate) fn take() -> anyhow::Result<Self> {
        let registry = Registry::hold()?;
        sweep(&registry)?;
        loop {
            // Never a name again, so that nobody takes a lab for one that is gone.
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("lab{}-{number}", process::id());
            let folder = directory(&name);
            match fs::create_dir(&folder) {
                Ok(()) => {
                    let held = lock(&folder.join(RECORD), FlockArg::LockExclusiveNonblock)?;
                    return Ok(Self { name, _held: held });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("could not make {}", folder.display()));
                }
            }
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The lab's working directory.
    pub(crate) fn directory(&self) -> PathBuf {
        directory(&self.name)
    }
}

fn directory(lab: &str) -> PathBuf {
    Path::new(FOLDER).join(lab)
}

fn lock(path: &Path, how: FlockArg) -> anyhow::Result<Flock<File>> {
    let file = File::create(path).with_context(|| format!("could not open {}", path.display()))?;
    Flock::lock(file, how)
        .map_err(|(_, error)| error)
        .with_context(|| format!("could not lock {}", path.display()))
}

/// Removes everything of the labs nobody holds.
fn sweep(registry: &Registry) -> anyhow::Result<()> {
    for entry in fs::read_dir(FOLDER).context("could not list labs")?.flatten() {
        let record = entry.path().join(RECORD);
        if record.is_file() && lock(&record, FlockArg::LockExclusiveNonblock).is_ok() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            remove_belongings(&name)?;
            remove_record(&name, registry)?;
        }
    }
    Ok(())
}

/// Removes everything that belongs to a lab, whatever of it there is. The directory with the
/// record goes last, so that a failure is retried.
pub(crate) fn remove_all(lab: &str) -> anyhow::Result<()> {
    remove_belongings(lab)?;
    remove_record(lab, &Registry::hold()?)
}

/// Processes go first, for they hold the rest.
fn remove_belongings(lab: &str) -> anyhow::Result<()> {
    cgroup::delete(lab)?;
    bpffs::delete(lab)?;
    netns::delete_all(&format!("{lab}-"))
}

fn remove_record(lab: &str, _: &Registry) -> anyhow::Result<()> {
    let folder = directory(lab);
    fs::remove_dir_all(&folder).with_context(|| format!("could not remove {}", folder.display()))
}
