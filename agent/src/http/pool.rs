//! Upstream HTTP/2 connections, kept open and shared.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::client::conn::{TrySendError, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::Instant;

use super::{Body, Stream, Tap};
use crate::limits::{Inflow, Share};

/// How long a connection may sit idle. Shorter than the 60 s many servers allow, so that ours
/// closes first and no request meets a closing connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Flow-control windows for HTTP/2: what a connection can make this process hold while somebody
/// does not read. 64 KiB take half a Gbit/s at 1 ms.
pub(super) const H2_STREAM_WINDOW: u32 = 64 << 10;
/// The connection's is smaller where its pod has much that waits, down to one stream's.
const LARGEST_H2_WINDOW: u32 = 1 << 20;
/// The most decoded header bytes one message may carry.
pub(super) const MOST_HEADER_BYTES: u32 = 64 << 10;

/// What makes two requests able to share a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The address the server sees; a connection is never shared between clients.
    pub client: IpAddr,
    /// The server.
    pub server: SocketAddr,
    /// What the client had marked its socket with: packets of another mark may take another way,
    /// or none. 0 unless said otherwise.
    pub mark: u32,
    /// Whatever else has to be the same: no connection is used for a request of another number.
    pub generation: u64,
}

impl PoolKey {
    /// The key for requests of `client` to `server`.
    pub fn new(client: IpAddr, server: SocketAddr) -> Self {
        Self { client, server, mark: 0, generation: 0 }
    }

    /// The same for a client that marked its socket.
    pub fn marked(self, mark: u32) -> Self {
        Self { mark, ..self }
    }

    /// The same for connections and requests of this number.
    #[must_use]
    pub fn of_generation(self, generation: u64) -> Self {
        Self { generation, ..self }
    }
}

/// Why a request got no response.
#[derive(Debug)]
pub enum SendError<E> {
    /// No connection could be made.
    Connect(E),
    /// The connection broke or the server's answer was not HTTP.
    Exchange(hyper::Error),
}

impl<E: fmt::Display> fmt::Display for SendError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::Connect(error) => error.fmt(f),
            SendError::Exchange(error) => f.write_str(&with_cause(error)),
        }
    }
}

/// hyper's own text names the step, its source the cause.
pub fn with_cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Connections by [`PoolKey`]. Dropping the pool closes what is idle.
#[derive(Debug)]
pub struct Pool {
    servers: Arc<Servers>,
    /// What may wait for readers of what comes on its connections.
    buffered: Arc<Share>,
}

/// A lock, which is this pod's and this peer's own: a concurrent map is 17 KB, and most have one
/// server or none.
type Servers = Mutex<HashMap<PoolKey, Arc<Server>>>;

/// The connections to one server for one client.
#[derive(Debug)]
struct Server {
    http2: tokio::sync::Mutex<Option<Http2>>,
    buffered: Arc<Share>,
}

/// A connection for many requests at once.
#[derive(Clone, Debug)]
struct Http2 {
    sender: http2::SendRequest<Body>,
    usage: Arc<Usage>,
    inflow: Arc<Inflow>,
}

/// What a connection is used for.
#[derive(Debug, Default)]
struct Usage {
    /// Requests whose responses are not through.
    open: AtomicUsize,
    /// All requests so far, so that those are not missed that come and go between two looks.
    begun: AtomicUsize,
    /// How many there were when it was last looked at, and since when nothing has changed.
    seen: Mutex<Option<(usize, Instant)>>,
}

/// One request of an HTTP/2 connection.
struct InUse(Arc<Usage>);

impl Http2 {
    async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Body>, TrySendError<Request<Body>>> {
        self.usage.open.fetch_add(1, Relaxed);
        self.usage.begun.fetch_add(1, Relaxed);
        let in_use = InUse(self.usage.clone());
        let response = self.sender.try_send_request(request).await?;
        Ok(response.map(|body| Body::received(body, &self.inflow).tapped(in_use)))
    }

    /// Whether it is to be kept. Asked now and then.
    fn stays(&self) -> bool {
        let Usage { open, begun, seen } = &*self.usage;
        let (open, begun) = (open.load(Relaxed), begun.load(Relaxed));
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match *seen {
            Some((before, since)) if open == 0 && before == begun => since,
            _ => seen.insert((begun, Instant::now())).1,
        };
        !self.sender.is_closed() && since.elapsed() < IDLE_TIMEOUT
    }
}

impl Tap for InUse {
    fn data(&mut self, _bytes: usize) {}
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

impl Pool {
    /// Without a connection. What waits for readers of responses is counted in `buffered`.
    pub fn new(buffered: &Arc<Share>) -> Self {
        Self { servers: Arc::default(), buffered: buffered.clone() }
    }

    /// Sends `request` on a pooled connection, or on a new one made by `dial`.
    ///
    /// A pooled connection that turns out to be closed before a byte of the request was
    /// written is replaced once.
    ///
    /// # Errors
    /// [`SendError::Connect`] carries `dial`'s error; [`SendError::Exchange`] means that the
    /// request may have reached the server.
    pub async fn send<S, E, Dialling>(
        &self,
        key: PoolKey,
        request: Request<Body>,
        dial: impl FnOnce() -> Dialling,
    ) -> Result<Response<Body>, SendError<E>>
    where
        Dialling: Future<Output = Result<S, E>>,
        S: Stream,
    {
        self.server(key).send(request, dial).await
    }

    /// Puts a connection that was opened before its protocol was known to use.
    ///
    /// # Errors
    /// When the HTTP/2 handshake fails.
    pub async fn adopt(&self, key: PoolKey, io: impl Stream) -> Result<(), hyper::Error> {
        let connection = connect_http2(io, &self.buffered).await?;
        *self.server(key).http2.lock().await = Some(connection);
        Ok(())
    }

    fn server(&self, key: PoolKey) -> Arc<Server> {
        let mut servers = lock(&self.servers);
        if servers.is_empty() {
            // It ends when there is nothing to look after.
            tokio::spawn(close_idle(Arc::downgrade(&self.servers)));
        }
        let new = || {
            Arc::new(Server {
                http2: tokio::sync::Mutex::default(),
                buffered: self.buffered.clone(),
            })
        };
        servers.entry(key).or_insert_with(new).clone()
    }
}

impl Server {
    async fn send<S, E, Dialling>(
        &self,
        mut request: Request<Body>,
        dial: impl FnOnce() -> Dialling,
    ) -> Result<Response<Body>, SendError<E>>
    where
        Dialling: Future<Output = Result<S, E>>,
        S: Stream,
    {
        let shared = self.http2.try_lock().ok().and_then(|shared| shared.clone());
        if let Some(mut shared) = shared.filter(|shared| !shared.sender.is_closed()) {
            match shared.send(request).await {
                Ok(response) => return Ok(response),
                // The server is closing the connection and has not looked at the request.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(SendError::Exchange(error.into_error())),
                },
            }
        }
        // Requests that come while the connection is being made wait for it here; where that
        // fails they try by themselves, all at once.
        let waited = self.http2.try_lock().is_err();
        let mut connection = {
            let mut shared = self.http2.lock().await;
            match &*shared {
                Some(connection) if !connection.sender.is_closed() => connection.clone(),
                _ if waited => {
                    drop(shared);
                    let io = dial().await.map_err(SendError::Connect)?;
                    let connection = connect_http2(io, &self.buffered).await;
                    let connection = connection.map_err(SendError::Exchange)?;
                    self.http2.lock().await.insert(connection).clone()
                }
                _ => {
                    let io = dial().await.map_err(SendError::Connect)?;
                    let connection = connect_http2(io, &self.buffered).await;
                    let connection = connection.map_err(SendError::Exchange)?;
                    shared.insert(connection).clone()
                }
            }
        };
        let response = connection.send(request).await;
        response.map_err(|error| SendError::Exchange(error.into_error()))
    }
}

async fn connect_http2(io: impl Stream, buffered: &Arc<Share>) -> Result<Http2, hyper::Error> {
    let window = connection_window(buffered);
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(window)
        .max_header_list_size(MOST_HEADER_BYTES)
        .keep_alive_interval(Duration::from_secs(30))
        .handshake(TokioIo::new(io))
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "upstream HTTP/2 connection ended");
        }
    });
    let inflow = Inflow::new(buffered, H2_STREAM_WINDOW, window);
    Ok(Http2 { sender, usage: Arc::default(), inflow })
}

/// What all streams of a new HTTP/2 connection may bring together before it is read.
pub(super) fn connection_window(buffered: &Share) -> u32 {
    buffered.window(H2_STREAM_WINDOW, LARGEST_H2_WINDOW)
}

fn lock(servers: &Servers) -> MutexGuard<'_, HashMap<PoolKey, Arc<Server>>> {
    servers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes what sat idle too long, until the pool is gone or has no server.
async fn close_idle(servers: Weak<Servers>) {
    let mut tick = tokio::time::interval(IDLE_TIMEOUT / 4);
    loop {
        tick.tick().await;
        let Some(servers) = servers.upgrade() else { return };
        let mut servers = lock(&servers);
        servers.retain(|_, server| {
            // Whoever has the lock is making a connection.
            let http2 = server.http2.try_lock().map_or(true, |mut shared| {
                shared.take_if(|connection| !connection.stays());
                shared.is_some()
            });
            http2 || Arc::strong_count(server) > 1
        });
        if servers.is_empty() {
            return;
        }
    }
}
