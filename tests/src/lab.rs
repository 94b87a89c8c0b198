//! A lab: nodes joined by a router, and everything they stand on.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use anyhow::Context;

use crate::{
    bpffs,
    cgroup::Cgroup,
    link::{self, Addresses},
    mesh::MeshConfig,
    netlink::Netlink,
    netns::Netns,
    node::Node,
    record::{self, Record},
};

/// Nodes and pods on a network of their own. Any number of labs can exist at once.
///
/// Nodes and pods keep their lab: it is removed, with every process in it, when the last of
/// them is dropped.
#[derive(Clone, Debug)]
pub struct Lab {
    pub(crate) ground: Arc<Ground>,
}

/// What everything in a lab shares.
#[derive(Debug)]
pub(crate) struct Ground {
    record: Record,
    /// Every namespace, pin and cgroup of the lab.
    pub(crate) cgroup: Cgroup,
    pub(crate) bpffs: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) fabric: Netns,
    nodes: AtomicU8,
}

/// The router between the nodes. It is no node: what runs here is outside the mesh.
pub(crate) const FABRIC: Addresses =
    Addresses { v4: Ipv4Addr::new(172, 31, 0, 254), v6: fabric_v6(0xfe) };

const fn fabric_v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, last)
}

impl Lab {
    /// Makes a lab without nodes, after removing what killed runs left behind.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses.
    pub fn new() -> anyhow::Result<Self> {
        let record = Record::take()?;
        let ground = Ground::lay(record).context("could not make a lab")?;
        link::forward(&ground.fabric)?;
        ground.fabric.run(|| {
            let netlink = Netlink::open()?;
            let lo = netlink.interface("lo")?;
            netlink.up(lo)?;
            let mut addresses = FABRIC.host_routes().into_iter();
            addresses.try_for_each(|(ip, bits)| netlink.add_address(lo, ip, bits))
        })??;
        Ok(Self { ground: Arc::new(ground) })
    }

    /// Its name; everything that belongs to it has this in its own name.
    pub fn name(&self) -> &str {
        self.ground.record.name()
    }

    /// Its working directory, which goes with it.
    pub fn directory(&self) -> &Path {
        &self.ground.directory
    }

    /// The cgroup that holds every process of every node and pod.
    pub fn cgroup(&self) -> &Path {
        self.ground.cgroup.path()
    }

    /// The namespace of the router between the nodes. What runs here is outside the mesh and
    /// can be reached from every node and pod.
    pub fn fabric(&self) -> &Netns {
        &self.ground.fabric
    }

    /// The router's addresses.
    pub fn fabric_ips(&self) -> [IpAddr; 2] {
        FABRIC.ips()
    }

    /// Adds a node.
    ///
    /// # Errors
    /// When the name is taken, or the kernel refuses.
    pub fn node(&self, name: &str) -> anyhow::Result<Node> {
        let number = self.ground.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        let addresses =
            Addresses { v4: Ipv4Addr::new(172, 31, 0, number), v6: fabric_v6(number.into()) };
        Node::create(self.ground.clone(), name, number, addresses)
            .with_context(|| format!("could not make node {name}"))
    }

    /// The configuration that every agent of the lab reads.
    ///
    /// # Errors
    /// When its directory cannot be written.
    pub fn mesh(&self) -> anyhow::Result<MeshConfig> {
        self.mesh_named("config")
    }

    /// Another configuration, for an agent that is told something else than the others.
    ///
    /// # Errors
    /// When its directory cannot be written.
    pub fn mesh_named(&self, name: &str) -> anyhow::Result<MeshConfig> {
        MeshConfig::create(self.ground.directory.join(name))
    }
}

impl Ground {
    fn lay(record: Record) -> anyhow::Result<Self> {
        let name = record.name();
        let laid = Cgroup::of_lab(name).and_then(|cgroup| {
            let bpffs = bpffs::of_lab(name)?;
            Ok((cgroup, bpffs, Netns::create(format!("{name}-fabric"))?))
        });
        match laid {
            Ok((cgroup, bpffs, fabric)) => Ok(Self {
                cgroup,
                bpffs,
                directory: record.directory(),
                fabric,
                nodes: AtomicU8::new(0),
                record,
            }),
            Err(error) => {
                let _ = record::remove_all(name);
                Err(error)
            }
        }
    }

    /// The name of a namespace that goes with the lab.
    pub(crate) fn netns(&self, name: &str) -> anyhow::Result<Netns> {
        Netns::create(format!("{}-{name}", self.record.name()))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Err(error) = record::remove_all(self.record.name()) {
            // The record stays; the next lab tries again.
            eprintln!("lab {} is left behind: {error:#}", self.record.name());
        }
    }
}
