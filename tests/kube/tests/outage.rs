//! What goes on while the API server or the CA is away.

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sluice_kube::{KINDS, Load, Mesh, NODES, PATIENCE, Tenant, Workload, text};
use sluice_tests::{Netns, ask};

/// Each test has the cluster to itself.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn without_the_api_server_traffic_goes_on_and_an_agent_starts_from_what_it_saved()
-> anyhow::Result<()> {
    let _alone = alone();
    let mesh = Mesh::find()?;
    let load = Load::start("outage")?;
    let bed = load.tenant.bed();
    let [first, _] = NODES;
    let agent = mesh.agent(first)?;
    let address = SocketAddr::new(text(&agent, "/status/podIP")?.parse()?, 15020);
    let control = Netns::of_process(bed.control());
    let runtime = tokio::runtime::Runtime::new()?;
    let metrics = || -> anyhow::Result<String> {
        let path = "/stats/prometheus";
        Ok(runtime.block_on(ask(&control, address, path, PATIENCE))?.body)
    };
    let holds = |line: &'static str| {
        load.tenant.eventually(line, || {
            let metrics = metrics()?;
            ensure!(metrics.lines().any(|one| one == line), "not so: {metrics}");
            Ok(())
        })
    };
    holds("sluice_snapshot_saved 0")?;

    let away = bed.pause("kube-apiserver")?;
    let before = load.totals()?;
    let during = load.await_more(2000)?;
    println!("without an API server: {}", load.difference(&before, &during)?);
    for kind in KINDS {
        assert_eq!(load.count(&during, kind, "failed")?, load.count(&before, kind, "failed")?);
    }

    // The kubelet starts it again by itself. The CA can judge nobody without the API server: what
    // is captured stays closed until then, and nothing passes in plaintext.
    bed.kill(first, "/sluice agent")?;
    holds("sluice_snapshot_saved 1")?;
    let back = Instant::now();
    drop(away);
    holds("sluice_snapshot_saved 0")?;
    load.await_calm(200)?;
    println!("whole again {:.1} s after the API server was back", back.elapsed().as_secs_f64());
    Ok(())
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
    let scale = |replicas: u32| {
        let replicas = format!("--replicas={replicas}");
        mesh.kubectl(["scale", "deployment/sluice-ca", &replicas])
    };
    scale(0)?;
    let gone = ["wait", "--for=delete", "--timeout=120s", "pods"];
    let ca = "--selector=app.kubernetes.io/component=ca";
    mesh.kubectl(gone.into_iter().chain([ca]))?;
    let objects: Vec<_> = Workload::new("late", &["order"], 8080).objects().into();
    tenant.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}))?;
    let event = |reason: &str| {
        tenant.eventually(&format!("an event {reason}"), || {
            let field = format!("--field-selector=reason={reason}");
            let events = tenant.kubectl(["get", "events", "--output=json", &field])?;
            let events: Value = serde_json::from_str(&events)?;
            let event = events["items"].get(0).context("none yet")?;
            Ok(text(event, "/message")?.to_owned())
        })
    };
    let said = event("NotCaptured");
    scale(2)?;
    let said = said?;
    println!("{said}");
    ensure!(said.starts_with("no certificate for "), "{said}");
    event("Captured")?;
    tenant.await_deployment("late")?;
    mesh.kubectl(["rollout", "status", "--timeout=120s", "deployment/sluice-ca"]).map(drop)
}
