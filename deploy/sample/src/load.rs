//! Load of several kinds at once, each counted: what a restart of the mesh must not be felt by.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Uri, client::conn::http1};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tower::ServiceExt;

/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two exchanges on a connection that stays.
const PAUSE: Duration = Duration::from_millis(20);
/// Connections, of each kind, that stay.
const STAYING: usize = 4;

/// Call a service over new and over lasting connections, and print totals every second
#[derive(Args, Debug)]
pub(crate) struct Load {
    /// What to get over HTTP/1.1 and HTTP/2
    #[arg(long, env = "LOAD_URL", default_value = "http://order-service:8080/health")]
    url: Uri,
    /// Where bytes come back, over plain TCP
    #[arg(long, env = "LOAD_ECHO", value_name = "HOST:PORT", default_value = "echo:9000")]
    echo: String,
    /// New connections a second
    #[arg(long, env = "LOAD_RATE", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

/// What has happened of one kind.
#[derive(Debug)]
struct Tally {
    kind: &'static str,
    tried: AtomicU64,
    failed: AtomicU64,
    /// Connections made; where each exchange has its own, as many as were tried.
    connections: AtomicU64,
    /// Bytes received, of which those of an echo are what was sent.
    bytes: AtomicU64,
}

impl Load {
    /// Loads the services until it is stopped.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let authority = self.url.authority().context("--url names no host")?;
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
        let tallies = ["connects", "http1", "http2", "echo"].map(Tally::new);
        let [connects, http1, http2, echo] = &tallies;
        tokio::spawn(connect(connects.clone(), address, self.url.clone(), self.rate));
        for _ in 0..STAYING {
            tokio::spawn(request(http1.clone(), self.url.clone(), false));
            tokio::spawn(request(http2.clone(), self.url.clone(), true));
            tokio::spawn(converse(echo.clone(), self.echo.clone()));
        }
        let mut seconds = interval(Duration::from_secs(1));
        loop {
            seconds.tick().await;
            let totals = tallies.iter().map(|tally| (tally.kind.to_owned(), tally.totals()));
            println!("{}", Value::Object(totals.collect()));
        }
    }
}

/// Makes `rate` connections a second, each for one request.
async fn connect(tally: Arc<Tally>, address: String, url: Uri, rate: u32) {
    let mut ticks = interval(Duration::from_secs(1) / rate);
    // Those that are late are made up for: the rate is what was asked for.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        let (tally, address, url) = (tally.clone(), address.clone(), url.clone());
        tokio::spawn(async move {
            tally.connected();
            tally.count(once(&address, url)).await;
        });
    }
}

/// One request over a connection of its own. Returns the bytes of the answer.
async fn once(address: &str, url: Uri) -> anyhow::Result<u64> {
    let stream = TcpStream::connect(address).await.context("no connection")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let host = url.authority().map_or(address, |authority| authority.as_str()).to_owned();
    let path = url.path().to_owned();
    let request = Request::get(path).header("host", host).header("connection", "close");
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    ensure!(response.status().is_success(), "answered {}", response.status());
    let body = response.into_body().collect().await?.to_bytes();
    driver.await?.context("the connection broke")?;
    Ok(body.len() as u64)
}

/// One request after the other, over a connection that stays as long as the server lets it.
async fn request(tally: Arc<Tally>, url: Uri, http2: bool) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    // Counts what it makes: the pool says nothing of that.
    let counted = tally.clone();
    let connector = ServiceExt::<Uri>::map_response(connector, move |stream| {
        counted.connected();
        stream
    });
    let mut client = Client::builder(TokioExecutor::new());
    client.pool_timer(TokioTimer::new()).http2_only(http2);
    let client = client.build::<_, Empty<Bytes>>(connector);
    loop {
        tally
            .count(async {
                let response = client.get(url.clone()).await?;
                ensure!(response.status().is_success(), "answered {}", response.status());
                Ok(response.into_body().collect().await?.to_bytes().len() as u64)
            })
            .await;
        sleep(PAUSE).await;
    }
}

/// Sends bytes and compares what comes back, over a stream that stays until it breaks. One that
/// breaks is made anew, which shows in the number of connections; bytes that are wrong are a
/// failure, and so is a stream that cannot be made.
async fn converse(tally: Arc<Tally>, address: String) {
    loop {
        let mut stream = None;
        tally
            .count(async {
                stream = Some(TcpStream::connect(&address).await.context("no connection")?);
                Ok(0)
            })
            .await;
        let Some(mut stream) = stream else {
            sleep(PAUSE).await;
            continue;
        };
        tally.connected();
        let mut number = 0_u64;
        loop {
            let sent: Vec<u8> = (0..512).flat_map(|at| (number + at).to_be_bytes()).collect();
            number += 512;
            let mut received = vec![0; sent.len()];
            let exchange = async {
                stream.write_all(&sent).await?;
                stream.read_exact(&mut received).await
            };
            match timeout(PATIENCE, exchange).await {
                Ok(Ok(_)) => {
                    let compare = async {
                        ensure!(received == sent, "wrong bytes");
                        Ok(received.len() as u64)
                    };
                    tally.count(compare).await;
                }
                Ok(Err(_)) => break,
                Err(_) => {
                    tally.count(async { anyhow::bail!("no echo within {PATIENCE:?}") }).await;
                    break;
                }
            }
            sleep(PAUSE).await;
        }
    }
}

impl Tally {
    fn new(kind: &'static str) -> Arc<Self> {
        let [tried, failed, connections, bytes] = Default::default();
        Arc::new(Self { kind, tried, failed, connections, bytes })
    }

    fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an exchange and the bytes that came of it, and says what was wrong with one that fails.
    async fn count(&self, exchange: impl Future<Output = anyhow::Result<u64>>) {
        let result = match timeout(PATIENCE, exchange).await {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("nothing within {PATIENCE:?}")),
        };
        self.tried.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(bytes) => {
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                eprintln!("{}: {error:#}", self.kind);
            }
        }
    }

    fn totals(&self) -> Value {
        let [tried, failed, connections, bytes] =
            [&self.tried, &self.failed, &self.connections, &self.bytes]
                .map(|all| all.load(Ordering::Relaxed));
        json!({ "tried": tried, "failed": failed, "connections": connections, "bytes": bytes })
    }
}
