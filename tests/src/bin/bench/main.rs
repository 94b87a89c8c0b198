//! `cargo xtask bench`: what the mesh costs, beside no mesh at all.
//!
//! One lab, one run, rounds interleaved (without, same node, across nodes, without, …), so that
//! whatever else the machine does hits every way alike. Prints the median of each figure. Both
//! ends of the traffic live in this process; only the agents' CPU time is counted. `--beside`
//! measures another build's agents in the same rounds.
//!
//! `cargo xtask bench -- snapshot`: what a large cluster costs an agent that watches it.

mod bulk;
mod connects;
mod cpu;
mod requests;
mod snapshot;
mod table;
mod world;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};

use crate::{
    table::{Column, Figure, Table},
    world::{Way, World},
};

/// Measures the mesh against no mesh, in one interleaved run.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds of each measurement; the table shows their medians
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Seconds one round of requests or connects lasts
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,

    /// MiB one round of the bulk stream moves
    #[arg(long, default_value_t = 1024)]
    mebibytes: u64,

    /// Another build's `sluice`, measured in the same rounds
    #[arg(long, value_name = "PROGRAM")]
    beside: Option<PathBuf>,

    #[command(subcommand)]
    subject: Option<Subject>,
}

#[derive(Debug, Subcommand)]
enum Subject {
    Snapshot(snapshot::Snapshot),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Options { rounds, seconds, mebibytes, beside, subject } = Options::parse();
    if let Some(Subject::Snapshot(snapshot)) = subject {
        return snapshot.measure().await;
    }
    let round = Duration::from_secs_f64(seconds);
    let world = World::make(None).await?;
    let other = match &beside {
        Some(program) => Some(World::make(Some(program)).await?),
        None => None,
    };
    let ours = Way::ALL.map(|way| (&world, Column { way, beside: false }));
    let theirs =
        other.iter().flat_map(|other| Way::MESHED.map(|way| (other, Column { way, beside: true })));
    let columns: Vec<_> = ours.into_iter().chain(theirs).collect();
    let mut table = Table::default();
    for number in 0..=rounds {
        for &(world, column) in &columns {
            let way = column.way;
            let figures = [
                requests::measure(world, way, round).await?,
                bulk::measure(world, way, mebibytes << 20).await?,
                connects::measure(world, way, round).await?,
            ];
            // The first round only warms everything up.
            if number > 0 {
                figures.into_iter().flatten().for_each(|figure| table.add(column, figure));
            }
        }
        eprintln!("round {number} of {rounds}");
    }
    println!("{table}");
    println!("Agents' memory afterwards: {}", world.memory()?);
    if let Some(other) = other {
        println!("Of the others: {}", other.memory()?);
    }
    Ok(())
}

/// One measured value: what it is, and how much.
fn figure(name: &'static str, value: f64) -> Figure {
    Figure { name, value }
}
