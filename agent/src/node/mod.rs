//! The agent of one node: puts the rooms together, starts them, and ends them in order.
//!
//! Enters: [`Options`]. Leaves: nothing but an exit; every other room is reached from here,
//! and none reaches back.

mod annotation;
mod descriptors;
mod enrolment;
mod events;
mod expected;
mod issuers;
mod keeping;
mod kubelet;
mod memory;
mod new_pods;
mod observe;
mod pod_state;
mod standby;
mod taint;
mod underway;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context;
use kube::Client;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use self::{
    annotation::Annotations, enrolment::Enrolment, events::Events, kubelet::Kubelet,
    new_pods::NewPods,
};
use crate::{
    admin::{Readiness, RecentLog},
    capture::{self, Capture, CaptureOptions, KubeletSearch, NodeSockets, Prepared, UnknownPods},
    config::{ConfigError, MeshSettings, Source, files::FileSource, kube::KubeSource},
    essential::Essential,
    identity::{
        CertificateSource, IdentityStore, SelfSignedCa,
        istio::{IstioCa, IstioCaOptions},
    },
    limits::{LimitOptions, Limits},
    mesh::{RootNamespace, SnapshotStore, TrustDomain},
    proxy::{Admissions, Affinity, Contradictions, Drain, LocalPods, Proxy, SameNode},
    signals::Signals,
    telemetry::{Telemetry, TelemetryOptions},
    workers::Workers,
};

/// How long the next agent may take to take over every pod. It is ready for it, so that this is
/// for one that hangs.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long spans may take to leave after the last connection is gone.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What `sluice agent` was asked to do; see its `--help`.
#[derive(Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name, documented there")]
pub struct Options {
    pub config_dir: Option<PathBuf>,
    pub state_dir: PathBuf,
    pub nri_socket: Option<PathBuf>,
    pub startup_taint: Option<String>,
    pub node_name: String,
    pub trust_domain: TrustDomain,
    pub root_namespace: RootNamespace,
    pub ca: CaOptions,
    pub cgroup: Option<PathBuf>,
    pub node_netns: Option<PathBuf>,
    pub bpffs: PathBuf,
    pub unknown_pods: UnknownPods,
    pub same_node: SameNode,
    pub limits: LimitOptions,
    pub workers: Workers,
    pub trace_sampling: f64,
    pub ready_addr: SocketAddr,
    pub stats_addr: SocketAddr,
    pub admin_addr: SocketAddr,
    pub drain_timeout: Duration,
    pub log: RecentLog,
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

/// To be called before anything else. Returns how many files the agent may have open.
///
/// # Errors
/// Without root: everything else would fail on some file, which says less.
pub fn prepare() -> anyhow::Result<u64> {
    capture::need_root()?;
    Ok(descriptors::allow_all())
}

/// Runs the agent until it is told to stop and its connections are drained.
///
/// # Errors
/// When something the agent cannot do without fails at start-up, or a task of it ends later: what is
/// captured stays closed then, and the next agent goes on. Other failures are logged, counted and
/// shown by `sluice status` once it runs.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let readiness = Readiness::waiting_for([CAPTURE, IDENTITY, CONFIGURATION]);

    let snapshots = Arc::new(SnapshotStore::default());
    let essential = Essential::default();
    let (source, events, client) = source(&options, &snapshots, &readiness, &essential).await?;

    let ca = certificate_source(options.ca, &options.trust_domain)?;
    let identity = IdentityStore::new(ca, options.trust_domain.clone());
    let (telemetry, exporter) = Telemetry::start(TelemetryOptions {
        sampling: options.trace_sampling,
        ..TelemetryOptions::from_env()?
    })?;
    let node_netns = options.node_netns.as_deref();
    let node_sockets = NodeSockets::open(node_netns, options.cgroup.as_deref())?;
    let search = KubeletSearch::open(node_netns, options.cgroup.as_deref())?;
    let prepared = Prepared::new(&CaptureOptions {
        cgroup: options.cgroup,
        bpffs: options.bpffs,
        unknown_pods: options.unknown_pods,
    })?;
    let stands_by = prepared.stands_by();
    let proxy = Arc::new(Proxy {
        snapshots,
        identity,
        telemetry,
        pods: LocalPods::default(),
        drain: Drain::default(),
        node_sockets: Arc::new(node_sockets),
        unknown_clients: Notify::new(),
        issuers: Arc::default(),
        admissions: Admissions::default(),
        contradictions: Contradictions::default(),
        affinity: Affinity::default(),
        same_node: options.same_node,
        limits: Arc::new(Limits::new(options.limits)),
        workers: options.workers,
    });
    let runtime = match (options.nri_socket, &source) {
        (Some(socket), Source::Kube(source)) => {
            Some((socket, source.addresses(), watch::Sender::new(false)))
        }
        _ => None,
    };
    let enrolment = Arc::new(OnceLock::new());
    let known_kubelet = watch::Sender::default();
    observe::Observed {
        node: options.node_name.clone(),
        readiness: readiness.clone(),
        source,
        enrolment: enrolment.clone(),
        proxy: proxy.clone(),
        log: options.log,
        runtime: runtime.as_ref().map(|(.., connected)| connected.subscribe()),
        kubelet: known_kubelet.subscribe(),
    }
    .serve(options.ready_addr, options.stats_addr, options.admin_addr)?;

    if stands_by {
        tracing::info!(node = options.node_name, "standing by: another agent is in charge");
    }
    let standby = standby::Standby { proxy: proxy.clone(), readiness: readiness.clone() };
    let capture = tokio::select! {
        biased;
        capture = prepared.start() => Arc::new(capture?),
        never = standby.keep_ready(), if stands_by => match never {},
        does = essential.ended() => return Err(unable(does)),
        signal = signals.next() => {
            tracing::info!(%signal, "agent stopped while it stood by");
            return Ok(());
        }
    };
    let kubelet =
        Kubelet { search, capture: capture.clone(), proxy: proxy.clone(), known: known_kubelet };
    let kubelet = essential.spawn("following the kubelet", kubelet.follow());
    let kubelet = AbortOnDropHandle::new(kubelet);
    let keeping = keeping::keep(capture.clone(), readiness.clone());
    let keeping = AbortOnDropHandle::new(essential.spawn("keeping what is pinned", keeping));
    let issuers = issuers::follow(proxy.clone());
    let _issuers = AbortOnDropHandle::new(essential.spawn("following issuers", issuers));
    let _giving_back = AbortOnDropHandle::new(tokio::spawn(memory::give_back(
        proxy.drain.clone(),
        proxy.snapshots.clone(),
    )));
    let enrolment =
        enrolment.get_or_init(|| Enrolment::new(capture.clone(), proxy.clone(), events));
    let annotating = client.map(|client| {
        let annotations = Annotations {
            client,
            enrolment: enrolment.clone(),
            snapshots: proxy.snapshots.clone(),
        };
        AbortOnDropHandle::new(tokio::spawn(annotations.keep()))
    });
    let following = enrolment.clone().follow(readiness.clone());
    let mut enrolling = essential.spawn("enrolling pods", following);
    let new_pods = runtime.map(|(socket, addresses, connected)| {
        let plugin = NewPods { addresses, enrolment: enrolment.clone() }.plugin(connected);
        AbortOnDropHandle::new(tokio::spawn(async move { plugin.serve(&socket).await }))
    });
    tracing::info!(node = options.node_name, "agent started");
    let signal = tokio::select! {
        signal = signals.next() => signal,
        does = essential.ended() => {
            readiness.lost("an essential task ended");
            return Err(unable(does));
        }
    };

    drop(annotating);
    drop(kubelet);
    drop(keeping);
    let asked = Instant::now();
    tracing::info!(%signal, open = proxy.drain.open(), "ending");
    readiness.lost("shutting down");
    let stop = async {
        let succeeded = hand_over(&capture, &mut enrolling).await;
        // Until here a new pod was held back: whoever comes next captures it, and tells the runtime
        // of those after it. Without anyone, nobody can.
        drop(new_pods);
        if succeeded {
            proxy.drain.succeeded();
        }
        let left = options.drain_timeout.saturating_sub(asked.elapsed());
        tracing::info!(open = proxy.drain.open(), "draining");
        let cut = proxy.drain.run(left).await;
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

/// Hands the pods over to the agent that stands by, if one does. Whether another agent has them
/// now; otherwise they are closed once this one is gone.
async fn hand_over(capture: &Capture, enrolling: &mut JoinHandle<()>) -> bool {
    match capture.has_successor() {
        Ok(true) => {}
        Ok(false) => return false,
        Err(error) => {
            tracing::warn!(%error, "not known whether another agent stands by");
            return false;
        }
    }
    // From here on the pods are another agent's to enrol and to release.
    enrolling.abort();
    // Cancelled, or ended with the source of snapshots.
    let _ = enrolling.await;
    let began = Instant::now();
    match timeout(HAND_OVER_TIMEOUT, capture.hand_over()).await {
        Ok(Ok(true)) => {
            tracing::info!(took = ?began.elapsed(), "another agent has taken over");
            return true;
        }
        Ok(Ok(false)) => tracing::warn!("the next agent ended before it had taken over"),
        Ok(Err(error)) => tracing::warn!(%error, "not known whether the next agent took over"),
        Err(_) => tracing::warn!("the next agent has not taken over within {HAND_OVER_TIMEOUT:?}"),
    }
    false
}

/// The agent ends because a task did that it cannot do without.
fn unable(does: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{does} has ended, without which an agent would only look well (hint: the log says why; \
         pods stay closed until the next agent, and `sluice bugreport` collects what is known)"
    )
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
/// pods' troubles then, and whose client is for what else it is to be told.
async fn source(
    options: &Options,
    store: &Arc<SnapshotStore>,
    readiness: &Readiness,
    essential: &Essential,
) -> Result<(Source, Events, Option<Client>), ConfigError> {
    let store = store.clone();
    let settings = MeshSettings {
        trust_domain: options.trust_domain.clone(),
        root_namespace: options.root_namespace.clone(),
        node: options.node_name.as_str().into(),
    };
    match &options.config_dir {
        Some(dir) => {
            let source = FileSource::start(dir, settings, store, essential)?;
            Ok((Source::Files(source), Events::default(), None))
        }
        None => {
            let client = KubeSource::client().await?;
            let (node, taint) = (options.node_name.clone(), options.startup_taint.clone());
            let events = Events::start(client.clone(), node.clone());
            if let Some(taint) = taint {
                tokio::spawn(taint::take_off(client.clone(), node, taint, readiness.clone()));
            }
            let dir = &options.state_dir;
            let source = KubeSource::start(client.clone(), settings, dir, store, essential);
            Ok((Source::Kube(source), events, Some(client)))
        }
    }
}
