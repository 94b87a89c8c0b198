//! gRPC: 16 callers on one connection.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::{
    grpc::{Caller, Connection},
    latency::{Latencies, micros},
    round::Round,
    server::Spoken,
    table::Figure,
    watch::{Line, Watch},
};

const CALLERS: usize = 16;

/// Calls of one message each way.
pub(crate) async fn unary(round: &Round<'_>) -> anyhow::Result<Vec<Figure>> {
    let [rate, cpu, median, p99] = measure(round, call).await?;
    Ok(vec![
        Figure::new("calls/s", rate),
        Figure::new("CPU a call (µs)", cpu),
        Figure::new("latency, median (µs)", median),
        Figure::new("latency, p99 (µs)", p99),
    ])
}

/// Messages of calls that stay open; each is sent when the one before it has come back.
pub(crate) async fn streaming(round: &Round<'_>) -> anyhow::Result<Vec<Figure>> {
    let [rate, cpu, median, p99] = measure(round, stream).await?;
    Ok(vec![
        Figure::new("messages/s", rate),
        Figure::new("CPU a message (µs)", cpu),
        Figure::new("latency, median (µs)", median),
        Figure::new("latency, p99 (µs)", p99),
    ])
}

async fn measure<F>(
    round: &Round<'_>,
    caller: fn(Caller, Line, Instant) -> F,
) -> anyhow::Result<[f64; 4]>
where
    F: Future<Output = anyhow::Result<Vec<Duration>>> + Send + 'static,
{
    let watch = Watch::of(CALLERS);
    let lines: Vec<_> = (0..CALLERS).map(|number| watch.line(number)).collect();
    let dialler = round.world.dialler(round.column.way, Spoken::Grpc, 0, 1);
    let open = async {
        let stream = dialler.dial().await?;
        lines.iter().for_each(|line| line.is_on(&stream));
        lines[0].begin();
        let connection = Connection::on(stream).await?;
        connection.caller().unary().await?;
        Ok(connection)
    };
    let connection = round.open(&lines[0], open).await?;
    let cpu = round.cpu()?;
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for line in lines {
        callers.spawn(caller(connection.caller(), line, began + round.lasts));
    }
    let latencies = round.gather(&watch, callers).await?;
    let took = began.elapsed();
    let cpu = round.cpu()? - cpu;
    let latencies = Latencies::of(latencies.concat());
    let (rate, cpu) = (latencies.count() / took.as_secs_f64(), micros(cpu) / latencies.count());
    Ok([rate, cpu, latencies.at(0.5), latencies.at(0.99)])
}

async fn call(mut caller: Caller, line: Line, until: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(1 << 14);
    let mut began = line.begin();
    while began < until {
        caller.unary().await.map_err(|error| line.failed(error))?;
        let ended = line.begin();
        latencies.push(ended - began);
        began = ended;
    }
    line.end();
    Ok(latencies)
}

async fn stream(mut caller: Caller, line: Line, until: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(1 << 14);
    let mut began = line.begin();
    let mut call = caller.stream().await.map_err(|error| line.failed(error))?;
    while began < until {
        call.echo().await.map_err(|error| line.failed(error))?;
        let ended = line.begin();
        latencies.push(ended - began);
        began = ended;
    }
    call.finish().await.map_err(|error| line.failed(error))?;
    line.end();
    Ok(latencies)
}
