//! A pod that has nothing to do with an attack, and how its requests fare.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::ensure;
use sluice_tests::Pod;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

/// Where a bystander's servers listen.
pub(crate) const PORT: u16 = 8088;
/// Connections that are kept, each with its share of the requests.
const LANES: usize = 10;
/// Between two requests of a lane: 200 requests a second in all.
const EVERY: Duration = Duration::from_millis(50);
/// One request in so many is the first of a new connection.
const RECONNECT: usize = 10;
/// A request that takes longer has failed: nobody will answer it. How long it takes otherwise is a
/// figure, since the load shares the machine with who bears it.
const TOO_LONG: Duration = Duration::from_secs(20);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: server\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Requests under way, until [`Bystander::stop`].
pub(crate) struct Bystander {
    lanes: JoinSet<Lane>,
    stop: Arc<AtomicBool>,
}

/// How they fared.
pub(crate) struct Fared {
    latencies: Vec<Duration>,
    failures: Vec<String>,
}

#[derive(Default)]
struct Lane {
    latencies: Vec<Duration>,
    failures: Vec<String>,
}

impl Bystander {
    /// Begins to ask `servers` in turn, from `pod`.
    pub(crate) fn start(on: &Handle, pod: &Arc<Pod>, servers: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut lanes = JoinSet::new();
        for number in 0..LANES {
            let server = servers[number % servers.len()];
            lanes.spawn_on(ask(pod.clone(), server, stop.clone()), on);
        }
        Self { lanes, stop }
    }

    /// The same for a time.
    pub(crate) async fn watch(
        on: &Handle,
        pod: &Arc<Pod>,
        servers: &[SocketAddr],
        time: Duration,
    ) -> Fared {
        let bystander = Self::start(on, pod, servers);
        tokio::time::sleep(time).await;
        bystander.stop().await
    }

    /// Ends it, and says how it was.
    pub(crate) async fn stop(mut self) -> Fared {
        self.stop.store(true, Relaxed);
        let mut fared = Fared { latencies: Vec::new(), failures: Vec::new() };
        while let Some(lane) = self.lanes.join_next().await {
            let lane = lane.expect("lanes do not panic");
            fared.latencies.extend(lane.latencies);
            fared.failures.extend(lane.failures);
        }
        fared.latencies.sort_unstable();
        fared
    }
}

impl Fared {
    /// # Errors
    /// When a request failed.
    pub(crate) fn unharmed(&self, when: &str) -> anyhow::Result<()> {
        ensure!(
            self.failures.is_empty(),
            "{} of {} requests failed {when}: {:?} …",
            self.failures.len(),
            self.failures.len() + self.latencies.len(),
            &self.failures[..self.failures.len().min(5)]
        );
        ensure!(!self.latencies.is_empty(), "nothing was asked {when}");
        Ok(())
    }

    pub(crate) fn at(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((share * last as f64) as usize).copied().unwrap_or_default()
    }
}

impl fmt::Display for Fared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |share| self.at(share).as_secs_f64() * 1e3;
        write!(
            f,
            "{} requests, {} failures, p50 {:.1} ms, p99 {:.1} ms",
            self.latencies.len() + self.failures.len(),
            self.failures.len(),
            millis(0.5),
            millis(0.99)
        )
    }
}

/// Counted from when each request was due: one that waits for the one before is late as well.
async fn ask(pod: Arc<Pod>, server: SocketAddr, stop: Arc<AtomicBool>) -> Lane {
    let mut lane = Lane::default();
    let mut connection = None;
    let mut due = interval(EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0.. {
        let due = due.tick().await;
        if stop.load(Relaxed) {
            break;
        }
        if number % RECONNECT == 0 {
            connection = None;
        }
        match timeout(TOO_LONG, exchange(&pod, server, &mut connection)).await {
            Ok(Ok(())) => lane.latencies.push(Instant::now() - due),
            Ok(Err(error)) => lane.failures.push(format!("{server}: {error}")),
            Err(_) => lane.failures.push(format!("{server}: no answer within {TOO_LONG:?}")),
        }
        if lane.failures.len() > 100 {
            break;
        }
    }
    lane
}

async fn exchange(
    pod: &Pod,
    server: SocketAddr,
    connection: &mut Option<TcpStream>,
) -> io::Result<()> {
    // Taken out, so that one that failed is not used again.
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => pod.connect(server).await?,
    };
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::with_capacity(256);
    while !answer.ends_with(b"ok") {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    if !answer.starts_with(b"HTTP/1.1 200") {
        return Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned()));
    }
    *connection = Some(stream);
    Ok(())
}

/// Answers the requests of a bystander, until dropped.
pub(crate) fn serve(on: &Handle, listener: TcpListener) -> JoinSet<()> {
    let mut serving = JoinSet::new();
    let serve = async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(answer(stream));
            while connections.try_join_next().is_some() {}
        }
    };
    serving.spawn_on(serve, on);
    serving
}

async fn answer(mut stream: TcpStream) {
    let mut asked = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut asked).await {
        if asked.ends_with(b"\r\n\r\n") {
            asked.clear();
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
        }
    }
}
