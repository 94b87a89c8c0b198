//! What goes on while the API server or the CA is away.

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::Value;
use sluice_kube::{Load, Mesh, NODES, NodeName, PATIENCE, Tenant, Workload, text};
use sluice_tests::{Netns, ask};
use tokio::runtime::Runtime;

/// Each test has the cluster to itself.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn order_service(name: &str) -> Workload {
    Workload::new(name, &["order"], 8080).on(NODES[1])
}

/// An agent's metrics, as seen from the control plane. That needs no API server.
struct Metrics {
    netns: Netns,
    address: SocketAddr,
    runtime: Runtime,
}

impl Metrics {
    fn of(mesh: &Mesh, node: NodeName) -> anyhow::Result<Self> {
        let agent = mesh.agent(node)?;
        let address = SocketAddr::new(text(&agent, "/status/podIP")?.parse()?, 15020);
        let netns = Netns::of_process(mesh.bed().control());
        Ok(Self { netns, address, runtime: Runtime::new()? })
    }

    fn read(&self) -> anyhow::Result<String> {
        let path = "/stats/prometheus";
        Ok(self.runtime.block_on(ask(&self.netns, self.address, path, PATIENCE))?.body)
    }

    /// Waits for a line.
    fn await_line(&self, tenant: &Tenant, line: &str) -> anyhow::Result<()> {
        tenant.eventually(line, || {
            let metrics = self.read()?;
            ensure!(metrics.lines().any(|one| one == line), "not so: {metrics}");
            Ok(())
        })
    }

    /// How many watches on the API server are down.
    fn watches_down(&self) -> anyhow::Result<usize> {
        let metrics = self.read()?;
        let watches = metrics.lines().filter(|line| line.starts_with("sluice_watch_up{"));
        Ok(watches.filter(|line| line.ends_with(" 0")).count())
    }
}

/// How long the API server is away: longer than any watch lasts, so that every one of them breaks
/// and nobody hears of anything.
const OUTAGE: Duration = Duration::from_secs(310);
/// How soon after that a change must be in force. A watch is tried again every 30 s at last.
const NEWS: Duration = Duration::from_secs(60);

#[test]
fn without_the_api_server_traffic_goes_on_and_an_agent_starts_from_what_it_saved()
-> anyhow::Result<()> {
    let _alone = alone();
    let mesh = Mesh::find()?;
    let load = Load::start("outage")?;
    // Is to join the mesh as soon as that can be said again.
    let later = Tenant::new("later")?;
    later.deploy([order_service("later")])?;
    later.await_deployment("later")?;
    let bed = load.tenant.bed();
    let [first, _] = NODES;
    let metrics = Metrics::of(&mesh, first)?;
    metrics.await_line(&load.tenant, "sluice_snapshot_saved 0")?;

    let away = bed.pause("kube-apiserver")?;
    let (since, before) = (Instant::now(), load.totals()?);
    let during = load.await_until(since + OUTAGE)?;
    println!(
        "{:.0} s without an API server: {}",
        since.elapsed().as_secs_f64(),
        load.difference(&before, &during)?
    );
    load.none_failed(&before, &during)?;
    let broken = metrics.watches_down()?;
    println!("watches that broke meanwhile, of all: {broken}");
    ensure!(broken > 0, "no watch noticed");

    // The kubelet starts it again by itself. The CA can judge nobody without the API server: what
    // is captured stays closed until then, and nothing passes in plaintext.
    bed.kill(first, "/sluice agent")?;
    metrics.await_line(&load.tenant, "sluice_snapshot_saved 1")?;
    let back = Instant::now();
    drop(away);
    let label = ["label", "namespace", later.namespace(), "istio.io/dataplane-mode=ambient"];
    later.eventually("a namespace is labelled", || later.kubectl(label))?;
    later.eventually("its pod is captured", || {
        ensure!(!mesh.captured(NODES[1], later.namespace())?.is_empty(), "it is not");
        Ok(())
    })?;
    println!("a change is in force {:.1} s after it", back.elapsed().as_secs_f64());
    ensure!(back.elapsed() < NEWS, "a change took {:?}", back.elapsed());
    metrics.await_line(&load.tenant, "sluice_snapshot_saved 0")?;
    load.await_calm(200)?;
    println!("whole again {:.1} s after the API server was back", back.elapsed().as_secs_f64());
    for node in NODES {
        load.tenant.eventually("every watch is up", || {
            let status = mesh.status(node)?;
            let watches = status["watches"].as_array().context("no watches")?;
            // Of a kind that is not installed there is nothing to watch.
            let is_down = |watch: &&Value| watch["connected"] != true && watch["absent"] != true;
            let down: Vec<_> = watches.iter().filter(is_down).collect();
            ensure!(down.is_empty(), "down on {node}: {down:?}");
            Ok(())
        })?;
    }
    // The control plane has taken the nodes for dead, and tells when it no longer does.
    mesh.kubectl(["wait", "--for=condition=Ready", "--timeout=120s", "node", "--all"]).map(drop)
}

#[test]
fn an_agent_that_is_killed_is_back_by_itself() -> anyhow::Result<()> {
    let _alone = alone();
    let load = Load::start("killed")?;
    let before = load.totals()?;
    let began = Instant::now();
    load.tenant.bed().kill(NODES[0], "/sluice agent")?;
    load.await_calm(200)?;
    println!(
        "whole again {:.1} s after kill -9; {}",
        began.elapsed().as_secs_f64(),
        load.difference(&before, &load.totals()?)?
    );
    Ok(())
}

#[test]
fn without_the_ca_new_identities_wait_and_an_event_says_so() -> anyhow::Result<()> {
    let _alone = alone();
    let mesh = Mesh::find()?;
    let tenant = Tenant::new("no-ca")?;
    let label = ["label", "namespace", tenant.namespace(), "istio.io/dataplane-mode=ambient"];
    tenant.kubectl(label)?;
    let event = |reason: &str| {
        tenant.eventually(&format!("an event {reason}"), || {
            let field = format!("--field-selector=reason={reason}");
            let events = tenant.kubectl(["get", "events", "--output=json", &field])?;
            let events: Value = serde_json::from_str(&events)?;
            let event = events["items"].get(0).context("none yet")?;
            Ok(text(event, "/message")?.to_owned())
        })
    };
    let said = mesh.without_ca(|| {
        tenant.deploy([order_service("late")])?;
        event("NoCertificate")
    })?;
    println!("{said}");
    ensure!(said.starts_with("its connections are refused: no certificate for "), "{said}");
    event("Certified")?;
    tenant.await_deployment("late")
}
