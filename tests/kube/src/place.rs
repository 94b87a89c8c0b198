//! Names, folders and addresses of a bed.

use std::{
    fmt,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

/// All files of a bed, on a real disk: containerd lays overlays on it.
pub(crate) const FOLDER: &str = "/var/lib/sluice-kube";

/// The control plane's address on the network that joins the nodes.
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);
/// Pods have addresses of this range, and each node a part of it.
pub(crate) const PODS: &str = "10.244.0.0/16";
/// Services have addresses of this one.
pub(crate) const SERVICES: &str = "10.96.0.0/16";
/// The first of these is the API server's own, by Kubernetes' rule.
pub(crate) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Where pods ask for names.
pub(crate) const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// The bed's nodes.
pub const NODES: [NodeName; 2] = [NodeName(1), NodeName(2)];

/// A node, `node-1` or `node-2`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NodeName(u8);

impl NodeName {
    /// The node of that name.
    ///
    /// # Errors
    /// When the bed has none such.
    pub fn parse(name: &str) -> Result<Self, String> {
        let found = NODES.into_iter().find(|node| node.to_string() == name);
        found.ok_or_else(|| format!("the bed has no node {name} (hint: node-1 or node-2)"))
    }

    pub(crate) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 89, 0, 10 + self.0)
    }

    /// The range of its pods.
    pub(crate) fn pods(self) -> String {
        format!("10.244.{}.0/24", self.0)
    }

    /// Its files, as the machine sees them.
    pub(crate) fn folder(self) -> PathBuf {
        Path::new(FOLDER).join("nodes").join(self.to_string())
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node-{}", self.0)
    }
}

/// Certificates, keys and data of the control plane.
pub(crate) fn control_folder() -> PathBuf {
    Path::new(FOLDER).join("control")
}

/// What the control plane's programs print, and each node's first process.
pub(crate) fn log_folder() -> PathBuf {
    Path::new(FOLDER).join("log")
}

/// The name of one of this project's images, which `cargo xtask image` makes. No registry has
/// it: the top-level domain is reserved for tests (RFC 2606).
pub fn image(name: &str) -> String {
    format!("sluice.test/{name}:{}", env!("CARGO_PKG_VERSION"))
}
