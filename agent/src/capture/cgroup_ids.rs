//! Paths of cgroups by the numbers that the kernel gives them.

use std::{
    collections::HashMap,
    fs::{self, DirEntry},
    io,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// The number of the hierarchy's root, where sockets are too that the kernel notes no cgroup of:
/// those of a process with a class or a priority by a hierarchy of version 1 (before Linux 5.15).
const HIERARCHY_ROOT: u64 = 1;
/// Paths kept at most. Only a cgroup that dials a pod from the node's network gets here.
const MOST: usize = 1024;

/// The cgroup2 directories below one. A number is never given twice as long as a machine runs
/// (Linux 5.5), and its directory cannot be moved, so that an answer holds for good.
#[derive(Debug)]
pub(super) struct CgroupIds {
    root: PathBuf,
    known: Mutex<HashMap<u64, Arc<Path>>>,
}

impl CgroupIds {
    /// Those below `root`.
    pub(super) fn below(root: PathBuf) -> Self {
        Self { root, known: Mutex::default() }
    }

    /// The path of the cgroup `id`; `None` where it is not below the root, or the number says
    /// nothing.
    pub(super) fn path(&self, id: u64) -> io::Result<Option<Arc<Path>>> {
        if id == HIERARCHY_ROOT {
            return Ok(None);
        }
        // Held while searching: who asks for the same meanwhile gets the same answer.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = known.get(&id) {
            return Ok(Some(path.clone()));
        }
        let found = if fs::metadata(&self.root)?.ino() == id {
            Some(self.root.clone())
        } else {
            search(&self.root, |entry| Ok(entry.ino() == id))?
        };
        let Some(found) = found else { return Ok(None) };
        if known.len() >= MOST {
            known.clear();
        }
        let path: Arc<Path> = found.into();
        known.insert(id, path.clone());
        Ok(Some(path))
    }
}

/// The first directory below `folder` that `is_it`. Names and numbers come together, a system call
/// for each directory.
pub(super) fn search(
    folder: &Path,
    mut is_it: impl FnMut(&DirEntry) -> io::Result<bool>,
) -> io::Result<Option<PathBuf>> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                if is_it(&entry)? {
                    return Ok(Some(entry.path()));
                }
                folders.push(entry.path());
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_found_by_its_number_and_no_file_is() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("kubepods/burstable/pod1");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("cgroup.procs"), "").unwrap();
        let ids = CgroupIds::below(root.path().to_owned());
        let number = |path: &Path| fs::metadata(path).unwrap().ino();
        for _ in 0..2 {
            assert_eq!(ids.path(number(&deep)).unwrap().as_deref(), Some(&*deep));
        }
        assert_eq!(ids.path(number(root.path())).unwrap().as_deref(), Some(root.path()));
        assert_eq!(ids.path(number(&deep.join("cgroup.procs"))).unwrap(), None);
        assert_eq!(ids.path(HIERARCHY_ROOT).unwrap(), None);
    }
}
