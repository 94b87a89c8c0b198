//! The agent of one node: puts the rooms together, starts them, and ends them in order.
//!
//! Enters: [`Options`]. Leaves: nothing but an exit; every other room is reached from here,
//! and none reaches back.

mod descriptors;
mod enrolment;
mod observe;
mod signals;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;

use crate::{
    admin::Readiness,
    capture::{self, Capture, CaptureOptions, UnknownPods},
    config::files::FileSource,
    identity::{IdentityStore, SelfSignedCa},
    mesh::{SnapshotStore, TrustDomain},
    proxy::{Drain, LocalPods, Proxy},
    telemetry::{Telemetry, TelemetryOptions},
};

/// How long spans may take to leave after the last connection is gone.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What `sluice agent` was asked to do; see its `--help`.
#[derive(Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name, documented there")]
pub struct Options {
    pub config_dir: PathBuf,
    pub node_name: String,
    pub trust_domain: TrustDomain,
    pub ca_dir: PathBuf,
    pub certificate_lifetime: Duration,
    pub cgroup: Option<PathBuf>,
    pub bpffs: PathBuf,
    pub unknown_pods: UnknownPods,
    pub force_tunnel: bool,
    pub trace_sampling: f64,
    pub ready_addr: SocketAddr,
    pub stats_addr: SocketAddr,
    pub admin_addr: SocketAddr,
    pub drain_timeout: Duration,
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
    let mut signals = signals::Signals::listen()?;
    let readiness = Readiness::waiting_for([CAPTURE, IDENTITY, CONFIGURATION]);

    let snapshots = Arc::new(SnapshotStore::default());
    let source =
        FileSource::start(&options.config_dir, options.trust_domain.clone(), snapshots.clone())?;
    readiness.met(CONFIGURATION);

    let ca = SelfSignedCa::open(
        &options.ca_dir,
        options.trust_domain.clone(),
        options.certificate_lifetime,
    )?;
    let identity = IdentityStore::new(Arc::new(ca), options.trust_domain.clone());
    let (telemetry, exporter) = Telemetry::start(TelemetryOptions {
        sampling: options.trace_sampling,
        ..TelemetryOptions::from_env()?
    })?;
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
        force_tunnel: options.force_tunnel,
    });
    let enrolment = enrolment::Enrolment::new(options.node_name.clone(), capture, proxy.clone());
    observe::Observed {
        node: options.node_name.clone(),
        readiness: readiness.clone(),
        source,
        enrolment: enrolment.clone(),
        proxy: proxy.clone(),
    }
    .serve(options.ready_addr, options.stats_addr, options.admin_addr)
    .await?;

    let enrolling = tokio::spawn(enrolment.follow(readiness.clone()));
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
