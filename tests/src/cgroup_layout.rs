//! How a machine may have its cgroups mounted.

use std::process::Command;

use crate::node::Node;

/// A layout of cgroup mounts, for single processes to see instead of the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupLayout {
    /// Hierarchies of version 1 alone.
    Version1,
    /// Version 1, and version 2 beside it in `unified`, as systemd has it by default on older
    /// distributions.
    Hybrid,
    /// Version 2 alone.
    Unified,
}

/// Puts `$2` in the place of what the machine has, with a hierarchy `$1` of version 1; then runs
/// the rest. A hierarchy with a name has no controllers, so that it takes none away from the
/// machine's own. Version 2 has one hierarchy, whose options every mount of it sets anew: they
/// are given again as they were.
const LAY: &str = r#"
set -e
name=$1 layout=$2
shift 2
mounts=$(cat /proc/self/mounts)
options=rw
while read -r _ point kind given _; do
    case $kind in
        cgroup) umount -l "$point" ;;
        cgroup2) umount -l "$point"; options=$given ;;
    esac
done <<END
$mounts
END
case $layout in
    unified) mount -t cgroup2 -o "$options" none /sys/fs/cgroup ;;
    *)
        mount -t tmpfs none /sys/fs/cgroup
        mkdir "/sys/fs/cgroup/$name" /sys/fs/cgroup/unified
        mount -t cgroup -o "none,name=$name" none "/sys/fs/cgroup/$name"
        ;;
esac
case $layout in hybrid) mount -t cgroup2 -o "$options" none /sys/fs/cgroup/unified ;; esac
exec "$@"
"#;

impl CgroupLayout {
    /// Where version 2 is mounted in this layout.
    pub fn cgroup2(self) -> Option<&'static str> {
        match self {
            Self::Version1 => None,
            Self::Hybrid => Some("/sys/fs/cgroup/unified"),
            Self::Unified => Some("/sys/fs/cgroup"),
        }
    }

    /// What the hierarchy of version 1 is called that exists for as long as a process of `node`
    /// sees it.
    pub fn hierarchy(node: &Node) -> String {
        node.netns().name().to_owned()
    }

    /// `command`, with mounts of its own: nothing changes for anybody else.
    pub fn around(self, node: &Node, command: Command) -> Command {
        let layout = match self {
            Self::Version1 => "version 1",
            Self::Hybrid => "hybrid",
            Self::Unified => "unified",
        };
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-c", LAY, "sh", &Self::hierarchy(node), layout]);
        unshare.arg(command.get_program()).args(command.get_args());
        unshare.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        unshare
    }
}
