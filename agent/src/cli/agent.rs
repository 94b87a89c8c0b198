//! `sluice agent`: every option of the agent itself.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Args;
use tonic::metadata::AsciiMetadataValue;

use super::{duration::duration, log::Log};
use crate::{
    capture::UnknownPods,
    identity::istio::{CaAddress, IstioCaOptions},
    limits::LimitOptions,
    mesh::{RootNamespace, TrustDomain},
    node::{self, CaOptions},
    proxy::SameNode,
    workers::{Threads, one_thread},
};

/// Run the agent of this node.
///
/// Telemetry goes where the OTEL_EXPORTER_OTLP_* environment variables say, as with any
/// OpenTelemetry SDK; without OTEL_EXPORTER_OTLP_ENDPOINT no spans are recorded.
#[derive(Args, Debug)]
pub(super) struct Agent {
    /// Directory of Kubernetes YAML that describes the mesh; changes are picked up [default: watch
    /// the API server that KUBECONFIG names, or that of the cluster the agent runs in]
    #[arg(long, env = "SLUICE_CONFIG_DIR", value_name = "DIR")]
    config_dir: Option<PathBuf>,

    /// Where the API server's last known state is saved, for a start without the API server
    #[arg(long, env = "SLUICE_STATE_DIR", value_name = "DIR", default_value = "/var/lib/sluice")]
    state_dir: PathBuf,

    /// The container runtime's NRI socket, usually /var/run/nri/nri.sock: pods that the API server
    /// is watched for are then captured before their first container starts [default: they are
    /// captured when the API server tells of them]
    #[arg(long, env = "SLUICE_NRI_SOCKET", value_name = "SOCKET", conflicts_with = "config_dir")]
    nri_socket: Option<PathBuf>,

    /// Key of a taint that is taken off this node when the agent is ready; it keeps pods away
    /// until then, and needs the right to get and patch nodes [default: none is touched]
    #[arg(long, env = "SLUICE_STARTUP_TAINT", value_name = "KEY", conflicts_with = "config_dir")]
    startup_taint: Option<String>,

    /// This node's name: pods whose spec.nodeName is this are enrolled
    #[arg(long, env = "NODE_NAME", value_name = "NAME", default_value_t = hostname(), value_parser = clap::builder::NonEmptyStringValueParser::new())]
    node_name: String,

    /// Root of trust of local workloads
    #[arg(long, env = "TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,

    /// Namespace whose policies without a selector hold for the whole mesh
    #[arg(long, env = "ROOT_NAMESPACE", value_name = "NAME", default_value = "istio-system")]
    root_namespace: RootNamespace,

    /// CA that issues the certificates, in Istio's API [default: the built-in CA, in --ca-dir]
    #[arg(long, env = "CA_ADDRESS", value_name = "https://HOST:PORT")]
    ca_address: Option<CaAddress>,

    /// PEM file of the root certificates of the CA and of the mesh; changes are picked up
    #[arg(
        long,
        env = "CA_ROOT_CA",
        value_name = "FILE",
        default_value = "/var/run/secrets/istio/root-cert.pem"
    )]
    ca_root: PathBuf,

    /// File of the service-account token for the CA, read for every request
    #[arg(
        long,
        env = "AUTH_TOKEN",
        value_name = "FILE",
        default_value = "/var/run/secrets/tokens/istio-token"
    )]
    ca_token: PathBuf,

    /// Name of this cluster, which an istiod of several clusters asks for
    #[arg(long, env = "CLUSTER_ID", value_name = "NAME", default_value = "Kubernetes")]
    cluster_id: AsciiMetadataValue,

    /// Directory of the built-in CA, created when missing; agents that share it trust each other
    #[arg(long, env = "SLUICE_CA_DIR", value_name = "DIR", default_value = "/var/lib/sluice/ca")]
    ca_dir: PathBuf,

    /// How long a workload certificate is valid; renewed at about half of it
    #[arg(long, env = "SECRET_TTL", value_name = "DURATION", default_value = "24h", value_parser = duration)]
    certificate_lifetime: Duration,

    /// cgroup2 directory whose processes are captured [default: the root of the hierarchy]
    #[arg(long, env = "SLUICE_CGROUP", value_name = "DIR")]
    cgroup: Option<PathBuf>,

    /// The node's network namespace, whose kubelet may probe pods that insist on mutual TLS; in a
    /// pod without the host's network /proc/1/ns/net, with hostPID [default: the agent's own]
    #[arg(long, env = "SLUICE_NODE_NETNS", value_name = "FILE")]
    node_netns: Option<PathBuf>,

    /// Where programs, maps and links are pinned
    #[arg(long, env = "SLUICE_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    bpffs: PathBuf,

    /// What happens to connections of pods that are not enrolled (yet)
    #[arg(long, env = "SLUICE_UNKNOWN_PODS", value_enum, default_value_t = UnknownPods::Allow)]
    unknown_pods: UnknownPods,

    /// How pods of this node reach each other
    #[arg(long, env = "SLUICE_SAME_NODE", value_enum, default_value_t = SameNode::Auto)]
    same_node: SameNode,

    /// Connections that pods of this node may have open in all, streams of tunnels to them and open
    /// requests of HTTP/2; one pod may have no more than are left for all others. A third of the open
    /// files that the process may have, where that is less
    #[arg(long, env = "SLUICE_MAX_CONNECTIONS", value_name = "NUMBER", default_value_t = LimitOptions::DEFAULT.connections, value_parser = clap::value_parser!(u64).range(1..))]
    max_connections: u64,

    /// MiB that may wait in the agent for readers that do not take them; connections of a pod for
    /// which more wait than is left for all others are reset
    #[arg(long, env = "SLUICE_MAX_BUFFERED", value_name = "MIB", default_value_t = LimitOptions::DEFAULT.buffered >> 20, value_parser = clap::value_parser!(u64).range(1..1 << 20))]
    max_buffered: u64,

    /// TLS handshakes of tunnels to pods of this node that may be in progress at once
    #[arg(long, env = "SLUICE_MAX_HANDSHAKES", value_name = "NUMBER", default_value_t = LimitOptions::DEFAULT.handshakes, value_parser = clap::value_parser!(u64).range(1..))]
    max_handshakes: u64,

    /// Threads that carry traffic, of which each pod has one; others take what is too much for it
    /// [default: one for each processor that the agent may use]
    #[arg(long, env = "SLUICE_THREADS", value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Share of new traces that are recorded, 0 to 1; a caller's decision is always kept
    #[arg(long, env = "SLUICE_TRACE_SAMPLING", value_name = "RATIO", default_value = "0.01", value_parser = ratio)]
    trace_sampling: f64,

    /// Address of /healthz/live and /healthz/ready; [::] is 0.0.0.0 where there is no IPv6
    #[arg(long, env = "SLUICE_READY_ADDR", value_name = "ADDR", default_value = "[::]:15021")]
    ready_addr: SocketAddr,

    /// Address of /stats/prometheus; [::] as above
    #[arg(long, env = "SLUICE_STATS_ADDR", value_name = "ADDR", default_value = "[::]:15020")]
    stats_addr: SocketAddr,

    /// Address that `sluice status` asks; loopback only
    #[arg(long, env = "SLUICE_ADMIN_ADDR", value_name = "ADDR", default_value = "127.0.0.1:15000", value_parser = loopback)]
    admin_addr: SocketAddr,

    /// How long connections may go on after SIGTERM
    #[arg(long, env = "TERMINATION_GRACE_PERIOD_SECONDS", value_name = "DURATION", default_value = "15s", value_parser = duration)]
    drain_timeout: Duration,

    #[command(flatten)]
    log: Log,
}

impl Agent {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let log = self.log.to_stderr()?;
        let descriptors = node::prepare()?;
        let threads =
            Threads::start(self.threads).context("could not start the agent's threads")?;
        // For everything else, which traffic does not wait for.
        let runtime = one_thread("sluice").context("could not start the agent's threads")?;
        let ca = match self.ca_address {
            Some(address) => CaOptions::Istio(IstioCaOptions {
                address,
                roots: self.ca_root,
                token: self.ca_token,
                cluster: self.cluster_id,
                lifetime: self.certificate_lifetime,
            }),
            None => CaOptions::BuiltIn { dir: self.ca_dir, lifetime: self.certificate_lifetime },
        };
        runtime.block_on(node::run(node::Options {
            config_dir: self.config_dir,
            state_dir: self.state_dir,
            nri_socket: self.nri_socket,
            startup_taint: self.startup_taint,
            node_name: self.node_name,
            trust_domain: self.trust_domain,
            root_namespace: self.root_namespace,
            ca,
            cgroup: self.cgroup,
            node_netns: self.node_netns,
            bpffs: self.bpffs,
            unknown_pods: self.unknown_pods,
            same_node: self.same_node,
            limits: LimitOptions {
                connections: self.max_connections,
                buffered: self.max_buffered << 20,
                handshakes: self.max_handshakes,
            }
            .within(descriptors.saturating_sub(threads.descriptors())),
            workers: threads.workers(),
            trace_sampling: self.trace_sampling,
            ready_addr: self.ready_addr,
            stats_addr: self.stats_addr,
            admin_addr: self.admin_addr,
            drain_timeout: self.drain_timeout,
            log,
        }))
    }
}

fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("not a number from 0 to 1 (hint: 0.1 records one trace in ten)".into()),
    }
}

/// The admin address shows certificates and pods and has no authentication.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|error| format!("{error} (hint: `127.0.0.1:15000`)"))?;
    if !address.ip().is_loopback() {
        return Err("not a loopback address (hint: `127.0.0.1:15000`)".into());
    }
    Ok(address)
}
