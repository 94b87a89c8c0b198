//! The BPF file system, where agents pin programs, maps and links.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

const MOUNT: &str = "/sys/fs/bpf";

/// The directory of a lab's pins; mounts the file system where the machine has not.
pub(crate) fn of_lab(lab: &str) -> anyhow::Result<PathBuf> {
    let mounted = statfs(MOUNT).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if !mounted {
        mount(Some("bpf"), MOUNT, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("could not mount bpffs on {MOUNT} (hint: run as root)"))?;
    }
    let path = path(lab);
    fs::create_dir_all(&path).with_context(|| format!("could not make {}", path.display()))?;
    Ok(path)
}

/// Removes a lab's pins; what they held goes with them.
pub(crate) fn delete(lab: &str) -> anyhow::Result<()> {
    let path = path(lab);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn path(lab: &str) -> PathBuf {
    Path::new(MOUNT).join("sluice-lab").join(lab)
}
