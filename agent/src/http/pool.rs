//! Upstream connections, kept open and used again.

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

use http::{Request, Response, Version};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};

use super::{Body, Protocol, Tap};
use crate::limits::{Inflow, Share};

/// Idle connections to one server beyond this are closed.
const MOST_IDLE: usize = 256;
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
    /// Whether the connection speaks HTTP/2.
    pub http2: bool,
    /// What the client had marked its socket with: packets of another mark may take another way,
    /// or none. 0 unless said otherwise.
    pub mark: u32,
    /// Whatever else has to be the same: no connection is used for a request of another number.
    pub generation: u64,
}

impl PoolKey {
    /// The key for a request of this HTTP version.
    pub fn new(client: IpAddr, server: SocketAddr, version: Version) -> Self {
        Self { client, server, http2: version == Version::HTTP_2, mark: 0, generation: 0 }
    }

    /// The key for a connection that was recognised as `protocol`.
    pub fn speaking(client: IpAddr, server: SocketAddr, protocol: Protocol) -> Self {
        Self { client, server, http2: protocol == Protocol::Http2, mark: 0, generation: 0 }
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

/// What HTTP can run on.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// What knows, before the connection closes, that the other end wants to be rid of it. HTTP/1
    /// itself has no word for that while nothing is asked, and what is asked at the moment of
    /// closing is lost.
    fn leaving(&self) -> Option<Leaving> {
        None
    }

    /// How much more the other end may send into memory of this process while nobody reads.
    fn window(&self) -> usize {
        0
    }
}

/// Whether the other end of a connection wants to be rid of it.
pub type Leaving = Box<dyn Fn() -> bool + Send + Sync>;

impl Stream for TcpStream {}
#[cfg(test)]
impl Stream for tokio::io::DuplexStream {}

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
    idle: Mutex<Vec<Idle>>,
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

#[derive(Debug)]
struct Idle {
    connection: Http1,
    since: Instant,
}

/// A connection for one request after the other.
struct Http1 {
    sender: http1::SendRequest<Body>,
    leaving: Option<Leaving>,
    inflow: Arc<Inflow>,
}

impl Http1 {
    /// Whether another request may be sent once the last is through.
    fn stays(&self) -> bool {
        !self.sender.is_closed() && !self.leaving.as_ref().is_some_and(|leaving| leaving())
    }
}

impl fmt::Debug for Http1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sender.fmt(f)
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
        let server = self.server(key);
        if key.http2 {
            return server.send_http2(request, dial).await;
        }
        server.send_http1(request, dial).await
    }

    /// Puts a connection that was opened before its protocol was known to use.
    ///
    /// # Errors
    /// When the HTTP/2 handshake fails.
    pub async fn adopt(&self, key: PoolKey, io: impl Stream) -> Result<(), hyper::Error> {
        let server = self.server(key);
        if key.http2 {
            *server.http2.lock().await = Some(connect_http2(io, &self.buffered).await?);
        } else {
            server.put_back(connect_http1(io, &self.buffered).await?);
        }
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
                idle: Mutex::default(),
                http2: tokio::sync::Mutex::default(),
                buffered: self.buffered.clone(),
            })
        };
        servers.entry(key).or_insert_with(new).clone()
    }
}

impl Server {
    async fn send_http1<S, E, Dialling>(
        self: Arc<Self>,
        mut request: Request<Body>,
        dial: impl FnOnce() -> Dialling,
    ) -> Result<Response<Body>, SendError<E>>
    where
        Dialling: Future<Output = Result<S, E>>,
        S: Stream,
    {
        while let Some(mut connection) = self.take_idle() {
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok(self.lend(connection, response)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(SendError::Exchange(error.into_error())),
                },
            }
        }
        let io = dial().await.map_err(SendError::Connect)?;
        let mut connection =
            connect_http1(io, &self.buffered).await.map_err(SendError::Exchange)?;
        let response = connection.sender.send_request(request).await;
        Ok(self.lend(connection, response.map_err(SendError::Exchange)?))
    }

    async fn send_http2<S, E, Dialling>(
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

    fn take_idle(&self) -> Option<Http1> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // The most recently used is the least likely to have been closed by the server.
        std::iter::from_fn(|| idle.pop())
            .map(|idle| idle.connection)
            .find(|connection| connection.sender.is_ready() && connection.stays())
    }

    fn put_back(&self, connection: Http1) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE && connection.stays() {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }

    /// Hands out the response; its connection comes back when the body is through.
    fn lend(self: Arc<Self>, connection: Http1, response: Response<Incoming>) -> Response<Body> {
        let inflow = connection.inflow.clone();
        let lent = Lent { server: self, connection: Some(connection) };
        response.map(|body| Body::received(body, &inflow).tapped(lent))
    }
}

/// Returns a connection to its server once the response body is complete.
struct Lent {
    server: Arc<Server>,
    connection: Option<Http1>,
}

impl Tap for Lent {
    fn data(&mut self, _bytes: usize) {}

    fn trailers(&mut self, _trailers: &http::HeaderMap) {
        self.complete();
    }

    fn complete(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if connection.sender.is_ready() {
            return self.server.put_back(connection);
        }
        // The connection's task has yet to notice the end, or is still sending the request.
        let server = Arc::downgrade(&self.server);
        tokio::spawn(async move {
            if connection.sender.ready().await.is_ok()
                && let Some(server) = server.upgrade()
            {
                server.put_back(connection);
            }
        });
    }
}

async fn connect_http1(io: impl Stream, buffered: &Arc<Share>) -> Result<Http1, hyper::Error> {
    let leaving = io.leaving();
    let inflow = http1_inflow(buffered, io.window());
    let (mut sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        .max_buf_size(MOST_HEADER_BYTES as usize)
        .handshake(TokioIo::new(io))
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "upstream HTTP/1 connection ended");
        }
    });
    // Not before its task has run once does the connection count as ready for a request.
    sender.ready().await?;
    Ok(Http1 { sender, leaving, inflow })
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

/// What an HTTP/1 connection may bring before it is read: hyper's buffer, and the window under it.
pub(super) fn http1_inflow(buffered: &Arc<Share>, window: usize) -> Arc<Inflow> {
    let window = MOST_HEADER_BYTES.saturating_add(window.try_into().unwrap_or(u32::MAX));
    Inflow::new(buffered, window, window)
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
            let mut idle = server.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|idle| idle.since.elapsed() < IDLE_TIMEOUT && idle.connection.stays());
            // Whoever has the lock is making a connection.
            let http2 = server.http2.try_lock().map_or(true, |mut shared| {
                shared.take_if(|connection| !connection.stays());
                shared.is_some()
            });
            !idle.is_empty() || http2 || Arc::strong_count(server) > 1
        });
        if servers.is_empty() {
            return;
        }
    }
}
