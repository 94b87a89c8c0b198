//! New agents in place of old ones, while an application is under load.

use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sluice_kube::{Mesh, NODES, Tenant, Workload, text};

/// Every kind of traffic that the load has.
const KINDS: [&str; 4] = ["connects", "http1", "http2", "echo"];

/// What the load has counted so far.
fn totals(tenant: &Tenant) -> anyhow::Result<Value> {
    let line = tenant.kubectl(["logs", "--tail=1", "deployment/load"])?;
    Ok(serde_json::from_str(line.trim()).with_context(|| format!("no totals: {line:?}"))?)
}

fn count(totals: &Value, kind: &str, what: &str) -> anyhow::Result<u64> {
    totals[kind][what].as_u64().with_context(|| format!("no {kind} {what} in {totals}"))
}

/// Waits until `more` exchanges of each kind have come to their end.
fn await_more(tenant: &Tenant, more: u64) -> anyhow::Result<Value> {
    let before = totals(tenant)?;
    tenant.eventually("the load goes on", || {
        let now = totals(tenant)?;
        for kind in KINDS {
            let done = count(&now, kind, "tried")? - count(&before, kind, "tried")?;
            ensure!(done >= more, "{done} {kind}");
        }
        Ok(now)
    })
}

#[test]
fn three_restarts_in_a_row_are_not_felt() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let idle = NODES.map(|node| mesh.usage(node));
    let tenant = Tenant::new("restart")?;
    let label = ["label", "namespace", tenant.namespace(), "istio.io/dataplane-mode=ambient"];
    tenant.kubectl(label)?;
    let [first, second] = NODES;
    let objects: Vec<_> = [
        Workload::new("order-service", &["order"], 8080).on(second),
        Workload::new("echo", &["echo"], 9000).on(second),
        Workload::new("load", &["load"], 9100).on(first),
    ]
    .into_iter()
    .flat_map(Workload::objects)
    .collect();
    tenant.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}))?;
    for name in ["order-service", "echo", "load"] {
        tenant.await_deployment(name)?;
    }
    tenant.eventually("the load has begun", || totals(&tenant))?;
    // Names and pods are new: what failed before every part was there is not the restarts'.
    let begun = await_more(&tenant, 100)?;

    let before = NODES.map(|node| Ok::<_, anyhow::Error>((mesh.usage(node)?, Instant::now())));
    await_more(&tenant, 1000)?;
    for ((node, before), idle) in NODES.into_iter().zip(before).zip(idle) {
        let ((before, at), after) = (before?, mesh.usage(node)?);
        let share = (after.cpu - before.cpu).as_secs_f64() / at.elapsed().as_secs_f64();
        println!(
            "agent of {node}: {} MiB without traffic, {} MiB and {:.0} m CPU under load",
            idle?.memory >> 20,
            after.memory >> 20,
            share * 1000.0
        );
    }
    for number in 1..=3 {
        let former = text(&mesh.agent(first)?, "/metadata/uid")?.to_owned();
        let started = Instant::now();
        mesh.restart()?;
        println!("restart {number}: {:.1} s", started.elapsed().as_secs_f64());
        ensure!(text(&mesh.agent(first)?, "/metadata/uid")? != former, "no agent is new");
    }
    let ended = await_more(&tenant, 200)?;
    for kind in KINDS {
        let more = |what: &str| {
            Ok::<_, anyhow::Error>(count(&ended, kind, what)? - count(&begun, kind, what)?)
        };
        println!(
            "{kind}: {} tried, {} failed, {} connections",
            more("tried")?,
            more("failed")?,
            more("connections")?
        );
    }
    let log = tenant.kubectl(["logs", "deployment/load"])?;
    let failures: Vec<_> = log.lines().filter(|line| !line.starts_with('{')).collect();
    for kind in KINDS {
        assert_eq!(count(&ended, kind, "failed")?, count(&begun, kind, "failed")?, "{failures:#?}");
    }
    Ok(())
}
