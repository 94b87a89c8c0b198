//! Finds the network namespaces of pods by their processes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io::{self, Read},
    net::IpAddr,
    path::Path,
};

use nix::{
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};

use super::{
    error::{CaptureError, Step},
    netns::Netns,
    pod_cgroup,
};
use crate::mesh::PodUid;

/// The network namespaces that processes of some pods are in.
#[derive(Debug, Default)]
pub struct Sandboxes {
    /// The namespace whose oldest process is oldest first: a pod's own is made before anything
    /// in the pod runs, and what runs there may make others.
    found: HashMap<PodUid, Vec<Netns>>,
}

/// One process of a pod.
struct Process {
    pod: PodUid,
    netns: Netns,
    /// When it started, in the kernel's ticks since boot.
    started: u64,
}

impl Sandboxes {
    /// Looks at every process of the node for those of `wanted`.
    ///
    /// # Errors
    /// When processes cannot be listed.
    pub fn scan(wanted: &HashSet<PodUid>) -> Result<Self, CaptureError> {
        let mut oldest: HashMap<PodUid, BTreeMap<u64, (u64, Netns)>> = HashMap::new();
        if !wanted.is_empty() {
            let own = Netns::own().step("open the agent's network namespace")?.inode();
            let first = Netns::open(Path::new("/proc/1/ns/net")).ok();
            let hosts = [Some(own), first.map(|netns| netns.inode())];
            for process in fs::read_dir("/proc").step("list the node's processes")?.flatten() {
                // A process may end at any moment; then it is none of the pod's any more.
                let Ok(Some(process)) = Process::read(&process.path(), wanted) else { continue };
                let Process { pod, netns, started } = process;
                if hosts.contains(&Some(netns.inode())) {
                    continue;
                }
                let known = oldest.entry(pod).or_default().entry(netns.inode());
                let known = known.or_insert((started, netns));
                known.0 = known.0.min(started);
            }
        }
        let in_order = |namespaces: BTreeMap<u64, (u64, Netns)>| {
            let mut namespaces: Vec<_> = namespaces.into_values().collect();
            namespaces.sort_by_key(|(started, _)| *started);
            namespaces.into_iter().map(|(_, netns)| netns).collect()
        };
        Ok(Self { found: oldest.into_iter().map(|(uid, all)| (uid, in_order(all))).collect() })
    }

    /// The network namespace of the pod `uid`, which holds one of `ips`. To be asked once.
    ///
    /// # Errors
    /// When there is no such namespace, or not yet.
    pub fn netns_of(&mut self, uid: &PodUid, ips: &[IpAddr]) -> Result<Netns, CaptureError> {
        let mut why = CaptureError::NoSandbox { uid: uid.clone() };
        for (index, netns) in self.found.remove(uid).into_iter().flatten().enumerate() {
            match netns.is_pods(ips) {
                Ok(()) => return Ok(netns),
                // What is wrong with the oldest says most.
                Err(error) if index == 0 => why = error,
                Err(_) => {}
            }
        }
        Err(why)
    }
}

impl Process {
    /// The process at `path`, a directory of /proc, if it belongs to one of `wanted`. Everything
    /// is read through one descriptor, which leads to no other process that gets the same number.
    fn read(path: &Path, wanted: &HashSet<PodUid>) -> io::Result<Option<Self>> {
        let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        if !path.file_name().and_then(|name| name.to_str()).is_some_and(is_process) {
            return Ok(None);
        }
        let directory =
            open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let file = |name: &str| -> io::Result<File> {
            Ok(openat(&directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
        };
        let text = |name: &str| -> io::Result<String> {
            let mut bytes = Vec::new();
            file(name)?.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let Some(pod) = pod_cgroup::pod_of(&text("cgroup")?).filter(|pod| wanted.contains(pod))
        else {
            return Ok(None);
        };
        let started = start_of(&text("stat")?).ok_or(io::ErrorKind::InvalidData)?;
        let netns = Netns::from_file(file("ns/net")?, path.join("ns/net"))?;
        Ok(Some(Self { pod, netns, started }))
    }
}

/// When a process started: field 22 of proc_pid_stat(5). Its second, the program's name in
/// parentheses, may hold anything.
fn start_of(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_found_behind_any_name() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        for name in ["sh", "a b", ") S 1 (", ""] {
            assert_eq!(start_of(&format!("17 ({name}) {}\n", fields.join(" "))), Some(22));
        }
        assert_eq!(start_of("17 (sh) S 1"), None);
    }

    #[test]
    fn a_pod_without_processes_here_is_told_from_one_that_is() {
        let uid = PodUid::new("6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11").unwrap();
        let mut sandboxes = Sandboxes::scan(&HashSet::from([uid.clone()])).unwrap();
        let error = sandboxes.netns_of(&uid, &[]).unwrap_err().to_string();
        assert!(error.contains(uid.as_str()) && error.contains("(hint: "), "{error}");
    }
}
