//! Requests that are due at fixed times, whatever became of those before: one that waits because
//! others are late is late itself, as it is for whoever sent it.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::sys::prctl::set_timerslack;
use tokio::{
    net::TcpStream,
    sync::{
        Mutex,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    task::JoinSet,
};

use crate::{
    http1,
    latency::{Latencies, micros},
    load::kept,
    round::Round,
    table::Figure,
    watch::{Line, Watch},
};

/// From one request to the next.
const PACE: Duration = Duration::from_millis(1);
/// As many as can be under way at once.
const CONNECTIONS: usize = 64;

/// When each request is due, for the next client that is free.
type Due = Arc<Mutex<UnboundedReceiver<Instant>>>;

pub(crate) async fn measure(round: &Round<'_>) -> anyhow::Result<Vec<Figure>> {
    let streams = kept::open(round, CONNECTIONS).await?;
    let watch = Watch::of(CONNECTIONS);
    let cpu = round.cpu()?;
    let (sender, due) = unbounded_channel();
    let due = Arc::new(Mutex::new(due));
    let requests = (round.lasts.as_secs_f64() / PACE.as_secs_f64()) as u32;
    let mut clients = JoinSet::new();
    for (number, stream) in streams.into_iter().enumerate() {
        clients.spawn(client(stream, watch.line(number), due.clone()));
    }
    thread::spawn(move || tick(requests, &sender));
    let latencies = round.gather(&watch, clients).await?;
    let cpu = round.cpu()? - cpu;
    let latencies = Latencies::of(latencies.concat());
    Ok(vec![
        Figure::new("CPU a request (µs)", micros(cpu) / latencies.count()),
        Figure::new("latency, median (µs)", latencies.at(0.5)),
        Figure::new("latency, p99 (µs)", latencies.at(0.99)),
        Figure::new("latency, p99.9 (µs)", latencies.at(0.999)),
    ])
}

/// Says when requests are due, until all have been. On a thread of its own: the runtime's timers go by
/// whole milliseconds.
fn tick(requests: u32, due: &UnboundedSender<Instant>) {
    // Wakes this thread when it asked for, not up to 50 µs later; without, latencies say so.
    let _ = set_timerslack(1);
    let began = Instant::now();
    for number in 1..=requests {
        let next = began + PACE * number;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        // The clients are gone when one of them failed.
        if due.send(next).is_err() {
            return;
        }
    }
}

async fn client(mut stream: TcpStream, line: Line, due: Due) -> anyhow::Result<Vec<Duration>> {
    line.is_on(&stream);
    let mut latencies = Vec::new();
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let next = due.lock().await.recv().await;
        let Some(next) = next else { return Ok(latencies) };
        line.begin();
        let exchange = http1::exchange(&mut stream, http1::REQUEST, &mut buffer).await;
        exchange.map_err(|error| line.failed(error))?;
        latencies.push(line.end() - next);
    }
}
