//! `cargo xtask bench`: what the mesh costs, beside no mesh, beside Envoys as sidecars and, with
//! `--beside`, beside another build.
//!
//! One run, rounds interleaved (each row in every column, then the next row), so that whatever else
//! the machine does hits every column alike. Both ends of the traffic live in this process; only CPU
//! time of what is between them is counted. [`column`] and [`row`] say what there is to measure.
//!
//! `cargo xtask bench -- snapshot`: what a large cluster costs an agent that watches it.
//! `cargo xtask bench -- policies`: what many AuthorizationPolicies cost.

mod carrier;
mod column;
mod cpu;
mod dialler;
mod envoy;
mod grpc;
mod http1;
mod latency;
mod load;
mod policies;
mod round;
mod row;
mod server;
mod sink;
mod snapshot;
mod table;
mod version;
mod watch;
mod world;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    column::{Carriers, Column, Way},
    round::Round,
    row::Row,
    table::{Against, Table},
    world::World,
};

/// The first round only warms everything up, and is shorter.
const WARM_UP: Duration = Duration::from_millis(250);

/// Measures the mesh against no mesh and against Envoys, in one interleaved run.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds of each measurement; the table shows their medians
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// Seconds that one round of a row lasts in each column, but for uploads
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,

    /// MiB that one round's uploads move, all streams together
    #[arg(long, default_value_t = 256)]
    mebibytes: u64,

    /// Rows to measure, separated by commas [default: all]
    #[arg(long, value_name = "ROWS", value_delimiter = ',', value_enum)]
    only: Vec<Row>,

    /// Columns to measure, separated by commas [default: all]
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', value_enum)]
    columns: Vec<Way>,

    /// Column that the others are multiples of [default: the same way of the other build, where
    /// there is one, or else the pair of Envoys]
    #[arg(long, value_name = "COLUMN", value_enum)]
    against: Option<Way>,

    /// Another build's `sluice`, measured in the same rounds
    #[arg(long, value_name = "PROGRAM")]
    beside: Option<PathBuf>,

    /// When something fails or hangs, leave everything as it is until Enter
    #[arg(long)]
    pause_on_failure: bool,

    #[command(subcommand)]
    subject: Option<Subject>,
}

#[derive(Debug, Subcommand)]
enum Subject {
    Policies(policies::Policies),
    Snapshot(snapshot::Snapshot),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    match options.subject {
        Some(Subject::Policies(policies)) => policies.measure().await,
        Some(Subject::Snapshot(snapshot)) => snapshot.measure().await,
        None => options.measure().await,
    }
}

impl Options {
    async fn measure(self) -> anyhow::Result<()> {
        // Both ends of thousands of connections are here.
        let (_, most_files) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most_files, most_files)?;
        let columns = self.columns();
        let worlds = self.worlds(&columns).await?;
        let mut table = Table::new(self.against(), columns.clone());
        if self.rows().contains(&Row::Memory) {
            let carried = columns
                .iter()
                .filter(|column| matches!(column.way, Way::AcrossTraced | Way::Envoy));
            let rounds = carried.map(|column| self.round(&worlds, *column, Row::Memory, 1));
            load::memory::measure(&rounds.collect::<Vec<_>>(), &mut table).await?;
        }
        for number in 0..=self.rounds {
            for row in self.rows() {
                for &column in &columns {
                    let figures = row.measure(&self.round(&worlds, column, row, number)).await?;
                    if number > 0 {
                        figures.into_iter().for_each(|figure| table.add(row, column, figure));
                    }
                }
            }
            eprintln!("round {number} of {}", self.rounds);
        }
        println!("{table}");
        for ((carriers, beside), world) in &worlds {
            let other = if *beside { ", other build" } else { "" };
            let (exports, dropped) =
                (world.sink().taken(), world.carriers().spans_dropped().await?);
            match carriers {
                Carriers::Nobody => continue,
                Carriers::Agents { sampling } => {
                    println!(
                        "Agents that sample {sampling}{other}: {exports} exports of spans arrived, \
                         {dropped} spans were dropped"
                    );
                }
                Carriers::Envoys => println!("Envoys: {exports} exports of spans arrived"),
            }
        }
        Ok(())
    }

    fn rows(&self) -> Vec<Row> {
        if self.only.is_empty() { Row::value_variants().to_vec() } else { self.only.clone() }
    }

    fn columns(&self) -> Vec<Column> {
        let mut ways = if self.columns.is_empty() {
            Way::value_variants().to_vec()
        } else {
            self.columns.clone()
        };
        if envoy::program().is_none() && ways.contains(&Way::Envoy) {
            eprintln!("No Envoy: ENVOY_BIN names none, so its column is left out");
            ways.retain(|way| *way != Way::Envoy);
        }
        let ours = ways.iter().map(|&way| Column { way, beside: false });
        let theirs = ways.iter().filter(|way| self.beside.is_some() && way.is_meshed());
        ours.chain(theirs.map(|&way| Column { way, beside: true })).collect()
    }

    fn against(&self) -> Against {
        match self.against {
            Some(way) => Against::Way(way),
            None if self.beside.is_some() => Against::Other,
            None => Against::Way(Way::Envoy),
        }
    }

    async fn worlds(&self, columns: &[Column]) -> anyhow::Result<Vec<(Kind, World)>> {
        let mut worlds: Vec<(Kind, World)> = Vec::new();
        for column in columns {
            let kind @ (carriers, beside) = kind(*column);
            if worlds.iter().all(|(other, _)| *other != kind) {
                let program = self.beside.as_deref().filter(|_| beside);
                worlds.push((kind, World::make(carriers, program).await?));
            }
        }
        Ok(worlds)
    }

    fn round<'a>(
        &self,
        worlds: &'a [(Kind, World)],
        column: Column,
        row: Row,
        number: usize,
    ) -> Round<'a> {
        let world = worlds.iter().find(|(other, _)| *other == kind(column));
        let (_, world) = world.expect("there is a world for each column");
        let lasts = Duration::from_secs_f64(self.seconds);
        let (lasts, mebibytes) = match number {
            0 => (lasts.min(WARM_UP), self.mebibytes.min(32)),
            _ => (lasts, self.mebibytes),
        };
        Round { world, column, row, lasts, bytes: mebibytes << 20, pause: self.pause_on_failure }
    }
}

/// What columns with the same world have in common: who carries, and whether it is the other build.
type Kind = (Carriers, bool);

fn kind(column: Column) -> Kind {
    (column.way.carriers(), column.beside)
}
