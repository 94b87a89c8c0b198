//! `cargo xtask demo`: the mesh at work on one machine.
//!
//! Makes two nodes with six pods, shows what crosses between the nodes without an agent, starts
//! the agents, places orders, and then says for each claim of the project whether it holds and
//! what shows it. The exit code is 0 when all of them hold.

mod claim;
mod claims;
mod keep;
mod orders;
mod step;
mod traffic;
mod world;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use sluice_tests::{Agent, trace_tree};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{claim::Claim, step::Step, traffic::Evidence, world::World};

/// Shows the mesh at work: two nodes and their pods as namespaces, an agent on each.
#[derive(Debug, Parser)]
struct Options {
    /// Leave everything running until Ctrl-C, and print commands to try
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let mut interruption = match Interruption::listen() {
        Ok(interruption) => interruption,
        Err(error) => return failed(&error),
    };
    // Whatever ends the demo, the lab is dropped and takes everything with it.
    let shown = tokio::select! {
        shown = show() => shown,
        () = interruption.next() => Err(anyhow::anyhow!("interrupted")),
    };
    match shown {
        Ok(shown) => {
            if options.keep {
                if let Err(error) = keep::print_commands(&shown.world) {
                    return failed(&error);
                }
                interruption.next().await;
            }
            if shown.claims.iter().all(Claim::holds) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => failed(&error),
    }
}

/// Ctrl-C, or being asked to end.
struct Interruption {
    interrupt: Signal,
    terminate: Signal,
}

impl Interruption {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("could not listen for signals");
        let interrupt = listen(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

/// The demo after its last line; all of it still runs.
struct Shown {
    claims: Vec<Claim>,
    _agents: [Agent; 2],
    world: World,
}

async fn show() -> anyhow::Result<Shown> {
    let step = Step::start("Making two nodes and six pods, and starting the application");
    let world = World::make().await?;
    step.done(&world.describe());

    let step = Step::start("Looking at what crosses between the nodes without an agent");
    let bare = traffic::without_agents(&world).await?;
    step.done(&format!("{} packets, all readable", bare.packets));

    let step = Step::start("Starting an agent on each node");
    let agents = world.start_agents().await?;
    step.done("both are ready");

    let step = Step::start("Placing orders and sending bytes through the echo service");
    let meshed = traffic::with_agents(&world).await?;
    step.done(&format!("{} orders, served by {}", meshed.orders.len(), meshed.replicas()));

    let step = Step::start("Waiting for the spans of one order");
    let spans = orders::spans_of_one_order(&world).await?;
    step.done(&format!("{} spans", spans.len()));
    println!("\nOne order, as it arrived at the OTLP receiver:\n{}", trace_tree(&spans));

    let status = world
        .nodes()
        .into_iter()
        .map(Agent::status)
        .collect::<anyhow::Result<Vec<_>>>()
        .context("could not ask the agents what they did")?;
    let evidence = Evidence { bare, meshed, spans, all_spans: world.receiver.spans(), status };
    let claims = claims::examine(&world, &evidence)?;
    for claim in &claims {
        println!("{claim}");
    }
    Ok(Shown { claims, _agents: agents, world })
}
