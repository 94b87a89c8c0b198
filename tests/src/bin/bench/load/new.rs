//! A new connection for each request: connect, ask, hear the answer and the end.

use std::{sync::Arc, time::Instant};

use tokio::{io::AsyncReadExt, task::JoinSet};

use crate::{
    dialler::Dialler,
    http1,
    latency::micros,
    round::Round,
    server::Spoken,
    table::Figure,
    watch::{Line, Watch},
};

/// How many sockets are made at once.
const AHEAD: usize = 128;

pub(crate) async fn measure(round: &Round<'_>, at_once: usize) -> anyhow::Result<Vec<Figure>> {
    let dialler = round.world.dialler(round.column.way, Spoken::Http, 0, AHEAD);
    let dialler = Arc::new(dialler);
    let watch = Watch::of(at_once);
    let cpu = round.cpu()?;
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..at_once {
        clients.spawn(client(dialler.clone(), watch.line(number), began + round.lasts));
    }
    let connections = round.gather(&watch, clients).await?.into_iter().sum::<u64>() as f64;
    let took = began.elapsed();
    let cpu = round.cpu()? - cpu;
    Ok(vec![
        Figure::new("connections/s", connections / took.as_secs_f64()),
        Figure::new("CPU a connection (µs)", micros(cpu) / connections),
    ])
}

async fn client(dialler: Arc<Dialler>, line: Line, until: Instant) -> anyhow::Result<u64> {
    let mut buffer = Vec::with_capacity(1024);
    let mut connections = 0;
    while line.begin() < until {
        let exchange = async {
            let mut stream = dialler.dial().await?;
            line.is_on(&stream);
            http1::exchange(&mut stream, http1::LAST_REQUEST, &mut buffer).await?;
            // The server closes first, so that no port of the client's is kept waiting.
            let end = stream.read_buf(&mut buffer).await?;
            anyhow::ensure!(end == 0, "more came than an answer");
            Ok(())
        };
        exchange.await.map_err(|error: anyhow::Error| line.failed(error))?;
        connections += 1;
    }
    line.end();
    Ok(connections)
}
