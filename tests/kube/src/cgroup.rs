//! The bed's cgroups: the same tree in every hierarchy of the machine.
//!
//! Every process of a bed is in one of them from before it does anything, so they tell whether
//! there is a bed, and what to kill.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::unistd::Pid;
use sluice_tests::cgroup_tree::{hierarchies, kill_all, tree};

use crate::place::NodeName;

const ROOT: &str = "sluice-kube";
/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// One cgroup of the bed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Group {
    /// The control plane's processes.
    Control,
    /// A node's own processes; those of its pods are beside it.
    System(NodeName),
    /// A node's kubelet, as a service manager would start it.
    Kubelet(NodeName),
}

impl Group {
    fn path(self) -> String {
        match self {
            Self::Control => format!("{ROOT}/control"),
            Self::System(node) => format!("{}/system", of_node(node)),
            Self::Kubelet(node) => format!("{}/kubelet", of_node(node)),
        }
    }
}

/// The cgroup below which a node's kubelet makes those of its pods. Two kubelets below one would
/// kill each other's pods.
pub(crate) fn of_node(node: NodeName) -> String {
    format!("{ROOT}/{node}")
}

/// Puts the calling process into `group`, which exists.
///
/// # Errors
/// When it does not exist, as once the bed was taken down.
pub fn join(group: Group) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let procs = hierarchy.root.join(group.path()).join("cgroup.procs");
        fs::write(&procs, "0").with_context(|| format!("could not write {}", procs.display()))?;
    }
    Ok(())
}

/// Makes `group` in every hierarchy.
pub(crate) fn make(group: Group) -> anyhow::Result<()> {
    let hierarchies = hierarchies()?;
    // With version 1 beside it, version 2's counts nothing.
    let alone = hierarchies.len() == 1;
    for hierarchy in hierarchies {
        let mut folder = hierarchy.root.clone();
        for part in Path::new(&group.path()) {
            if hierarchy.unified && alone {
                enable_controllers(&folder)?;
            }
            folder.push(part);
            make_one(&folder)?;
        }
    }
    Ok(())
}

/// Makes a cgroup below `group`, and those in between.
pub(crate) fn make_below(group: &Path, path: &Path) -> anyhow::Result<()> {
    let mut folder = group.to_owned();
    path.iter().try_for_each(|part| {
        folder.push(part);
        make_one(&folder)
    })
}

/// Makes a cgroup that processes may join, if it is not there.
fn make_one(folder: &Path) -> anyhow::Result<()> {
    match fs::create_dir(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("could not make {}", folder.display()));
        }
    }
    // Version 1 lets no process into a group whose processors nobody has named.
    let is_version_2 = folder.join("cgroup.controllers").exists();
    for setting in ["cpuset.cpus", "cpuset.mems"] {
        let own = folder.join(setting);
        if !is_version_2 && own.exists() {
            fs::copy(folder.with_file_name(setting), own)
                .with_context(|| format!("could not set {setting}"))?;
        }
    }
    Ok(())
}

/// Lets the groups below `folder` of version 2 have every controller that it has itself; a
/// kubelet insists on them.
fn enable_controllers(folder: &Path) -> anyhow::Result<()> {
    let available = fs::read_to_string(folder.join("cgroup.controllers"));
    let available = available.with_context(|| format!("{} is no cgroup", folder.display()))?;
    let all: String = available.split_whitespace().map(|name| format!("+{name} ")).collect();
    let control = folder.join("cgroup.subtree_control");
    fs::write(&control, all).with_context(|| format!("could not write {}", control.display()))
}

/// Whether any process of a bed lives.
pub(crate) fn populated() -> anyhow::Result<bool> {
    let events = unified()?.join(ROOT).join("cgroup.events");
    Ok(fs::read_to_string(events).is_ok_and(|events| events.contains("populated 1")))
}

/// The first process of a pid namespace in `group`, by its number outside.
pub(crate) fn first_process(group: Group) -> anyhow::Result<Option<Pid>> {
    let procs = unified()?.join(group.path()).join("cgroup.procs");
    let processes = fs::read_to_string(procs).unwrap_or_default();
    let is_first = |process: &&str| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        // One for each pid namespace it is in, the innermost last.
        let numbers: Vec<_> = numbers.unwrap_or_default().split_whitespace().collect();
        numbers.len() > 1 && numbers.last() == Some(&"1")
    };
    let first = processes.lines().find(is_first);
    Ok(first.and_then(|process| process.parse().ok()).map(Pid::from_raw))
}

/// Kills every process of the bed and removes its cgroups; there may be none.
pub(crate) fn delete() -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let root = unified()?.join(ROOT);
    if root.exists() {
        kill_all(&root, deadline)?;
    }
    for hierarchy in hierarchies()? {
        let root = hierarchy.root.join(ROOT);
        while root.exists() {
            let removed = tree(&root).iter().try_for_each(fs::remove_dir);
            match removed {
                Ok(()) => {}
                // Version 1 counts dead processes until the kernel is through with them, and
                // has no event for it.
                Err(error) if Instant::now() > deadline => {
                    return Err(error)
                        .with_context(|| format!("could not remove {}", root.display()));
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }
    Ok(())
}

/// The processes of `group` whose command line begins with `name`, by their numbers outside.
pub(crate) fn processes(group: Group, name: &str) -> anyhow::Result<Vec<Pid>> {
    named(&[unified()?.join(group.path())], name)
}

/// The processes of a node's pods whose command line begins so, by their numbers outside.
pub(crate) fn pods_processes(node: NodeName, name: &str) -> anyhow::Result<Vec<Pid>> {
    named(&tree(&unified()?.join(of_node(node)).join("kubepods")), name)
}

fn named(groups: &[PathBuf], name: &str) -> anyhow::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for group in groups {
        // Those of pods that end go at any moment.
        let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for process in processes.lines() {
            let line = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
            if line.replace('\0', " ").starts_with(name) {
                found.push(Pid::from_raw(process.parse()?));
            }
        }
    }
    Ok(found)
}

/// The cgroups of a pod on `node`, one of each hierarchy that has it.
pub(crate) fn of_pod(node: NodeName, uid: &str) -> anyhow::Result<Vec<PathBuf>> {
    let name = format!("pod{uid}");
    let found = hierarchies()?.into_iter().filter_map(|hierarchy| {
        let folders = tree(&hierarchy.root.join(of_node(node)));
        folders.into_iter().find(|folder| folder.ends_with(&name))
    });
    Ok(found.collect())
}

/// The cgroup that a process is in, which is `folder` or below it.
pub(crate) fn holding(folder: &Path, process: u32) -> Option<PathBuf> {
    tree(folder).into_iter().find(|folder| {
        let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        processes.lines().any(|line| line == process.to_string())
    })
}

/// The processes in a cgroup and those below it.
pub(crate) fn below(folder: &Path) -> Vec<u32> {
    let procs = tree(folder).into_iter().map(|folder| folder.join("cgroup.procs"));
    let texts = procs.map(|procs| fs::read_to_string(procs).unwrap_or_default());
    texts
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn unified() -> anyhow::Result<PathBuf> {
    let found = hierarchies()?.into_iter().find(|hierarchy| hierarchy.unified);
    let hint = "no cgroup2 is mounted (hint: mount -t cgroup2 cgroup2 /sys/fs/cgroup)";
    Ok(found.context(hint)?.root)
}
