//! Which pod a process belongs to, by its cgroups.
//!
//! The kubelet gives each pod a cgroup and names it by the pod's UID; the runtime puts each
//! container into one below. What the two look like depends on the kubelet's cgroup driver and on
//! the runtime:
//!
//! | driver | pod | container |
//! |---|---|---|
//! | cgroupfs | `kubepods/burstable/pod<UID>` | `<id>`, with CRI-O `crio-<id>` |
//! | systemd | `kubepods-burstable-pod<UID, "-" as "_">.slice` | `cri-containerd-<id>.scope`, `crio-<id>.scope` |

use crate::mesh::PodUid;

/// The pod that `/proc/PID/cgroup` names: a line for each hierarchy (cgroups(7)), one on nodes
/// with version 2 alone. `None` for a process outside pods, and where lines disagree.
pub(super) fn pod_of(cgroups: &str) -> Option<PodUid> {
    let mut pods = cgroups.lines().filter_map(|line| pod_of_path(line.splitn(3, ':').nth(2)?));
    let first = pods.next()?;
    pods.all(|other| other == first).then_some(first)
}

/// A pod that any line names: for who must be in none.
pub(super) fn any_pod_of(cgroups: &str) -> Option<PodUid> {
    cgroups.lines().find_map(|line| pod_of_path(line.splitn(3, ':').nth(2)?))
}

/// The outermost part that names a pod: below its cgroup a pod may make some with any name. The
/// path begins anywhere: an agent with a cgroup namespace of its own sees it relative to that.
pub(super) fn pod_of_path(path: &str) -> Option<PodUid> {
    path.split('/').find_map(|part| match part.strip_suffix(".slice") {
        Some(slice) => {
            let (above, uid) = slice.rsplit_once("-pod")?;
            let ours = above == "kubepods" || above.ends_with("-kubepods") || is_qos(above);
            ours.then(|| uid_of(&uid.replace('_', "-")))?
        }
        None => uid_of(part.strip_prefix("pod")?),
    })
}

/// Whether a slice is that of a QoS class: the third, guaranteed, has none.
fn is_qos(slice: &str) -> bool {
    ["kubepods-burstable", "kubepods-besteffort"].iter().any(|class| slice.ends_with(class))
}

/// A UID as the API server makes them, or the kubelet for static pods: a hash without dashes.
fn uid_of(text: &str) -> Option<PodUid> {
    let hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let lengths = text.split('-').map(str::len);
    let is_uid = lengths.eq([8, 4, 4, 4, 12]) || text.len() == 32;
    (is_uid && text.split('-').all(hex)).then(|| PodUid::new(text))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11";

    /// As recorded on nodes: what the file said, and the pod.
    const RECORDED: [(&str, &str, Option<&str>); 12] = [
        (
            "containerd, cgroupfs, v2",
            "0::/kubepods/besteffort/pod6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11/6cc1d5dd\n",
            Some(UID),
        ),
        (
            "containerd, cgroupfs, v2, guaranteed",
            "0::/kubepods/pod6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11/6cc1d5dd\n",
            Some(UID),
        ),
        (
            "containerd, systemd, v2",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod6f1f6bd6_6b57_4c6a_\
             9c34_0c7f3b0a3c11.slice/cri-containerd-6cc1d5dd.scope\n",
            Some(UID),
        ),
        (
            "containerd, systemd, v2, guaranteed",
            "0::/kubepods.slice/kubepods-pod6f1f6bd6_6b57_4c6a_9c34_0c7f3b0a3c11.slice/\
             cri-containerd-6cc1d5dd.scope\n",
            Some(UID),
        ),
        (
            "CRI-O, systemd, v2, in a cgroup of the container's own systemd",
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod6f1f6bd6_6b57_4c6a_\
             9c34_0c7f3b0a3c11.slice/crio-1f0e.scope/init.scope\n",
            Some(UID),
        ),
        (
            "CRI-O, cgroupfs, v2",
            "0::/kubepods/burstable/pod6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11/crio-1f0e\n",
            Some(UID),
        ),
        (
            "containerd, cgroupfs, v1 hybrid",
            "12:cpuset:/kubepods/burstable/pod6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11/6cc1d5dd\n\
             4:cpu,cpuacct:/kubepods/burstable/pod6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11/6cc1d5dd\n\
             1:name=systemd:/kubepods/burstable/pod6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11/6cc1d5dd\n\
             0::/kubepods/burstable/pod6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11/6cc1d5dd\n",
            Some(UID),
        ),
        (
            "containerd, systemd, v1 hybrid, where version 2 has the runtime's own cgroup",
            "11:memory:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod6f1f6bd6_\
             6b57_4c6a_9c34_0c7f3b0a3c11.slice/cri-containerd-6cc1d5dd.scope\n\
             0::/system.slice/containerd.service\n",
            Some(UID),
        ),
        (
            "a cgroup root of the kubelet's own, systemd",
            "0::/node.slice/node-kubepods.slice/node-kubepods-burstable.slice/\
             node-kubepods-burstable-pod6f1f6bd6_6b57_4c6a_9c34_0c7f3b0a3c11.slice/\
             cri-containerd-6cc1d5dd.scope\n",
            Some(UID),
        ),
        (
            "seen from a cgroup namespace beside it",
            "0::/../../pod6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11/6cc1d5dd\n",
            Some(UID),
        ),
        (
            "a static pod",
            "0::/kubepods/burstable/pod1d6bfc8bbd4d9f8cf5d6e1f4f8a6c8d1/6cc1d5dd\n",
            Some("1d6bfc8bbd4d9f8cf5d6e1f4f8a6c8d1"),
        ),
        ("a service of the node", "0::/system.slice/kubelet.service\n", None),
    ];

    #[test]
    fn every_recorded_layout_names_its_pod() {
        for (layout, cgroups, pod) in RECORDED {
            let found = pod_of(cgroups);
            assert_eq!(found.as_ref().map(PodUid::as_str), pod, "{layout}");
        }
    }

    #[test]
    fn a_pod_cannot_pass_for_another_by_what_it_makes_below_its_own_cgroup() {
        let other = "0c1a2b3c-0000-4000-8000-000000000000";
        for below in [
            format!("0::/kubepods/besteffort/pod{UID}/6cc1d5dd/pod{other}\n"),
            format!("0::/kubepods/pod{UID}/kubepods-pod{}.slice\n", other.replace('-', "_")),
        ] {
            assert_eq!(pod_of(&below).unwrap().as_str(), UID);
        }
        let two = format!("1:cpu:/kubepods/pod{UID}/a\n0::/kubepods/pod{other}/a\n");
        assert_eq!(pod_of(&two), None, "lines that disagree name nobody");
    }

    #[test]
    fn what_only_looks_like_a_pod_is_none() {
        for path in [
            "",
            "0::/",
            "0::",
            "/kubepods/pod",
            "0::/kubepods/podman/1",
            "0::/machine.slice/libpod-6f1f6bd6.scope",
            "0::/user.slice/my-pod6f1f6bd6_6b57_4c6a_9c34_0c7f3b0a3c11.slice",
            "0::/kubepods/pod6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c1g/a",
            "0::/kubepods/pod6f1f6bd66b574c6a9c340c7f3b0a3c1é/a",
        ] {
            assert_eq!(pod_of(path), None, "{path}");
        }
    }
}
