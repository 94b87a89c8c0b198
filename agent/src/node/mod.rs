//! The agent of one node: puts the rooms together, starts them, and ends them in order.
//!
//! Enters: [`Options`]. Leaves: nothing but an exit; every other room is reached from here,
//! and none reaches back.

mod descriptors;
mod enrolment;
mod events;
mod new_pods;
mod observe;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tokio_util::task::AbortOnDropHandle;

use self::events::Events;
use crate::{
    admin::Readiness,
    capture::{self, Capture, CaptureOptions, NodeSockets, UnknownPods},
    config::{ConfigError, Source, files::FileSource, kube::KubeSource},
    identity::{
        CertificateSource, IdentityStore, SelfSignedCa,
        istio::{IstioCa, IstioCaOptions},
    },
    mesh::{RootNamespace, SnapshotStore, TrustDomain},
    proxy::{Admissions, Drain, LocalPods, Proxy},
    signals::Signals,
    telemetry::{Telemetry, TelemetryOptions},
};

/// How long spans may take to leave after the last connection is gone.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What `sluice agent` was asked to do; see its `--help`.
#[derive(Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name, documented there")]
pub struct Options {
    pub config_dir: Option<PathBuf>,
    pub state_dir: PathBuf,
    pub nri_socket: Option<PathBuf>,
    pub node_name: String,
    pub trust_domain: TrustDomain,
    pub root_namespace: RootNamespace,
    pub ca: CaOptions,
    pub cgroup: Option<PathBuf>,
    pub node_netns: Option<PathBuf>,
    pub bpffs: PathBuf,
    pub unknown_pods: UnknownPods,
    pub force_tunnel: bool,
    pub trace_sampling: f64,
    pub ready_addr: SocketAddr,
    pub stats_addr: SocketAddr,
    pub admin_addr: SocketAddr,
    pub drain_timeout: Duration,
}

/// Where certificates come from.
#[derive(Debug)]
pub enum CaOptions {
    /// The CA in the agent.
    BuiltIn {
        /// Its directory.
        dir: PathBuf,
        /// How long certificates live.
        lifetime: Duration,
    },
    /// A CA elsewhere.
    Istio(IstioCaOptions),
}

const CAPTURE: &str = "capture";
const IDENTITY: &str = "identity";
const CONFIGURATION: &str = "configuration";

/// Runs the agent until it is told to stop and its connections are drained.
///
/// # Errors
/// When something the agent cannot do without fails at start-up. Once it runs, failures are
/// logged, counted and shown by `sluice status` instead.
pub async fn run(options: Options) -> anyhow::Result<()> {
    // First, since everything else without root fails on some file, which says less.
    capture::need_root()?;
    descriptors::allow_all();
    let mut signals = Signals::listen()?;
    let readiness = Readiness::waiting_for([CAPTURE, IDENTITY, CONFIGURATION]);

    let snapshots = Arc::new(SnapshotStore::default());
    let (source, events) = source(&options, &snapshots).await?;

    let ca = certificate_source(options.ca, &options.trust_domain)?;
    let identity = IdentityStore::new(ca, options.trust_domain.clone());
    let (telemetry, exporter) = Telemetry::start(TelemetryOptions {
        sampling: options.trace_sampling,
        ..TelemetryOptions::from_env()?
    })?;
    let node_netns = options.node_netns.as_deref();
    let node_sockets = NodeSockets::open(node_netns, options.cgroup.as_deref())?;
    let capture = Arc::new(Capture::start(&CaptureOptions {
        cgroup: options.cgroup,
        bpffs: options.bpffs,
        unknown_pods: options.unknown_pods,
    })?);
    let proxy = Arc::new(Proxy {
        snapshots,
        identity,
        telemetry,
        pods: LocalPods::default(),
        drain: Drain::default(),
        node_sockets: Arc::new(node_sockets),
        admissions: Admissions::default(),
        force_tunnel: options.force_tunnel,
    });
    let enrolment =
        enrolment::Enrolment::new(options.node_name.clone(), capture, proxy.clone(), events);
    let source_state = source.state();
    let runtime = match (options.nri_socket, &source) {
        (Some(socket), Source::Kube(source)) => {
            let addresses = source.addresses();
            Some((new_pods::NewPods { addresses, enrolment: enrolment.clone() }.plugin(), socket))
        }
        _ => None,
    };
    observe::Observed {
        node: options.node_name.clone(),
        readiness: readiness.clone(),
        source,
        enrolment: enrolment.clone(),
        proxy: proxy.clone(),
        runtime: runtime.as_ref().map(|(plugin, _)| plugin.connected()),
    }
    .serve(options.ready_addr, options.stats_addr, options.admin_addr)
    .await?;

    let enrolling = tokio::spawn(enrolment.follow(source_state, readiness.clone()));
    let _new_pods = runtime.map(|(plugin, socket)| {
        AbortOnDropHandle::new(tokio::spawn(async move { plugin.serve(&socket).await }))
    });
    tracing::info!(node = options.node_name, "agent started");
    let signal = signals.next().await;

    tracing::info!(%signal, open = proxy.drain.open(), "draining");
    readiness.lost("shutting down");
    let stop = async {
        let cut = proxy.drain.run(options.drain_timeout).await;
        enrolling.abort();
        if cut > 0 {
            tracing::warn!(cut, "connections outlived the drain timeout and were cut");
        }
        exporter.shutdown(FLUSH_TIMEOUT).await;
        tracing::info!("agent stopped");
    };
    tokio::select! {
        () = stop => Ok(()),
        signal = signals.next() => {
            Err(anyhow::anyhow!("{signal} again: stopped without draining"))
        }
    }
    .context("the agent did not end in order")
}

fn certificate_source(
    ca: CaOptions,
    trust_domain: &TrustDomain,
) -> anyhow::Result<Arc<dyn CertificateSource>> {
    Ok(match ca {
        CaOptions::BuiltIn { dir, lifetime } => {
            Arc::new(SelfSignedCa::open(&dir, trust_domain.clone(), lifetime)?)
        }
        CaOptions::Istio(options) => {
            Arc::new(IstioCa::new(options).context("could not watch the root certificates")?)
        }
    })
}

/// Starts what snapshots come from: a directory, or without one the API server, which is told of
/// pods' troubles then.
async fn source(
    options: &Options,
    store: &Arc<SnapshotStore>,
) -> Result<(Source, Events), ConfigError> {
    let (trust_domain, store) = (options.trust_domain.clone(), store.clone());
    let root_namespace = options.root_namespace.clone();
    match &options.config_dir {
        Some(dir) => {
            let source = FileSource::start(dir, trust_domain, root_namespace, store)?;
            Ok((Source::Files(source), Events::default()))
        }
        None => {
            let client = KubeSource::client().await?;
            let events = Events::start(client.clone(), options.node_name.clone());
            let dir = &options.state_dir;
            let source = KubeSource::start(client, trust_domain, root_namespace, dir, store);
            Ok((Source::Kube(source), events))
        }
    }
}
