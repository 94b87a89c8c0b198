//! New agents in place of old ones, while an application is under load.

use std::time::Instant;

use anyhow::ensure;
use sluice_kube::{Load, Mesh, NODES, text};

#[test]
fn three_restarts_in_a_row_are_not_felt() -> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let [first, second] = NODES;
    let usage = || anyhow::Ok([mesh.usage(first)?, mesh.usage(second)?]);
    let idle = usage()?;
    let load = Load::start("restart")?;

    let (before, at) = (usage()?, Instant::now());
    let begun = load.await_more(1000)?;
    let (after, took) = (usage()?, at.elapsed());
    for (index, node) in NODES.iter().enumerate() {
        let cpu = (after[index].cpu - before[index].cpu).as_secs_f64() / took.as_secs_f64();
        println!(
            "agent of {node}: {} MiB before the load, {} MiB and {:.0} m of CPU under it",
            idle[index].memory >> 20,
            after[index].memory >> 20,
            cpu * 1000.0
        );
    }
    for number in 1..=3 {
        let former = text(&mesh.agent(first)?, "/metadata/uid")?.to_owned();
        let started = Instant::now();
        mesh.restart()?;
        println!("restart {number}: {:.1} s", started.elapsed().as_secs_f64());
        ensure!(text(&mesh.agent(first)?, "/metadata/uid")? != former, "no agent is new");
    }
    let ended = load.await_more(200)?;
    println!("{}", load.difference(&begun, &ended)?);
    load.none_failed(&begun, &ended)
}
