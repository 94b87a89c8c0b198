//! HTTP/1.1 requests on kept connections, each sent when the one before it is answered.

use std::time::{Duration, Instant};

use tokio::{net::TcpStream, task::JoinSet};

use crate::{
    http1,
    latency::{Latencies, micros},
    round::Round,
    server::Spoken,
    table::Figure,
    watch::{Line, Watch},
};

pub(crate) async fn measure(round: &Round<'_>, connections: usize) -> anyhow::Result<Vec<Figure>> {
    let streams = open(round, connections).await?;
    let watch = Watch::of(connections);
    let cpu = round.cpu()?;
    let began = Instant::now();
    let until = began + round.lasts;
    let mut clients = JoinSet::new();
    for (number, stream) in streams.into_iter().enumerate() {
        clients.spawn(client(stream, watch.line(number), until));
    }
    let latencies = round.gather(&watch, clients).await?;
    let took = began.elapsed();
    let cpu = round.cpu()? - cpu;
    let latencies = Latencies::of(latencies.concat());
    let mut figures = vec![
        Figure::new("requests/s", latencies.count() / took.as_secs_f64()),
        Figure::new("CPU a request (µs)", micros(cpu) / latencies.count()),
    ];
    if connections == 16 {
        figures.push(Figure::new("latency, median (µs)", latencies.at(0.5)));
        figures.push(Figure::new("latency, p99 (µs)", latencies.at(0.99)));
    }
    Ok(figures)
}

/// Connections that have carried a request already.
pub(super) async fn open(round: &Round<'_>, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let dialler = round.world.dialler(round.column.way, Spoken::Http, 0, count);
    let line = Watch::of(1).line(0);
    let work = async {
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            line.begin();
            let mut stream = dialler.dial().await?;
            line.is_on(&stream);
            http1::exchange(&mut stream, http1::REQUEST, &mut Vec::new()).await?;
            streams.push(stream);
        }
        Ok(streams)
    };
    round.open(&line, work).await
}

async fn client(
    mut stream: TcpStream,
    line: Line,
    until: Instant,
) -> anyhow::Result<Vec<Duration>> {
    line.is_on(&stream);
    let mut latencies = Vec::with_capacity(1 << 14);
    let mut buffer = Vec::with_capacity(1024);
    let mut began = line.begin();
    while began < until {
        let exchange = http1::exchange(&mut stream, http1::REQUEST, &mut buffer).await;
        exchange.map_err(|error| line.failed(error))?;
        let ended = line.begin();
        latencies.push(ended - began);
        began = ended;
    }
    line.end();
    Ok(latencies)
}
