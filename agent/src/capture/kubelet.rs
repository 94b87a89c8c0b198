//! Which cgroup is the kubelet's, and no pod's.
//!
//! What the kubelet's program is attached to decides who reaches captured pods past the agent, so
//! it has to be proven, anew whenever it is asked for:
//!
//! - a process called `kubelet`, root's and in the node's own network, is in it;
//! - neither it nor any below it is a pod's, and it is not the root of what is seen;
//! - the agent is not in it, whose dials look the same to the program;
//! - where there are hierarchies of version 1, and a pod's processes may be in their pod's cgroup in
//!   those alone: nobody is in it but the kubelet and what descends from it. A process gets into a
//!   cgroup by birth, or is put there by root, so that no pod's will ever be.
//!
//! Where one of these is not so, the agent takes the kubelet's connections and asks the kernel whose
//! each is ([`owner`](super::owner)).

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    cgroup,
    cgroup_ids::search,
    error::{CaptureError, Step},
    netns::Netns,
    pod_cgroup,
    process::{self, Process},
};
use crate::mesh::PodUid;

/// What its process is called, and its program.
const NAME: &str = "kubelet";

/// Looks for the kubelet of this node.
#[derive(Debug)]
pub struct KubeletSearch {
    /// The inode of the node's own network namespace.
    netns: u64,
    /// Where cgroups are looked for; `None` where no cgroup2 hierarchy can be seen.
    cgroups: Option<PathBuf>,
}

/// The cgroup2 directory of the node's kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeletCgroup {
    process: u32,
    path: PathBuf,
    inode: u64,
}

/// Why no cgroup is known to be the kubelet's alone.
#[derive(Debug, thiserror::Error)]
pub enum Unproven {
    /// There is none, or none that can be seen.
    #[error(
        "no process of root's in the node's own network is called {NAME} (hint: in a container, \
         the agent sees the node's processes with hostPID and CAP_SYS_PTRACE alone)"
    )]
    NoProcess,
    /// Its cgroup is not where the agent looks.
    #[error(
        "the cgroup of process {process} is not below a mount of cgroup2 that is seen here (hint: \
         a mount of the host's as --cgroup)"
    )]
    OutOfSight {
        /// The kubelet's.
        process: u32,
    },
    /// Pods are in it, or will be.
    #[error("its cgroup, {path}, is a pod's or has that of a pod below it")]
    OfPod {
        /// The directory.
        path: PathBuf,
    },
    /// Others are in it.
    #[error("process {process} is in its cgroup, {path}, too (hint: a service of its own for it)")]
    Shared {
        /// One of the others.
        process: u32,
        /// The directory.
        path: PathBuf,
    },
    /// The kernel did not tell.
    #[error("it cannot be looked for: {0}")]
    Unknown(#[from] io::Error),
}

impl KubeletSearch {
    /// For that of the network namespace at `netns`, or of the agent's own; its cgroup is looked
    /// for below `cgroup`, or where cgroup2 is mounted.
    ///
    /// # Errors
    /// When `netns` is not there.
    pub fn open(netns: Option<&Path>, cgroup: Option<&Path>) -> Result<Self, CaptureError> {
        let path = netns.unwrap_or(Path::new("/proc/self/ns/net"));
        let netns = Netns::open(path);
        let netns =
            netns.step(format!("open the node's network namespace at {}", path.display()))?;
        let cgroups = cgroup.map(Path::to_owned).or_else(cgroup::mounted);
        Ok(Self { netns: netns.inode(), cgroups })
    }

    /// Proves which cgroup is the kubelet's. The one that was `known` is looked at first, and is
    /// most often the answer. May block: on searches through processes and cgroups.
    ///
    /// # Errors
    /// When there is none, or that cannot be proven.
    pub fn find(&self, known: Option<&KubeletCgroup>) -> Result<KubeletCgroup, Unproven> {
        if let Some(known) = known
            && let Ok(Some(same)) = self.cgroup_of(known.process, Some(&known.path))
        {
            return Ok(same);
        }
        let mut unproven = Unproven::NoProcess;
        for process in process::all()? {
            match self.cgroup_of(process, None) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(why) => unproven = why,
            }
        }
        Err(unproven)
    }

    /// The cgroup of `process`, if that is the kubelet; `path` is where it may be.
    fn cgroup_of(
        &self,
        process: u32,
        path: Option<&Path>,
    ) -> Result<Option<KubeletCgroup>, Unproven> {
        // Processes come and go, and most are nobody's business.
        let Ok(looked_at) = Process::open(process) else { return Ok(None) };
        if !self.is_kubelet(&looked_at).unwrap_or(false) {
            return Ok(None);
        }
        let cgroups = looked_at.text("cgroup")?;
        let out_of_sight = || Unproven::OutOfSight { process };
        let root = self.cgroups.as_deref().ok_or_else(out_of_sight)?;
        let path = match path.filter(|path| has_process(path, process).unwrap_or(false)) {
            Some(path) => path.to_owned(),
            None => directory(root, &cgroups, process)?.ok_or_else(out_of_sight)?,
        };
        if pod_cgroup::any_pod_of(&cgroups).is_some() || pod_of(&path).is_some() {
            return Err(Unproven::OfPod { path });
        }
        if cgroup::are_several()? {
            let belongs = |other| other == process || descends(other, process);
            nobody_but(&path, belongs)?;
        } else {
            nobody_but(&path, |other| other != std::process::id())?;
        }
        let inode = fs::metadata(&path)?.ino();
        // Still there, so that all of it was about this process.
        looked_at.text("comm")?;
        Ok(Some(KubeletCgroup { process, path, inode }))
    }

    fn is_kubelet(&self, process: &Process) -> io::Result<bool> {
        Ok(process.text("comm")?.trim_end() == NAME
            && is_roots(&process.text("status")?)
            && fs::metadata(process.file("ns/net"))?.ino() == self.netns)
    }
}

impl KubeletCgroup {
    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the very same cgroup, and not one made anew under the same name.
    pub fn is_same(&self, other: &Self) -> bool {
        self.inode == other.inode
    }

    /// The directory, for programs to attach to.
    pub(super) fn open(&self) -> io::Result<File> {
        let directory = File::open(&self.path)?;
        if directory.metadata()?.ino() != self.inode {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it was made anew"));
        }
        Ok(directory)
    }
}

/// Whether `/proc/PID/status` tells of a process that runs as root.
fn is_roots(status: &str) -> bool {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    // The real one, then the effective one.
    users.and_then(|users| users.split_whitespace().nth(1)) == Some("0")
}

/// The directory below `root` that holds `process`. Its name is told by `/proc/PID/cgroup`, with a
/// path that begins at the agent's own cgroup namespace; where that is, nobody tells.
fn directory(root: &Path, cgroups: &str, process: u32) -> io::Result<Option<PathBuf>> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    let Some(name) = path.and_then(|path| Path::new(path).file_name()) else { return Ok(None) };
    // One that is gone by now holds nobody.
    let holds = |path: PathBuf| has_process(&path, process).unwrap_or(false);
    search(root, |entry| Ok(entry.file_name() == name && holds(entry.path())))
}

/// The pod that has a directory, by its path.
fn pod_of(path: &Path) -> Option<PodUid> {
    pod_cgroup::pod_of_path(&path.to_string_lossy())
}

/// The processes in one cgroup. Those that the agent does not see are 0.
fn processes(path: &Path) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(path.join("cgroup.procs"))?;
    let parsed = text.lines().map(|line| line.parse().map_err(io::Error::other));
    parsed.collect()
}

fn has_process(path: &Path, process: u32) -> io::Result<bool> {
    Ok(processes(path)?.contains(&process))
}

/// Makes sure that in the cgroup, and in those below it, there is nobody but who `belongs` there,
/// and that none is a pod's.
fn nobody_but(path: &Path, belongs: impl Fn(u32) -> bool) -> Result<(), Unproven> {
    let stranger = |path: &Path| -> io::Result<Option<u32>> {
        Ok(processes(path)?.into_iter().find(|&process| !belongs(process)))
    };
    let mut found = stranger(path)?;
    let pod = search(path, |entry| {
        found = found.or(stranger(&entry.path())?);
        Ok(pod_of(&entry.path()).is_some())
    })?;
    if pod.is_some() {
        return Err(Unproven::OfPod { path: path.to_owned() });
    }
    match found {
        Some(process) => Err(Unproven::Shared { process, path: path.to_owned() }),
        None => Ok(()),
    }
}

/// Whether `process` was started by `ancestor`, or by one that was.
fn descends(mut process: u32, ancestor: u32) -> bool {
    while let Some(parent) = parent(process) {
        if parent == ancestor {
            return true;
        }
        process = parent;
    }
    false
}

/// The process that `process` is a child of; `None` for the first one, and one that is gone.
fn parent(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Its name is in parentheses and may hold anything; behind are its state and its parent.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok().filter(|&parent| parent != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy with processes in its directories.
    fn hierarchy(directories: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, processes) in directories {
            let path = root.path().join(path);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.procs"), processes).unwrap();
        }
        root
    }

    #[test]
    fn the_directory_of_a_process_is_found_wherever_its_path_begins() {
        let root = hierarchy(&[
            ("", "1\n"),
            ("system.slice", ""),
            ("system.slice/kubelet.service", "7\n"),
            ("other.slice", ""),
            ("other.slice/kubelet.service", "8\n"),
        ]);
        let path = |cgroups: &str| {
            let found = directory(root.path(), cgroups, 7).unwrap()?;
            Some(found.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned())
        };
        let expected = Some("system.slice/kubelet.service".to_owned());
        assert_eq!(path("0::/system.slice/kubelet.service\n"), expected);
        assert_eq!(path("1:cpu:/x\n0::/../../../system.slice/kubelet.service\n"), expected);
        for nowhere in ["0::/system.slice/elsewhere\n", "0::/\n", "0::/..\n", "1:cpu:/x\n", ""] {
            assert_eq!(path(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn whoever_else_is_in_the_cgroup_or_below_it_is_named() {
        let root = hierarchy(&[("kubelet", "7\n"), ("kubelet/mounts", "70\n")]);
        let path = root.path().join("kubelet");
        let check = |of_kubelet: &[u32]| nobody_but(&path, |process| of_kubelet.contains(&process));
        check(&[7, 70]).unwrap();
        let said = check(&[7]).unwrap_err().to_string();
        assert!(said.contains("process 70") && said.contains("(hint: "), "{said}");
        assert!(check(&[70]).unwrap_err().to_string().contains("process 7 is"));
    }

    #[test]
    fn a_cgroup_that_has_a_pods_below_it_is_not_the_kubelets() {
        let pod = "kubelet/kubepods/pod6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11";
        let root = hierarchy(&[("kubelet", "7\n"), ("kubelet/kubepods", ""), (pod, "")]);
        let said = nobody_but(&root.path().join("kubelet"), |_| true).unwrap_err().to_string();
        assert!(said.contains("of a pod"), "{said}");
    }

    #[test]
    fn a_child_descends_from_its_parent_and_from_nobody_beside_it() {
        let own = std::process::id();
        let above = parent(own).unwrap();
        assert!(descends(own, above));
        assert!(!descends(above, own));
        assert!(!descends(own, own));
        assert_eq!(parent(u32::MAX), None);
    }

    #[test]
    fn the_user_is_the_effective_one() {
        assert!(is_roots("Name:\tkubelet\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n"));
        assert!(!is_roots("Name:\tkubelet\nUid:\t0\t1000\t0\t0\n"));
        assert!(!is_roots(""));
    }
}
