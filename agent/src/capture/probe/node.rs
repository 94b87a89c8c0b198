//! The kernel, the rights of the process, and the file systems capture stands on.

use std::{env::consts::ARCH, fs, path::Path};

use nix::sys::resource::{Resource, getrlimit};

use super::report::Area;
use crate::capture::{
    cgroup::{self, Cgroup},
    host,
};

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// For whoever reads the report; nothing depends on it.
pub(super) fn kernel(area: &mut Area<'_>) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    let release = release.unwrap_or_else(|error| format!("of unknown release ({error})"));
    area.ok("release", format!("Linux {} on {ARCH}", release.trim()));
    if fs::exists(BTF).is_ok_and(|exists| exists) {
        area.ok("BTF", BTF);
    } else {
        area.falls_back("BTF", format!("no {BTF}: the programs load without, unrelocated"));
    }
}

pub(super) fn rights(area: &mut Area<'_>) {
    area.need("root", host::need_user_root(), |()| "runs as root".into(), "");
    for capability in host::NEEDED {
        let there = |(): &()| capability.purpose.to_owned();
        area.need(capability.name, capability.need(), there, "mount /proc");
    }
    let host::Capability { name, purpose, .. } = host::TRACE;
    match host::TRACE.need() {
        Ok(()) => area.ok(name, purpose),
        Err(_) => area.falls_back(
            name,
            "not there: a pod's namespace is found by its name in /run/netns alone, not by a \
             process of another user",
        ),
    }
    const MEMORY: &str = "locked memory";
    match (host::lift_memory_limit(), getrlimit(Resource::RLIMIT_MEMLOCK)) {
        (Ok(()), _) => area.ok(MEMORY, "without limit"),
        (Err(_), Ok((_, most))) => area.falls_back(
            MEMORY,
            format!(
                "at most {} KiB, which counts before Linux 5.11 only; whether it does here, the \
                 maps below show (hint: `ulimit -l unlimited`, or CAP_SYS_RESOURCE)",
                most / 1024
            ),
        ),
        (Err(_), Err(error)) => area.falls_back(MEMORY, format!("not known how much: {error}")),
    }
}

pub(super) fn file_systems(area: &mut Area<'_>, cgroup: Option<&Path>, bpffs: &Path) {
    const CGROUP: &str = "cgroup2";
    let detail = |cgroup: &Cgroup| {
        let has_1 = cgroup::has_version_1();
        format!("{cgroup} ({})", if has_1 { "hybrid, beside version 1" } else { "unified" })
    };
    match Cgroup::open(cgroup) {
        Ok(open) if open.caveats().next().is_some() => {
            let caveats: Vec<_> = open.caveats().collect();
            area.falls_back(CGROUP, format!("{open}: {}", caveats.join("; ")));
        }
        open => drop(area.need(CGROUP, open, detail, "mount cgroup2")),
    }
    area.need(
        "bpffs",
        host::need_bpffs(bpffs),
        |()| bpffs.display().to_string(),
        "`mount -o remount,rw /sys/fs/bpf`",
    );
}
