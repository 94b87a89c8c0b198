//! What idle connections cost in memory, and whether it is given back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{net::TcpStream, task::JoinSet, time::sleep_until};

use crate::{
    column::Carriers,
    dialler::Dialler,
    http1,
    round::Round,
    row::Row,
    server::Spoken,
    table::{Figure, Table},
    watch::{Line, Watch},
    world::PAIRS,
};

/// How many are opened by the first time, and by the second.
const STEPS: [usize; 2] = [1_000, 5_000];
/// Who opens them.
const AT_ONCE: usize = 32;
/// How long after their end memory is looked at again.
const AFTERWARDS: Duration = Duration::from_secs(30);

/// What is looked at: the client's side and the server's, each time.
const WHAT: [[&str; 2]; 4] = [
    ["client's side, idle (MiB)", "server's side, idle (MiB)"],
    ["client's side, 1,000 connections (MiB)", "server's side, 1,000 connections (MiB)"],
    ["client's side, 5,000 connections (MiB)", "server's side, 5,000 connections (MiB)"],
    ["client's side, 30 s after (MiB)", "server's side, 30 s after (MiB)"],
];

/// Measures each round's column, where somebody carries anything, before it carries anything else.
pub(crate) async fn measure(rounds: &[Round<'_>], table: &mut Table) -> anyhow::Result<()> {
    let mut closed = Vec::new();
    for round in rounds {
        look(round, WHAT[0], table)?;
        let mut open = Vec::new();
        for (step, what) in STEPS.into_iter().zip(&WHAT[1..]) {
            open.extend(connect(round, step - open.len()).await?);
            look(round, *what, table)?;
        }
        drop(open);
        closed.push(tokio::time::Instant::now());
        eprintln!("memory: {}", round.column);
    }
    for (round, closed) in rounds.iter().zip(closed) {
        sleep_until(closed + AFTERWARDS).await;
        look(round, WHAT[3], table)?;
    }
    Ok(())
}

fn look(round: &Round<'_>, what: [&'static str; 2], table: &mut Table) -> anyhow::Result<()> {
    for (what, bytes) in what.into_iter().zip(round.world.carriers().resident()?) {
        let figure = Figure::new(what, bytes as f64 / f64::from(1 << 20));
        table.add(Row::Memory, round.column, figure);
    }
    Ok(())
}

/// More connections, each of which has carried one request.
async fn connect(round: &Round<'_>, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let way = round.column.way;
    // A sidecar has one client.
    let pairs = if way.carriers() == Carriers::Envoys { 1 } else { PAIRS };
    let dialler = |pair| Arc::new(round.world.dialler(way, Spoken::Http, pair, count / pairs));
    let diallers: Arc<[_]> = (0..pairs).map(dialler).collect();
    let watch = Watch::of(AT_ONCE);
    let next = Arc::<AtomicUsize>::default();
    let mut clients = JoinSet::new();
    for number in 0..AT_ONCE {
        clients.spawn(client(diallers.clone(), next.clone(), count, watch.line(number)));
    }
    Ok(round.gather(&watch, clients).await?.into_iter().flatten().collect())
}

async fn client(
    diallers: Arc<[Arc<Dialler>]>,
    next: Arc<AtomicUsize>,
    count: usize,
    line: Line,
) -> anyhow::Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let number = next.fetch_add(1, Relaxed);
        if number >= count {
            return Ok(streams);
        }
        line.begin();
        let exchange = async {
            let mut stream = diallers[number % diallers.len()].dial().await?;
            line.is_on(&stream);
            http1::exchange(&mut stream, http1::REQUEST, &mut buffer).await?;
            Ok(stream)
        };
        let stream = exchange.await.map_err(|error: anyhow::Error| line.failed(error))?;
        line.end();
        streams.push(stream);
    }
}
