//! A node: the machine that pods live on.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    cgroup::Cgroup,
    lab::{FABRIC, Ground},
    link::{self, Addresses},
    netlink::{Netlink, Route},
    netns::Netns,
    pod::{self, Pod, PodOptions},
    process::{Finished, Place, Process},
    sockets::Sockets,
};

/// A network namespace that routes for its pods, with a cgroup and BPF pins of its own.
#[derive(Debug)]
pub struct Node {
    ground: Arc<Ground>,
    name: String,
    number: u8,
    addresses: Addresses,
    netns: Netns,
    cgroup: Cgroup,
    place: Place,
    sockets: Sockets,
    bpffs: PathBuf,
    pods: AtomicU8,
}

impl Node {
    pub(crate) fn create(
        ground: Arc<Ground>,
        name: &str,
        number: u8,
        addresses: Addresses,
    ) -> anyhow::Result<Self> {
        let netns = ground.netns(name)?;
        let cgroup = ground.cgroup.child(name)?;
        let own = cgroup.child("node")?;
        let bpffs = ground.bpffs.join(name);
        fs::create_dir(&bpffs).with_context(|| format!("could not make {}", bpffs.display()))?;
        link::forward(&netns)?;
        let interface = format!("node{number}");
        link::join(
            (&ground.fabric, FABRIC),
            link::FABRIC_GATEWAY,
            &interface,
            (&netns, addresses),
        )?;
        let pods: [(IpAddr, u8); 2] = [
            (Ipv4Addr::new(10, 244, number, 0).into(), 24),
            (Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0).into(), 64),
        ];
        ground.fabric.run(|| {
            let netlink = Netlink::open()?;
            let interface = netlink.interface(&interface)?;
            pods.into_iter().zip(addresses.ips()).try_for_each(|(to, node)| {
                netlink.add_route(Route { to, via: Some(node), interface, from: None })
            })
        })??;
        let place = Place::new(ground.clone(), &netns, &own)?;
        let sockets = Sockets::of(place.clone(), name);
        let name = name.to_owned();
        let pods = AtomicU8::new(0);
        Ok(Self { ground, name, number, addresses, netns, cgroup, place, sockets, bpffs, pods })
    }

    /// Its name, as in a pod's `spec.nodeName`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its addresses, IPv4 first.
    pub fn ips(&self) -> [IpAddr; 2] {
        self.addresses.ips()
    }

    /// The cgroup that holds every process of the node and its pods.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// Where its agent pins BPF objects.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The lab's working directory.
    pub(crate) fn lab_directory(&self) -> &Path {
        &self.ground.directory
    }

    /// Adds a pod with the default [`PodOptions`].
    ///
    /// # Errors
    /// When the name is taken in the lab, or the kernel refuses.
    pub fn pod(&self, name: &str) -> anyhow::Result<Pod> {
        self.pod_with(name, PodOptions::default())
    }

    /// Adds a pod.
    ///
    /// # Errors
    /// When the name is taken in the lab, or the kernel refuses.
    pub fn pod_with(&self, name: &str, options: PodOptions) -> anyhow::Result<Pod> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 10;
        let addresses = Addresses {
            v4: Ipv4Addr::new(10, 244, self.number, number),
            v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number.into(), 0, 0, 0, number.into()),
        };
        self.pod_at(name, addresses, options)
    }

    /// Adds a pod with the addresses of one that was [removed](Self::remove_pod); the name may
    /// be the same too.
    ///
    /// # Errors
    /// When the name is taken in the lab, or the kernel refuses.
    pub fn pod_in_place_of(&self, former: &Pod, name: &str) -> anyhow::Result<Pod> {
        self.pod_at(name, former.addresses(), PodOptions::default())
    }

    fn pod_at(&self, name: &str, addresses: Addresses, options: PodOptions) -> anyhow::Result<Pod> {
        let make = || {
            let netns = self.ground.netns(name)?;
            link::join(
                (&self.netns, self.addresses),
                link::NODE_GATEWAY,
                &interface(addresses),
                (&netns, addresses),
            )?;
            // As a kubelet and its runtime lay it out.
            let cgroup = format!("kubepods/besteffort/pod{}/{name}", pod::uid_of(&netns));
            let cgroup = self.cgroup.descendant(&cgroup)?;
            let place = Place::new(self.ground.clone(), &netns, &cgroup)?;
            anyhow::Ok(Pod::new(name, &self.name, addresses, netns, place, options))
        };
        make().with_context(|| format!("could not make pod {name} on node {}", self.name))
    }

    /// Kills a pod's processes and removes its link, its namespace and its cgroup, as a container
    /// runtime does. What an agent was told about it stays as it is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        let remove = || {
            pod.cgroup().delete()?;
            self.netns.run(|| {
                let netlink = Netlink::open()?;
                netlink.remove(netlink.interface(&interface(pod.addresses()))?)
            })??;
            pod.netns().delete()
        };
        remove().with_context(|| format!("could not remove pod {}", pod.name()))
    }

    /// Starts a process of the node itself, outside every pod.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> anyhow::Result<Process> {
        self.place.spawn(&format!("{}-{name}", self.name), command)
    }

    /// Runs a command of the node itself to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, command: Command) -> anyhow::Result<Finished> {
        self.place.run(command)
    }

    /// A place on the node's network, in a cgroup of its own: among the node's, or beside all of
    /// them.
    pub(crate) fn place_in(&self, cgroup: &str, beside: bool) -> anyhow::Result<Place> {
        let cgroup = if beside {
            self.ground.cgroup.descendant(&format!("beside/{cgroup}"))
        } else {
            self.cgroup.descendant(cgroup)
        };
        Place::new(self.ground.clone(), &self.netns, &cgroup?)
    }

    /// Connects from the node itself, as a process of its network does.
    ///
    /// # Errors
    /// As `connect()` does, and when no socket can be had.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.sockets.connect(to).await
    }

    /// Listens on all addresses of the node itself.
    ///
    /// # Errors
    /// When the port stays taken.
    pub fn listen(&self, port: u16) -> anyhow::Result<TcpListener> {
        self.sockets.listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
    }
}

/// The node's end of the link to the pod with these addresses.
fn interface(pod: Addresses) -> String {
    let [.., number] = pod.v4.octets();
    format!("pod{number}")
}
