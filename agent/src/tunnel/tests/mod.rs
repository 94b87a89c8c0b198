//! Tunnels over real TLS and TCP on loopback.

mod exchanges;
mod pool;
mod server;
mod streams;
mod timeouts;

use std::{
    future::{Future, pending, poll_fn},
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, client::SendRequest};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use rustls::{ClientConfig, ServerConfig};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use super::{
    Connect, ConnectRequest, HbonePool, HboneStream, Made, PoolKey, PoolOptions, TunnelError,
    limits::{CONNECTS_IN_WORK, FEW, LARGEST_WINDOW, SEND_BUFFER, STREAMS},
    serve,
};
use crate::{
    identity::{
        BoxFuture, Certificate, CertificateSource, IdentityError, IdentityStore, SelfSignedCa,
        peer_principal,
    },
    mesh::{Principal, TrustDomain},
};

fn principal(account: &str) -> Principal {
    Principal::new(TrustDomain::default(), "shop", account).unwrap()
}

fn app() -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, 7), 8080).into()
}

/// Identities of one CA.
struct Mesh {
    dir: TempDir,
    store: Arc<IdentityStore>,
}

impl Mesh {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = store(&dir);
        Self { dir, store }
    }

    /// What `frontend` connects to `order` with.
    async fn client(&self) -> Arc<ClientConfig> {
        self.store.client_config(&principal("frontend"), &principal("order")).await.unwrap()
    }

    /// The same with a newer certificate.
    async fn renewed(&self) -> Arc<ClientConfig> {
        let store = store(&self.dir);
        store.client_config(&principal("frontend"), &principal("order")).await.unwrap()
    }

    async fn server(&self, who: &str) -> Arc<ServerConfig> {
        self.store.server_config(&principal(who)).await.unwrap()
    }
}

fn ca(dir: &TempDir) -> SelfSignedCa {
    let lifetime = Duration::from_secs(3600);
    SelfSignedCa::open(dir.path(), TrustDomain::default(), lifetime).unwrap()
}

fn store(dir: &TempDir) -> Arc<IdentityStore> {
    IdentityStore::new(Arc::new(ca(dir)), TrustDomain::default())
}

/// An agent's HBONE port; the test decides about every CONNECT.
struct Server {
    address: SocketAddr,
    connects: mpsc::UnboundedReceiver<Connect>,
    /// How each connection ended.
    ended: mpsc::UnboundedReceiver<Result<(), TunnelError>>,
    connections: Arc<AtomicUsize>,
    drain: Arc<Mutex<CancellationToken>>,
}

impl Server {
    async fn start(tls: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connect, connects) = mpsc::unbounded_channel();
        let (end, ended) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let drain = Arc::new(Mutex::new(CancellationToken::new()));
        let (count, draining) = (connections.clone(), drain.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let drain = draining.lock().unwrap().clone();
                let (tls, connect, end) = (tls.clone(), connect.clone(), end.clone());
                tokio::spawn(async move {
                    let on_connect = |arrived| {
                        let _ = connect.send(arrived);
                        (Handle::current(), std::future::ready(()))
                    };
                    let _ = end
                        .send(serve(stream, tls, (), 1, peer_principal, drain, on_connect).await);
                });
            }
        });
        Self { address, connects, ended, connections, drain }
    }

    async fn accept(&mut self) -> HboneStream {
        self.connects.recv().await.unwrap().accept().unwrap()
    }

    /// Lets every client in and sends back what it sends.
    fn echo(mut self) -> EchoServer {
        let (address, connections) = (self.address, self.connections.clone());
        let drain = self.drain.clone();
        tokio::spawn(async move {
            while let Some(connect) = self.connects.recv().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(connect.accept().unwrap());
                    tokio::io::copy(&mut read, &mut write).await?;
                    write.shutdown().await
                });
            }
        });
        EchoServer { address, connections, drain }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Asks the connections that are open to take no more streams.
    fn drain(&self) {
        std::mem::take(&mut *self.drain.lock().unwrap()).cancel();
    }
}

struct EchoServer {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    drain: Arc<Mutex<CancellationToken>>,
}

fn made(tls: Arc<ClientConfig>) -> Made {
    Made { tls, generation: 0 }
}

fn key(address: SocketAddr) -> PoolKey {
    PoolKey { source: principal("frontend"), peer: principal("order"), address }
}

fn connect_request() -> ConnectRequest {
    ConnectRequest { authority: app(), headers: HeaderMap::new() }
}

async fn open(
    pool: &HbonePool,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> Result<HboneStream, TunnelError> {
    pool.open(key(address), connect_request(), || TcpStream::connect(address), made(tls)).await
}

/// A pool, a server, and the means to open streams between them.
struct Bench {
    mesh: Mesh,
    pool: HbonePool,
    server: Server,
}

impl Bench {
    async fn new() -> Self {
        Self::with(PoolOptions::default()).await
    }

    async fn with(options: PoolOptions) -> Self {
        let mesh = Mesh::new();
        let server = Server::start(mesh.server("order").await).await;
        Self { mesh, pool: HbonePool::new(options), server }
    }

    /// Both ends of a new stream, the client's first.
    async fn stream(&mut self) -> (HboneStream, HboneStream) {
        let tls = self.mesh.client().await;
        self.stream_with(tls).await
    }

    async fn stream_with(&mut self, tls: Arc<ClientConfig>) -> (HboneStream, HboneStream) {
        self.stream_of(made(tls)).await
    }

    async fn stream_of(&mut self, made: Made) -> (HboneStream, HboneStream) {
        let address = self.server.address;
        let dial = || TcpStream::connect(address);
        let opened = self.pool.open(key(address), connect_request(), dial, made);
        let (opened, accepted) = tokio::join!(opened, self.server.accept());
        (opened.unwrap(), accepted)
    }
}

/// An HTTP/2 client with a good certificate and no manners.
async fn raw(mesh: &Mesh, address: SocketAddr) -> SendRequest<Bytes> {
    let stream = tls_only(mesh, address).await;
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

async fn tls_only(mesh: &Mesh, address: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
    let connector = TlsConnector::from(mesh.client().await);
    let stream = TcpStream::connect(address).await.unwrap();
    connector.connect(address.ip().into(), stream).await.unwrap()
}

fn request(method: Method, uri: &str) -> Request<()> {
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

async fn exchange(from: &mut HboneStream, to: &mut HboneStream, text: &[u8]) {
    from.write_all(text).await.unwrap();
    let mut heard = vec![0; text.len()];
    to.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, text);
}

async fn ends(stream: &mut HboneStream) {
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
}

async fn is_reset(stream: &mut HboneStream) {
    let read = stream.read(&mut [0; 16]).await.unwrap_err();
    assert_eq!(read.kind(), io::ErrorKind::ConnectionReset, "{read}");
    let written = stream.write_all(b"too late").await.unwrap_err();
    assert_eq!(written.kind(), io::ErrorKind::ConnectionReset, "{written}");
}
