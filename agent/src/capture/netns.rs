//! Network namespaces, and running code inside one.

use std::{
    fs::File,
    io,
    net::IpAddr,
    os::{fd::AsFd, unix::fs::MetadataExt},
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    ifaddrs::{InterfaceAddress, getifaddrs},
    sched::{CloneFlags, setns, unshare},
    sys::stat::Mode,
};

use super::{
    error::{CaptureError, Step},
    network::ip_of,
};

/// The root of the node's file systems, as its first process has it.
const ROOT: &str = "/proc/1/root";

/// An open network namespace. Holding it keeps the namespace alive.
#[derive(Debug)]
pub struct Netns {
    file: File,
    inode: u64,
    path: PathBuf,
}

impl Netns {
    /// The namespace at `path` of a pod: `/run/netns/NAME`.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_pod(path: &Path) -> Result<Self, CaptureError> {
        Self::open(path).map_err(|error| CaptureError::WrongNetns {
            path: path.to_owned(),
            why: format!("{error} (hint: does the pod still run?)"),
        })
    }

    /// The namespace that the node's first process finds at `path`; the agent's own file system
    /// is another in a container. Minimum kernel version: 5.6.
    ///
    /// # Errors
    /// When there is none, or the first process is out of reach.
    pub fn on_node(path: &Path) -> Result<Self, CaptureError> {
        let open = || -> io::Result<Self> {
            let root = open(ROOT, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
            // Or links on the way, as /var/run is one, would lead into the agent's own.
            let how = OpenHow::new()
                .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT);
            Self::from_file(openat2(root, path, how)?.into(), path.to_owned())
        };
        open().map_err(|error| CaptureError::WrongNetns {
            path: path.to_owned(),
            why: format!(
                "{error} (hint: is it there on the node, and the agent in its pid namespace?)"
            ),
        })
    }

    /// The namespace at `path`, e.g. `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(File::open(path)?, path.to_owned())
    }

    /// The namespace that is open as `file` and was found at `path`.
    pub(super) fn from_file(file: File, path: PathBuf) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        Ok(Self { file, inode, path })
    }

    /// The namespace the agent itself runs in.
    pub(super) fn own() -> io::Result<&'static Self> {
        static OWN: OnceLock<Netns> = OnceLock::new();
        if let Some(own) = OWN.get() {
            return Ok(own);
        }
        let own = Self::open(Path::new("/proc/self/ns/net"))?;
        Ok(OWN.get_or_init(|| own))
    }

    /// Where it was found.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes sure that it is a pod's with one of these addresses, whatever a source says.
    pub(super) fn is_pods(&self, ips: &[IpAddr]) -> Result<(), CaptureError> {
        let wrong = |why: String| CaptureError::WrongNetns { path: self.path.clone(), why };
        let own = Self::own().step("open the agent's network namespace")?;
        if self.inode == own.inode {
            return Err(wrong(
                "it is the node's own (hint: host-network pods are never captured)".into(),
            ));
        }
        let entries = self.interfaces()?;
        if !entries.iter().filter_map(ip_of).any(|ip| ips.contains(&ip)) {
            return Err(wrong(format!(
                "it holds none of the pod's addresses {ips:?} (hint: `ip -n NAME address` shows \
                 what it holds)"
            )));
        }
        let interface = entries.into_iter().map(|entry| entry.interface_name);
        match interface.into_iter().find(|name| leads_to_a_machine(name)) {
            Some(interface) => Err(CaptureError::VirtualMachine { interface }),
            None => Ok(()),
        }
    }

    /// The addresses by which others may reach the pod that it is of: neither loopback nor
    /// link-local, which is the same in many.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, CaptureError> {
        let reachable = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
        };
        Ok(self.interfaces()?.iter().filter_map(ip_of).filter(reachable).collect())
    }

    /// Every interface, once for each of its addresses and once without.
    fn interfaces(&self) -> Result<Vec<InterfaceAddress>, CaptureError> {
        let read = self.run(|| Ok(getifaddrs()?.collect()));
        read.map_err(|error| CaptureError::WrongNetns {
            path: self.path.clone(),
            why: format!("{error} (hint: is it a network namespace?)"),
        })
    }

    /// A new namespace that goes with its last user: nothing names it, and no process is in it.
    pub(super) fn throw_away() -> io::Result<Self> {
        // A thread of its own takes the step that has no way back.
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::open(Path::new("/proc/thread-self/ns/net"))
        });
        made.join().unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// What tells the namespace from every other one alive.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The namespace as a file, for links to attach to.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` with the calling thread inside the namespace. Sockets keep the namespace
    /// they were made in, so everything that waits happens outside, later.
    ///
    /// Two system calls, a microsecond: no thread has to be kept inside. `work` cannot await,
    /// so that the thread never leaves with the namespace still switched.
    ///
    /// # Panics
    /// Ends the process when the thread cannot get back: it would go on to serve other pods
    /// from inside this one.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let own = Self::own()?;
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let _back = Back(own);
        work()
    }
}

/// Whether an interface is one by which packets of a pod go to a virtual machine, past the sockets of
/// its namespace: as Kata Containers (`tap0_kata`) and KubeVirt (`k6t-eth0`) name theirs.
fn leads_to_a_machine(interface: &str) -> bool {
    (interface.starts_with("tap") && interface.ends_with("_kata")) || interface.starts_with("k6t-")
}

/// Takes the thread back, also when the work panics.
struct Back(&'static Netns);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0.file.as_fd(), CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "could not leave a pod's network namespace");
            std::process::abort();
        }
    }
}
