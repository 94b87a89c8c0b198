//! The agent's state as `sluice status` shows it.

use std::{
    collections::BTreeMap,
    fmt,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Everything `sluice status` shows. Times are RFC 3339, UTC.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// Whether another agent of this node is in charge.
    pub standby: bool,
    /// What the agent waits for before it is ready; empty when it is.
    pub pending: Vec<String>,
    /// The snapshot in force.
    pub configuration: Configuration,
    /// Watches on the API server, a kind each; none where files are read.
    pub watches: Vec<Watch>,
    /// Whether the container runtime tells of new pods before they start; `None` when it is not
    /// asked.
    pub runtime_connected: Option<bool>,
    /// The cgroup of the node's kubelet, whose connections to pods pass the agent by; `None` while
    /// the agent takes them.
    pub kubelet_cgroup: Option<PathBuf>,
    /// Why what pods of this node send to each other goes by the tunnel, whichever they are; `None`
    /// where it is handed over, but for pods with a reason of their own.
    pub same_node: Option<String>,
    /// Pods of this node that belong to the mesh.
    pub pods: Vec<Pod>,
    /// Pods of this node that do not.
    pub outside: Vec<Outsider>,
    /// Certificates held for them.
    pub certificates: Vec<Certificate>,
    /// Who has the keys of tokens for them.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub issuers: Vec<Issuer>,
    /// Connections open now.
    pub connections: usize,
    /// Counters by name, e.g. `capture.steered_out`.
    pub counters: BTreeMap<String, u64>,
}

/// The snapshot in force.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Configuration {
    /// Counts up with every change.
    pub version: u64,
    /// When it was read.
    pub loaded_at: String,
    /// Where it is from.
    pub origin: String,
    /// Pods in the mesh's view, this node's and others'.
    pub workloads: usize,
    /// Services.
    pub services: usize,
    /// Why the newest change is not in force, if it is not.
    pub error: Option<String>,
}

/// One pod of this node.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Pod {
    /// `namespace/name`.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its identity.
    pub principal: String,
    /// What it accepts: the mode of mutual TLS and the policy that says so, then ports with a
    /// mode of their own.
    pub mutual_tls: String,
    /// The AuthorizationPolicies that hold for it, in the order in which they are asked.
    #[serde(default)]
    pub authorization: Vec<String>,
    /// The RequestAuthentications that hold for it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub authentication: Vec<String>,
    /// Why it is not captured; `None` when it is.
    pub error: Option<String>,
    /// Why it has no valid certificate, so that its connections are refused once it is captured;
    /// `None` when it has one.
    pub uncertified: Option<String>,
    /// Why what it exchanges with pods of its node goes by the tunnel; `None` where it is handed over.
    pub same_node: Option<String>,
    /// Why clients in the mesh do not reach it; `None` where nothing is known against it.
    pub cut: Option<String>,
}

/// Somebody who has keys of tokens.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Issuer {
    /// Where the keys are, or the issuer that says where.
    pub source: String,
    /// How many there are.
    pub keys: usize,
    /// When they were fetched; `None` before that.
    pub fetched_at: Option<String>,
    /// Why there are none, or no newer ones.
    pub error: Option<String>,
}

/// One pod of this node that does not belong to the mesh.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Outsider {
    /// `namespace/name`.
    pub name: String,
    /// Why it does not.
    pub reason: String,
}

/// One watch on the API server.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Watch {
    /// The kind it watches, in plural.
    pub kind: String,
    /// Whether it is up.
    pub connected: bool,
    /// Whether the server does not have the kind.
    pub absent: bool,
    /// Seconds since the server last said something; `None` before it ever did.
    pub age_seconds: Option<u64>,
    /// Starts after an error.
    pub restarts: u64,
    /// Lists of every object, the first included.
    pub lists: u64,
    /// Why it is down.
    pub error: Option<String>,
}

/// One certificate.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Certificate {
    /// Whose it is.
    pub principal: String,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// When it expires.
    pub expires: String,
    /// When it will be renewed.
    pub renewal: String,
    /// Why the last renewal failed, if it did.
    pub error: Option<String>,
}

impl Pod {
    /// Whether it is captured and has no valid certificate: nobody is let in or out.
    pub fn is_refused(&self) -> bool {
        self.error.is_none() && self.uncertified.is_some()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut state = match self.pending.as_slice() {
            [] => "ready".to_owned(),
            pending => format!("not ready: waiting for {}", pending.join(", ")),
        };
        if self.standby {
            state += "; standing by, another agent is in charge";
        }
        writeln!(f, "Node {} ({}), sluice {}", self.node, state, self.version)?;
        let Configuration { version, loaded_at, origin, workloads, services, error } =
            &self.configuration;
        writeln!(
            f,
            "Snapshot {version} of {loaded_at}, from {origin}: {workloads} pods, {services} services; \
             {} connections open",
            self.connections
        )?;
        if let Some(error) = error {
            writeln!(f, "  newest change not in force: {error}")?;
        }
        for Watch { kind, connected, absent, age_seconds, restarts, lists, error } in &self.watches
        {
            let age = age_seconds.map_or("never heard".into(), |age| format!("heard {age} s ago"));
            let state = match (absent, connected) {
                (true, _) => "not installed",
                (false, true) => "up",
                (false, false) => "down",
            };
            write!(
                f,
                "  watch of {kind:<19} {state:<4} {age}, {lists} lists, {restarts} restarts"
            )?;
            match error {
                Some(error) => writeln!(f, ": {error}")?,
                None => writeln!(f)?,
            }
        }
        match self.runtime_connected {
            Some(true) => {
                writeln!(f, "  container runtime up: pods are captured before they start")?
            }
            Some(false) => writeln!(f, "  container runtime down: pods may start before capture")?,
            None => {}
        }
        match &self.kubelet_cgroup {
            Some(path) => writeln!(f, "  kubelet in {}: its probes pass by", path.display())?,
            None if self.standby => {}
            None => writeln!(f, "  kubelet not known: its probes go through the agent")?,
        }
        if let Some(why) = &self.same_node {
            writeln!(f, "  between pods of this node tunnel: {why}")?;
        }
        writeln!(f, "\nPods of this node")?;
        for pod in &self.pods {
            let ips: Vec<_> = pod.ips.iter().map(IpAddr::to_string).collect();
            let (ips, mutual_tls) = (ips.join(","), &pod.mutual_tls);
            match (&pod.error, &pod.uncertified) {
                (Some(error), _) => writeln!(f, "  {:<32} {ips:<40} {error}", pod.name)?,
                (None, Some(why)) => writeln!(
                    f,
                    "  {:<32} {ips:<40} captured, without certificate, so that its connections \
                     are refused: {why}",
                    pod.name
                )?,
                (None, None) => {
                    writeln!(f, "  {:<32} {ips:<40} captured, mutual TLS {mutual_tls}", pod.name)?;
                }
            }
            if !pod.authorization.is_empty() {
                writeln!(f, "    authorization: {}", pod.authorization.join(", "))?;
            }
            if !pod.authentication.is_empty() {
                writeln!(f, "    authentication: {}", pod.authentication.join(", "))?;
            }
            if let Some(why) = &pod.same_node {
                writeln!(f, "    on this node tunnel: {why}")?;
            }
            if let Some(why) = &pod.cut {
                writeln!(f, "    warning: {why}")?;
            }
        }
        for Outsider { name, reason } in &self.outside {
            writeln!(f, "  {name:<32} {:<40} not in the mesh: {reason}", "")?;
        }
        writeln!(f, "\nCertificates")?;
        for certificate in &self.certificates {
            let Certificate { principal, expires, renewal, error, .. } = certificate;
            writeln!(f, "  {principal:<56} expires {expires}, renewal {renewal}")?;
            if let Some(error) = error {
                writeln!(f, "    last renewal failed: {error}")?;
            }
        }
        if !self.issuers.is_empty() {
            writeln!(f, "\nIssuers of tokens")?;
        }
        for Issuer { source, keys, fetched_at, error } in &self.issuers {
            let fetched = fetched_at.as_deref().unwrap_or("never");
            writeln!(f, "  {source:<56} {keys} keys, fetched {fetched}")?;
            if let Some(error) = error {
                writeln!(f, "    last attempt failed: {error}")?;
            }
        }
        writeln!(f, "\nCounters")?;
        for (name, value) in &self.counters {
            writeln!(f, "  {name:<40} {value}")?;
        }
        Ok(())
    }
}

/// Asks the agent whose admin server listens on `address`.
///
/// # Errors
/// When nothing answers there, or something else than an agent does.
pub fn ask(address: SocketAddr) -> anyhow::Result<Status> {
    serde_json::from_str(&fetch(address, "/status")?)
        .with_context(|| format!("{address} does not answer as this version of the agent does"))
}

/// What the agent whose admin server listens on `address` has at `path`.
///
/// # Errors
/// When nothing answers there, or it has nothing.
pub fn fetch(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let answer = (|| {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    })()
    .with_context(|| {
        format!(
            "no agent answers on {address} (hint: is it running in this network namespace? \
             --admin-addr names another address)"
        )
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    anyhow::ensure!(status == "200", "{address} answers {path} with {status}");
    Ok(body.to_owned())
}
