//! The client's connections, shared by the streams of one pod.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use rustls::ClientConfig;
use tokio::{net::TcpStream, sync::watch};

use super::{
    ConnectRequest, HboneStream, TunnelError,
    connection::{Connection, Reserved, Unopened},
    error::within,
    limits::STREAMS,
};
use crate::mesh::Principal;

/// Connections one stream may dial before it gives up on a peer that keeps closing them.
const MOST_DIALS: usize = 3;

/// What makes two streams able to share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// Who the client is.
    pub source: Principal,
    /// Who the server must be.
    pub peer: Principal,
    /// The destination pod's address, port 15008.
    pub address: SocketAddr,
}

/// What a connection is made with. Streams of another one need a connection of their own.
#[derive(Clone, Debug)]
pub struct Made {
    /// The configuration of TLS, with the certificate.
    pub tls: Arc<ClientConfig>,
    /// Another number when connections of before are not to be used any more.
    pub generation: u64,
}

impl Made {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tls, &other.tls) && self.generation == other.generation
    }
}

/// Limits of a pool.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Streams on one connection, where the peer allows as many; more take another.
    pub streams_per_connection: usize,
    /// How long a connection without streams is kept.
    pub idle_timeout: Duration,
    /// How long a TCP connection may take to be established.
    pub dial_timeout: Duration,
    /// How long the peer may take to answer a CONNECT. It connects to the application first.
    pub answer_timeout: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            streams_per_connection: STREAMS as usize,
            idle_timeout: Duration::from_secs(300),
            dial_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(15),
        }
    }
}

/// HBONE connections by [`PoolKey`]. Dropping the pool closes each when its streams end.
#[derive(Debug)]
pub struct HbonePool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: PoolOptions,
    /// The pool is one pod's, and the lock is held for a few comparisons.
    peers: Mutex<HashMap<PoolKey, Peer>>,
}

/// What leads to one peer. There is none with neither.
#[derive(Debug, Default)]
struct Peer {
    connections: Vec<Arc<Connection>>,
    dials: Vec<Dial>,
}

/// A connection being made, and the streams that will be opened on it.
#[derive(Debug)]
struct Dial {
    made: Made,
    streams: usize,
    outcome: Outcome,
}

/// `None` until the dial has ended; closed when whoever dialled went away.
type Outcome = watch::Receiver<Option<Result<(), TunnelError>>>;

/// How a stream gets to a connection.
enum Path {
    Reserved(Reserved),
    Wait(Outcome),
    Dial(Dialling),
}

impl HbonePool {
    /// An empty pool.
    pub fn new(options: PoolOptions) -> Self {
        Self { shared: Arc::new(Shared { options, peers: Mutex::default() }) }
    }

    /// Opens one stream, on a connection that is there or on one made with `dial` and `made`.
    ///
    /// Connections made with something else are left to the streams they carry. `dial` is
    /// called again when the new connection was closed before the peer had looked at it.
    ///
    /// # Errors
    /// When no connection can be made and when the peer does not answer or refuses.
    pub async fn open<D, F>(
        &self,
        key: PoolKey,
        connect: ConnectRequest,
        dial: D,
        made: Made,
    ) -> Result<HboneStream, TunnelError>
    where
        D: Fn() -> F,
        F: Future<Output = io::Result<TcpStream>>,
    {
        let mut dials = 0;
        loop {
            let mut fresh = false;
            let reserved = match self.shared.path(&key, &made) {
                Path::Reserved(reserved) => reserved,
                Path::Wait(mut outcome) => {
                    // Closed means that whoever dialled gave up; then it is our turn.
                    if let Ok(ended) = outcome.wait_for(Option::is_some).await {
                        ended.clone().unwrap_or(Ok(()))?;
                    }
                    continue;
                }
                Path::Dial(dialling) => {
                    dials += 1;
                    fresh = true;
                    dialling.run(&dial, &made).await?
                }
            };
            let connection = reserved.connection.clone();
            let unopened = match reserved.open(&connect, self.shared.options.answer_timeout).await {
                Ok(stream) => return Ok(stream),
                Err(unopened) => unopened,
            };
            match unopened {
                Unopened::Failed(error) => return Err(error),
                Unopened::Lost(error) if fresh => return Err(error),
                Unopened::Unprocessed(error) if dials == MOST_DIALS => return Err(error),
                Unopened::Lost(why) | Unopened::Unprocessed(why) => {
                    tracing::debug!(address = %key.address, %why, "trying another connection");
                    self.shared.forget(&key, &connection);
                }
            }
        }
    }
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, HashMap<PoolKey, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections there are, to all peers.
    fn connections(&self) -> usize {
        self.peers().values().map(|peer| peer.connections.len()).sum()
    }

    fn path(self: &Arc<Self>, key: &PoolKey, made: &Made) -> Path {
        let most = self.options.streams_per_connection;
        let mut peers = self.peers();
        let peer = peers.entry(key.clone()).or_default();
        peer.connections.retain(|connection| connection.made.is(made));
        if let Some(reserved) = peer.connections.iter().find_map(|known| known.reserve(most)) {
            return Path::Reserved(reserved);
        }
        let joinable = |dial: &&mut Dial| dial.made.is(made) && dial.streams < most;
        if let Some(dial) = peer.dials.iter_mut().find(joinable) {
            dial.streams += 1;
            return Path::Wait(dial.outcome.clone());
        }
        let (outcome, receiver) = watch::channel(None);
        peer.dials.push(Dial { made: made.clone(), streams: 1, outcome: receiver.clone() });
        Path::Dial(Dialling { shared: self.clone(), key: key.clone(), outcome, receiver })
    }

    /// Takes `connection` out of use.
    fn forget(&self, key: &PoolKey, connection: &Arc<Connection>) {
        self.change(key, |peer| {
            peer.connections.retain(|known| !Arc::ptr_eq(known, connection));
        });
    }

    /// Takes `connection` out of use, unless it has got a stream meanwhile. Streams are
    /// reserved under the same lock.
    fn forget_done(&self, key: &PoolKey, connection: &Arc<Connection>) -> bool {
        self.change(key, |peer| {
            let done = connection.is_done();
            peer.connections.retain(|known| !done || !Arc::ptr_eq(known, connection));
            done
        })
        .unwrap_or(true)
    }

    fn change<T>(&self, key: &PoolKey, change: impl FnOnce(&mut Peer) -> T) -> Option<T> {
        let mut peers = self.peers();
        let peer = peers.get_mut(key)?;
        let changed = change(peer);
        if peer.connections.is_empty() && peer.dials.is_empty() {
            peers.remove(key);
        }
        Some(changed)
    }
}

/// The duty to make a connection that others wait for. Dropping it passes the duty on.
struct Dialling {
    shared: Arc<Shared>,
    key: PoolKey,
    outcome: watch::Sender<Option<Result<(), TunnelError>>>,
    receiver: Outcome,
}

impl Dialling {
    async fn run<F>(self, dial: impl Fn() -> F, made: &Made) -> Result<Reserved, TunnelError>
    where
        F: Future<Output = io::Result<TcpStream>>,
    {
        match self.connect(dial, made).await {
            Ok((connection, reserved)) => {
                self.shared.change(&self.key, |peer| peer.connections.push(connection.clone()));
                // If it is over already, its own task came too early to take it out again.
                self.shared.forget_done(&self.key, &connection);
                self.outcome.send_replace(Some(Ok(())));
                Ok(reserved)
            }
            Err(error) => {
                self.outcome.send_replace(Some(Err(error.clone())));
                Err(error)
            }
        }
    }

    async fn connect<F>(
        &self,
        dial: impl Fn() -> F,
        made: &Made,
    ) -> Result<(Arc<Connection>, Reserved), TunnelError>
    where
        F: Future<Output = io::Result<TcpStream>>,
    {
        let options = &self.shared.options;
        let stream = within("connecting", options.dial_timeout, dial())
            .await?
            .map_err(|error| TunnelError::Dial { source: error.into() })?;
        let shared: Weak<Shared> = Arc::downgrade(&self.shared);
        let key = self.key.clone();
        let closing = move |connection: &Arc<Connection>| {
            shared.upgrade().is_none_or(|shared| shared.forget_done(&key, connection))
        };
        let (address, made) = (self.key.address, made.clone());
        let connections = self.shared.connections() + 1;
        let connection =
            Connection::establish(stream, address, made, options, connections, closing).await?;
        // Before anybody else sees it, so that the one who dialled has a place on it.
        let reserved = connection
            .reserve(options.streams_per_connection)
            .ok_or_else(|| TunnelError::broken("it takes no stream"))?;
        Ok((connection, reserved))
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.shared.change(&self.key, |peer| {
            peer.dials.retain(|dial| !dial.outcome.same_channel(&self.receiver));
        });
    }
}
