//! `sluice ca`: the certificate authority of a cluster, as a program of its own.
//!
//! Enters: certificate requests in Istio's API, and what the Kubernetes API server says of the
//! callers' tokens and pods. Leaves: certificates, a Secret with the root's key, and a ConfigMap
//! with the roots to trust. It shares the mesh's names and certificates with the agent, and
//! knows nothing of traffic: no capture, no proxy, no snapshot.

mod authority;
mod caller;
mod claims;
mod csr;
mod keeper;
mod metrics;
mod name;
mod node_pods;
mod permission;
mod refusal;
mod roots;
mod server;
mod service;
mod shelf;
mod turns;

use std::{future::ready, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use http::StatusCode;
use kube::{Client, Config};
use tokio::runtime::Handle;

use crate::{
    admin::{self, Answer, Readiness, text},
    mesh::TrustDomain,
    signals::Signals,
    telemetry,
};

pub use name::{InvalidName, NamespacedName};
pub use roots::Schedule;
pub use server::ServerName;

use keeper::Keeper;
use metrics::Metrics;
use service::Issuer;
use shelf::Shelf;

/// How long requests may go on after SIGTERM.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// What the API server may take for one answer.
const API_TIMEOUT: Duration = Duration::from_secs(10);
const ROOTS: &str = "roots";

/// What `sluice ca` was asked to do; see its `--help`.
#[derive(Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name, documented there")]
pub struct Options {
    pub trust_domain: TrustDomain,
    pub secret: NamespacedName,
    pub config_map: NamespacedName,
    pub agent_service_account: NamespacedName,
    pub audience: String,
    pub dns_names: Vec<ServerName>,
    pub certificate_lifetime: Duration,
    pub schedule: Schedule,
    pub listen_addr: SocketAddr,
    pub ready_addr: SocketAddr,
    pub stats_addr: SocketAddr,
}

/// Serves until it is told to stop.
///
/// # Errors
/// When something the CA cannot do without fails at start-up.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let readiness = Readiness::waiting_for([ROOTS]);
    let metrics = Arc::new(Metrics::default());
    let client = client().await?;

    let shelf = Shelf::new(client.clone(), &options.secret, &options.config_map);
    let keeper = Arc::new(Keeper::new(
        shelf,
        options.trust_domain.clone(),
        options.schedule,
        options.dns_names,
        metrics.clone(),
    ));
    let state = readiness.clone();
    let health = move |path: &str| ready(health(path, &state));
    let threads = Handle::current();
    admin::serve(&threads, "health", "--ready-addr", options.ready_addr, health)?;
    let (counted, kept) = (metrics.clone(), keeper.clone());
    let answer =
        move |path: &str| {
            let readings = (path == "/stats/prometheus")
                .then(|| counted.readings(kept.authority().as_deref()));
            ready(readings.map(|readings| {
                admin::openmetrics([telemetry::openmetrics(&readings)].into_iter())
            }))
        };
    admin::serve(&threads, "metrics", "--stats-addr", options.stats_addr, answer)?;

    let following = tokio::spawn({
        let (keeper, readiness) = (keeper.clone(), readiness.clone());
        async move { keeper.follow(|| readiness.met(ROOTS)).await }
    });
    let issuer = Issuer::new(
        client,
        keeper.clone(),
        options.trust_domain,
        options.agent_service_account,
        options.audience,
        options.certificate_lifetime,
        metrics,
    );
    let server = server::Server::bind(options.listen_addr, keeper, Arc::new(issuer))?;
    tracing::info!(address = %options.listen_addr, "CA started");

    let signal = server.serve_until(signals.next()).await;
    tracing::info!(%signal, "draining");
    readiness.lost("shutting down");
    following.abort();
    tokio::select! {
        () = server.drain(DRAIN_TIMEOUT) => {
            tracing::info!("CA stopped");
            Ok(())
        }
        signal = signals.next() => Err(anyhow::anyhow!("{signal} again: stopped without draining")),
    }
}

/// Makes a new root, which running CAs publish at once and sign with after the overlap.
///
/// # Errors
/// When there are no roots yet, when a rotation is under way, or the API server refuses.
pub async fn rotate(secret: &NamespacedName, config_map: &NamespacedName) -> anyhow::Result<()> {
    keeper::rotate(&Shelf::new(client().await?, secret, config_map)).await
}

/// Starts a new CA in the place of one whose keys are lost.
///
/// # Errors
/// When they are not, or the API server refuses.
pub async fn new_root(
    secret: &NamespacedName,
    config_map: &NamespacedName,
    trust_domain: &TrustDomain,
    schedule: &Schedule,
) -> anyhow::Result<()> {
    let shelf = Shelf::new(client().await?, secret, config_map);
    keeper::new_root(&shelf, trust_domain, schedule).await
}

async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer().await.context(
        "no Kubernetes API server is known (hint: run it in a pod with a service account, or set \
         KUBECONFIG)",
    )?;
    config.read_timeout = Some(API_TIMEOUT);
    Client::try_from(config).context("could not set up the client of the API server")
}

fn health(path: &str, readiness: &Readiness) -> Option<Answer> {
    match path {
        "/healthz/live" => Some(text(StatusCode::OK, "live\n")),
        "/healthz/ready" => Some(readiness.answer()),
        _ => None,
    }
}
