//! A pod: a network namespace and a cgroup, with an identity in the mesh.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    cgroup::Cgroup,
    link::Addresses,
    netns::Netns,
    process::{Finished, Place, Process},
    sockets::Sockets,
};

/// What a pod is in the mesh.
#[derive(Clone, Debug)]
pub struct PodOptions {
    /// Its namespace; `default` unless said otherwise.
    pub namespace: String,
    /// Its service account; its app's name unless said otherwise.
    pub service_account: Option<String>,
    /// What it is a replica of, and its label `app`; its own name unless said otherwise.
    pub app: Option<String>,
    /// Whether its label asks for the mesh.
    pub meshed: bool,
}

impl Default for PodOptions {
    fn default() -> Self {
        Self { namespace: "default".into(), service_account: None, app: None, meshed: true }
    }
}

/// A pod of a node.
#[derive(Debug)]
pub struct Pod {
    name: String,
    node: String,
    options: PodOptions,
    addresses: Addresses,
    netns: Netns,
    place: Place,
    sockets: Sockets,
}

impl Pod {
    pub(crate) fn new(
        name: &str,
        node: &str,
        addresses: Addresses,
        netns: Netns,
        place: Place,
        options: PodOptions,
    ) -> Self {
        let sockets = Sockets::of(place.clone(), name);
        let (name, node) = (name.to_owned(), node.to_owned());
        Self { name, node, options, addresses, netns, place, sockets }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its UID; another pod never has the same, in this lab or another.
    pub fn uid(&self) -> String {
        uid_of(&self.netns)
    }

    /// Its namespace in the mesh.
    pub fn namespace(&self) -> &str {
        &self.options.namespace
    }

    /// What it is a replica of.
    pub fn app(&self) -> &str {
        self.options.app.as_deref().unwrap_or(&self.name)
    }

    /// Its service account.
    pub fn service_account(&self) -> &str {
        self.options.service_account.as_deref().unwrap_or(self.app())
    }

    /// Its identity, in the default trust domain.
    pub fn principal(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace(), self.service_account())
    }

    /// Whether its label asks for the mesh.
    pub fn meshed(&self) -> bool {
        self.options.meshed
    }

    /// Its labels.
    pub fn labels(&self) -> BTreeMap<&str, &str> {
        let mode = if self.meshed() { "ambient" } else { "none" };
        BTreeMap::from([
            ("app", self.app()),
            ("app.kubernetes.io/name", self.app()),
            ("istio.io/dataplane-mode", mode),
        ])
    }

    /// Its addresses, IPv4 first.
    pub fn ips(&self) -> [IpAddr; 2] {
        self.addresses.ips()
    }

    /// Its IPv4 address.
    pub fn ip(&self) -> IpAddr {
        self.addresses.v4.into()
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> IpAddr {
        self.addresses.v6.into()
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The file of its network namespace.
    pub fn netns_path(&self) -> PathBuf {
        self.netns.path()
    }

    /// The lab's working directory.
    pub(crate) fn lab_directory(&self) -> &Path {
        self.place.lab_directory()
    }

    /// Starts one of its processes.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> anyhow::Result<Process> {
        self.place.spawn(&format!("{}-{name}", self.name), command)
    }

    /// Runs a command in it to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, command: Command) -> anyhow::Result<Finished> {
        self.place.run(command)
    }

    /// A socket that belongs to this pod in the kernel's eyes: its namespace and its cgroup, so
    /// that capture treats it as any socket of the pod's processes. Non-blocking.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn socket(
        &self,
        domain: Domain,
        kind: Type,
        protocol: Option<Protocol>,
    ) -> anyhow::Result<Socket> {
        self.sockets.open(domain, kind, protocol)
    }

    /// Many TCP sockets that belong to this pod, all of one family. Blocking.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn tcp_sockets(&self, count: usize, domain: Domain) -> anyhow::Result<Vec<Socket>> {
        self.sockets.open_many(count, domain, Type::STREAM, None)
    }

    /// Connects from this pod.
    ///
    /// # Errors
    /// As `connect()` does, and when no socket can be had.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.sockets.connect(to).await
    }

    /// Listens in this pod on all its addresses; port 0 picks one.
    ///
    /// # Errors
    /// When the port stays taken.
    pub fn listen(&self, port: u16) -> anyhow::Result<TcpListener> {
        self.listen_at(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
    }

    /// Listens in this pod on one address.
    ///
    /// # Errors
    /// When the port stays taken.
    pub fn listen_at(&self, address: SocketAddr) -> anyhow::Result<TcpListener> {
        self.sockets.listen(address)
    }

    /// Its addresses as the kernel is told them.
    pub(crate) fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its processes' cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        self.place.cgroup()
    }
}

/// The UID of the pod in `netns`.
pub(crate) fn uid_of(netns: &Netns) -> String {
    uid_named(netns.name())
}

/// A UID that goes with a name.
pub(crate) fn uid_named(name: &str) -> String {
    let hash = Sha256::digest(name);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30])
}
