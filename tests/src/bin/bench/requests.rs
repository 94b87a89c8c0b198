//! HTTP/1.1 requests on kept connections.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    figure,
    table::Figure,
    world::{BODY, HTTP, Way, World},
};

/// Connections that are kept busy at once.
const CONNECTIONS: usize = 32;

pub(crate) async fn measure(
    world: &World,
    way: Way,
    round: Duration,
) -> anyhow::Result<Vec<Figure>> {
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        streams.push(world.connect(way, HTTP).await?);
    }
    let cpu = world.agents_cpu()?;
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for stream in streams {
        clients.spawn(client(stream, began + round));
    }
    let mut latencies = Vec::new();
    while let Some(client) = clients.join_next().await {
        latencies.extend(client??);
    }
    let took = began.elapsed();
    let cpu = world.agents_cpu()? - cpu;
    latencies.sort_unstable();
    let requests = latencies.len();
    let at = |share: f64| latencies[(share * (requests - 1) as f64) as usize];
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    Ok(vec![
        figure("HTTP requests a second, 32 connections", requests as f64 / took.as_secs_f64()),
        figure("  latency, median (µs)", micros(at(0.5))),
        figure("  latency, 99th percentile (µs)", micros(at(0.99))),
        figure("  agents' CPU a request (µs)", micros(cpu) / requests as f64),
    ])
}

async fn client(mut stream: TcpStream, until: Instant) -> io::Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    let mut response = Vec::with_capacity(1024);
    while Instant::now() < until {
        let began = Instant::now();
        stream.write_all(b"GET /order HTTP/1.1\r\nhost: bench\r\n\r\n").await?;
        response.clear();
        while !is_whole(&response)? {
            if stream.read_buf(&mut response).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        latencies.push(began.elapsed());
    }
    Ok(latencies)
}

fn is_whole(response: &[u8]) -> io::Result<bool> {
    let whole = response.ends_with(BODY.as_bytes())
        && response[..response.len() - BODY.len()].ends_with(b"\r\n\r\n");
    if whole && !response.starts_with(b"HTTP/1.1 200 ") {
        return Err(io::Error::other(String::from_utf8_lossy(response).into_owned()));
    }
    Ok(whole)
}
