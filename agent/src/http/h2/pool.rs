//! Connections to servers, shared by the requests that may.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::watch;

use super::connection::{Connection, Heard, Reserved};
use crate::{
    http::{Answer, Ended, Route, Stream},
    limits::Share,
};

/// A route whose server may be asked by many at once.
pub trait Shared: Route<Stream: Stream> {
    /// The connections that it may share, and which of them.
    fn connections(&self) -> (Pool, PoolKey);
}

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

/// Connections that speak HTTP/2, by [`PoolKey`]. As many of each as their server takes for the
/// requests that are open at once. Clones are of one pool; dropping the last closes each connection
/// when its streams end.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Servers>);

#[derive(Debug)]
struct Servers {
    /// A lock, which is one pod's and one peer's own and is held for a few comparisons: a concurrent
    /// map is 17 KB, and most have one server or none.
    servers: Mutex<HashMap<PoolKey, Server>>,
    /// What may wait for readers of what comes on these connections.
    buffered: Arc<Share>,
}

/// What leads to one server. There is none with neither.
#[derive(Debug, Default)]
struct Server {
    connections: Vec<Arc<Connection>>,
    dial: Option<Outcome>,
}

/// Whether a dial came to something. `None` until it has ended; closed when whoever dialled went away.
type Outcome = watch::Receiver<Option<bool>>;

/// How a request gets to a connection.
enum Path {
    Reserved(Reserved),
    /// Its server is still to say how many requests it takes.
    Hear(watch::Receiver<Heard>),
    Wait(Outcome),
    Dial(Dialling),
}

impl Pool {
    /// Without a connection. What waits for readers of responses is counted in `buffered`.
    pub fn new(buffered: &Arc<Share>) -> Self {
        Self(Arc::new(Servers { servers: Mutex::default(), buffered: buffered.clone() }))
    }

    /// Puts a connection that was opened before its protocol was known to use.
    ///
    /// # Errors
    /// When it broke meanwhile.
    pub async fn adopt(&self, key: PoolKey, io: impl Stream) -> Result<(), h2::Error> {
        let connection = self.establish(&key, io).await?;
        self.add(&key, &connection);
        Ok(())
    }

    /// Room on a connection that is there.
    pub(super) fn reserve(
        &self,
        key: &PoolKey,
        avoid: Option<&Arc<Connection>>,
    ) -> Option<Reserved> {
        self.0.lock().get(key)?.reserve(avoid)
    }

    /// Room on a connection that is there, or on one that `route` makes. `avoid` would not do.
    ///
    /// # Errors
    /// With what the client is to be answered.
    pub(super) async fn connection<R: Shared>(
        &self,
        key: &PoolKey,
        route: &mut R,
        avoid: Option<&Arc<Connection>>,
    ) -> Result<Reserved, Answer> {
        loop {
            match self.path(key, avoid) {
                Path::Reserved(reserved) => return Ok(reserved),
                // Fails only without the connection, and then there is another path.
                Path::Hear(mut heard) => {
                    drop(heard.wait_for(|heard| heard.limit || heard.end).await);
                }
                Path::Wait(mut outcome) => {
                    let failed = matches!(
                        outcome.wait_for(Option::is_some).await.as_deref(),
                        Ok(Some(false))
                    );
                    if failed {
                        // All that waited try by themselves, at once.
                        return self.dial(key, route).await;
                    }
                }
                Path::Dial(dialling) => {
                    let dialled = self.dial(key, route).await;
                    dialling.end(dialled.is_ok());
                    return dialled;
                }
            }
        }
    }

    /// Takes `connection` out of use; its streams go on.
    pub(super) fn forget(&self, key: &PoolKey, connection: &Arc<Connection>) {
        self.0.remove(key, connection);
    }

    fn path(&self, key: &PoolKey, avoid: Option<&Arc<Connection>>) -> Path {
        let mut servers = self.0.lock();
        let server = servers.entry(*key).or_default();
        if let Some(reserved) = server.reserve(avoid) {
            return Path::Reserved(reserved);
        }
        let mut others = server.connections.iter().filter(|known| !is(known, avoid));
        let unheard = others.find_map(|connection| {
            let heard = connection.heard();
            let waits = *heard.borrow() == Heard::default();
            waits.then_some(heard)
        });
        if let Some(heard) = unheard {
            return Path::Hear(heard);
        }
        if let Some(outcome) = &server.dial {
            return Path::Wait(outcome.clone());
        }
        let (outcome, receiver) = watch::channel(None);
        server.dial = Some(receiver);
        Path::Dial(Dialling { servers: self.0.clone(), key: *key, outcome })
    }

    async fn dial<R: Shared>(&self, key: &PoolKey, route: &mut R) -> Result<Reserved, Answer> {
        let io = route.connect().await?;
        match self.establish(key, io).await {
            Ok(connection) => {
                // Before anybody else sees it, so that whoever dialled has a place on it.
                let reserved = connection.take();
                self.add(key, &connection);
                Ok(reserved)
            }
            Err(error) => {
                let error = std::io::Error::other(error);
                Err(route.unanswered(&Ended::Unanswered(Some(error))))
            }
        }
    }

    async fn establish(
        &self,
        key: &PoolKey,
        io: impl Stream,
    ) -> Result<Arc<Connection>, h2::Error> {
        let (servers, key) = (Arc::downgrade(&self.0), *key);
        let leave = move |connection: &Arc<Connection>| {
            if let Some(servers) = Weak::upgrade(&servers) {
                servers.remove_done(&key, connection);
            }
        };
        Connection::establish(io, &self.0.buffered, leave).await
    }

    fn add(&self, key: &PoolKey, connection: &Arc<Connection>) {
        let mut servers = self.0.lock();
        let server = servers.entry(*key).or_default();
        server.connections.push(connection.clone());
        drop(servers);
        // If it is over already, its own task came too early to take it out again.
        if connection.heard().borrow().end {
            self.0.remove(key, connection);
        }
    }
}

fn is(connection: &Arc<Connection>, other: Option<&Arc<Connection>>) -> bool {
    other.is_some_and(|other| Arc::ptr_eq(connection, other))
}

impl Server {
    fn reserve(&self, avoid: Option<&Arc<Connection>>) -> Option<Reserved> {
        let mut others = self.connections.iter().filter(|known| !is(known, avoid));
        others.find_map(Connection::reserve)
    }
}

impl Servers {
    fn lock(&self) -> MutexGuard<'_, HashMap<PoolKey, Server>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, key: &PoolKey, connection: &Arc<Connection>) {
        self.change(key, |server| {
            server.connections.retain(|known| !Arc::ptr_eq(known, connection))
        });
    }

    /// Takes `connection` out of use, unless it has got a stream meanwhile. Streams are reserved under
    /// the same lock.
    fn remove_done(&self, key: &PoolKey, connection: &Arc<Connection>) {
        self.change(key, |server| {
            let is_done = connection.is_done();
            server.connections.retain(|known| !is_done || !Arc::ptr_eq(known, connection));
        });
    }

    fn change(&self, key: &PoolKey, change: impl FnOnce(&mut Server)) {
        let mut servers = self.lock();
        let Some(server) = servers.get_mut(key) else { return };
        change(server);
        if server.connections.is_empty() && server.dial.is_none() {
            servers.remove(key);
        }
    }
}

/// The duty to make a connection that others wait for. Dropping it passes the duty on, if nothing
/// came of it.
struct Dialling {
    servers: Arc<Servers>,
    key: PoolKey,
    outcome: watch::Sender<Option<bool>>,
}

impl Dialling {
    fn end(self, success: bool) {
        let outcome = self.outcome.clone();
        // First, so that nobody who hears of it finds this dial again.
        drop(self);
        outcome.send_replace(Some(success));
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.servers.change(&self.key, |server| server.dial = None);
    }
}
