//! Tunnels over real TLS and TCP on loopback.

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
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use super::{
    Connect, ConnectRequest, HbonePool, HboneStream, PoolKey, PoolOptions, TunnelError,
    limits::{CONNECTS_IN_WORK, STREAM_WINDOW, STREAMS},
    serve,
};
use crate::{
    identity::{IdentityError, IdentityStore, SelfSignedCa, peer_principal},
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

fn store(dir: &TempDir) -> Arc<IdentityStore> {
    let lifetime = Duration::from_secs(3600);
    let ca = SelfSignedCa::open(dir.path(), TrustDomain::default(), lifetime).unwrap();
    IdentityStore::new(Arc::new(ca), TrustDomain::default())
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
                        std::future::ready(())
                    };
                    let _ = end.send(serve(stream, tls, peer_principal, drain, on_connect).await);
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
    pool.open(key(address), connect_request(), || TcpStream::connect(address), tls).await
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
        let opened = open(&self.pool, self.server.address, tls);
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

#[tokio::test]
async fn the_server_learns_who_connects_where_and_with_which_headers() {
    let mut bench = Bench::new().await;
    let tls = bench.mesh.client().await;
    let mut connect = connect_request();
    connect.headers.insert("baggage", "k=v".parse().unwrap());
    let address = bench.server.address;
    let opened = bench.pool.open(key(address), connect, || TcpStream::connect(address), tls);
    let arrived = async {
        let connect = bench.server.connects.recv().await.unwrap();
        assert_eq!(connect.authority, app());
        assert_eq!(connect.peer, principal("frontend"));
        assert_eq!(connect.headers["baggage"], "k=v");
        connect.accept().unwrap()
    };
    let (opened, mut accepted) = tokio::join!(opened, arrived);
    exchange(&mut opened.unwrap(), &mut accepted, b"hello").await;
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let mut bench = Bench::new().await;
    let (mut client, mut server) = bench.stream().await;
    client.shutdown().await.unwrap();
    ends(&mut server).await;
    exchange(&mut server, &mut client, b"still talking").await;
    assert_eq!(
        client.write(b"x").await.unwrap_err().kind(),
        io::ErrorKind::BrokenPipe,
        "written after the end"
    );
    server.shutdown().await.unwrap();
    ends(&mut client).await;

    let (mut client, mut server) = bench.stream().await;
    server.shutdown().await.unwrap();
    ends(&mut client).await;
    exchange(&mut client, &mut server, b"still talking").await;
    client.shutdown().await.unwrap();
    ends(&mut server).await;
}

#[tokio::test]
async fn an_aborted_or_dropped_stream_is_a_reset_at_the_other_end() {
    let mut bench = Bench::new().await;
    let (client, mut server) = bench.stream().await;
    client.abort();
    is_reset(&mut server).await;
    let (mut client, server) = bench.stream().await;
    server.abort();
    is_reset(&mut client).await;
    let (client, mut server) = bench.stream().await;
    drop(client);
    is_reset(&mut server).await;
    let (mut client, server) = bench.stream().await;
    drop(server);
    is_reset(&mut client).await;
    // One stream's end is no other's.
    let (mut client, mut server) = bench.stream().await;
    exchange(&mut client, &mut server, b"hello").await;
    assert_eq!(bench.server.connections(), 1);
}

#[tokio::test]
async fn a_reader_that_has_less_room_than_arrived_loses_nothing() {
    let mut bench = Bench::new().await;
    let (mut client, mut server) = bench.stream().await;
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    for _ in 0..5 {
        heard.push(server.read_u8().await.unwrap());
    }
    assert_eq!(heard, b"hello");
    ends(&mut server).await;
}

#[tokio::test]
async fn streams_of_a_connection_that_breaks_are_reset() {
    let mut bench = Bench::new().await;
    let (mut client, server) = bench.stream().await;
    let Bench { pool, mesh, .. } = bench;
    // A connection whose owner is gone at once, as when an agent is killed.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(mesh.server("order").await);
    let killed = async {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(stream).await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let _send = respond.send_response(Response::new(()), false).unwrap();
        poll_fn(|cx| Poll::Ready(connection.poll_closed(cx).is_ready())).await;
    };
    let opened = open(&pool, address, mesh.client().await);
    let (opened, ()) = tokio::join!(opened, killed);
    is_reset(&mut opened.unwrap()).await;
    // The other connection is another matter.
    server.abort();
    is_reset(&mut client).await;
}

#[tokio::test]
async fn a_server_that_is_another_workload_gets_no_stream() {
    let mesh = Mesh::new();
    let server = Server::start(mesh.server("user").await).await;
    let pool = HbonePool::new(PoolOptions::default());
    let error = open(&pool, server.address, mesh.client().await).await.unwrap_err();
    assert!(
        matches!(error, TunnelError::Tls { source: IdentityError::WrongPeer { .. } }),
        "{error}"
    );
}

#[tokio::test]
async fn a_client_of_another_ca_is_told_so() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    // The server trusts the other CA, and is trusted by the client's.
    let issued = {
        use crate::identity::CertificateSource;
        let ca = |mesh: &Mesh| {
            let lifetime = Duration::from_secs(3600);
            SelfSignedCa::open(mesh.dir.path(), TrustDomain::default(), lifetime).unwrap()
        };
        let mut issued = ca(&mesh).issue(&principal("order")).await.unwrap();
        issued.roots = ca(&other).issue(&principal("order")).await.unwrap().roots;
        issued
    };
    struct Once(Mutex<Option<crate::identity::Certificate>>);
    impl crate::identity::CertificateSource for Once {
        fn issue<'a>(
            &'a self,
            _: &'a Principal,
        ) -> crate::identity::BoxFuture<'a, Result<crate::identity::Certificate, IdentityError>>
        {
            let issued = self.0.lock().unwrap().take();
            Box::pin(async { issued.ok_or(IdentityError::NoCertificate) })
        }
    }
    let source = Once(Mutex::new(Some(issued)));
    let store = IdentityStore::new(Arc::new(source), TrustDomain::default());
    let tls = store.server_config(&principal("order")).await.unwrap();
    let mut server = Server::start(tls).await;
    let pool = HbonePool::new(PoolOptions::default());
    // Again and again: the server's alert must not be overtaken by its closing the socket.
    for _ in 0..20 {
        let error = open(&pool, server.address, mesh.client().await).await.unwrap_err();
        assert!(
            matches!(&error, TunnelError::Tls { source: IdentityError::Tls(why) }
                if why.contains("UnknownCA")),
            "{error}"
        );
        let ended = server.ended.recv().await.unwrap().unwrap_err();
        assert!(
            matches!(ended, TunnelError::Tls { source: IdentityError::UnknownIssuer }),
            "{ended}"
        );
    }
}

#[tokio::test]
async fn a_refused_connect_carries_its_status() {
    let mut bench = Bench::new().await;
    let opened = open(&bench.pool, bench.server.address, bench.mesh.client().await);
    let refused = async {
        let connect = bench.server.connects.recv().await.unwrap();
        connect.reject(StatusCode::SERVICE_UNAVAILABLE);
    };
    let (opened, ()) = tokio::join!(opened, refused);
    assert!(
        matches!(opened, Err(TunnelError::Refused { status: StatusCode::SERVICE_UNAVAILABLE })),
        "{opened:?}"
    );
    // Nothing is wrong with the connection.
    bench.stream().await;
    assert_eq!(bench.server.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_once_share_ten_connections() {
    let mesh = Mesh::new();
    let server = Server::start(mesh.server("order").await).await.echo();
    let pool = Arc::new(HbonePool::new(PoolOptions::default()));
    let mut clients = JoinSet::new();
    let together = Arc::new(tokio::sync::Barrier::new(1000));
    for number in 0..1000_u32 {
        let (pool, tls, address) = (pool.clone(), mesh.client().await, server.address);
        let together = together.clone();
        clients.spawn(async move {
            let mut stream = open(&pool, address, tls).await.unwrap();
            // All are open before the first one ends.
            together.wait().await;
            stream.write_u32(number).await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read_u32().await.unwrap(), number);
            ends(&mut stream).await;
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 1000 / STREAMS as usize);
}

#[tokio::test]
async fn a_dial_that_fails_fails_everyone_who_waited_for_it() {
    let mesh = Mesh::new();
    let pool = HbonePool::new(PoolOptions::default());
    let dials = AtomicUsize::new(0);
    let dial = || async {
        dials.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        Err::<TcpStream, _>(io::ErrorKind::ConnectionRefused.into())
    };
    let address = app();
    let tls = mesh.client().await;
    let opens = (0..50).map(|_| pool.open(key(address), connect_request(), dial, tls.clone()));
    for opened in futures_util::future::join_all(opens).await {
        assert!(matches!(opened, Err(TunnelError::Dial { .. })), "{opened:?}");
    }
    assert_eq!(dials.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn when_the_one_who_dials_gives_up_another_one_dials() {
    let mut bench = Bench::new().await;
    let tls = bench.mesh.client().await;
    let pool = Arc::new(bench.pool);
    let address = bench.server.address;
    let (dialling, dialled) = tokio::sync::oneshot::channel();
    let dialling = Mutex::new(Some(dialling));
    let first = {
        let (pool, tls) = (pool.clone(), tls.clone());
        tokio::spawn(async move {
            let dial = || {
                dialling.lock().unwrap().take().unwrap().send(()).unwrap();
                pending()
            };
            pool.open(key(address), connect_request(), dial, tls).await
        })
    };
    dialled.await.unwrap();
    let second = tokio::spawn(async move { open(&pool, address, tls).await });
    tokio::task::yield_now().await;
    assert_eq!(bench.server.connections(), 0, "the second dials beside the first");
    first.abort();
    let mut accepted = bench.server.accept().await;
    exchange(&mut second.await.unwrap().unwrap(), &mut accepted, b"hello").await;
}

/// Endless bytes of which each place tells itself from its neighbours.
struct Pattern {
    bytes: Bytes,
    place: usize,
}

impl Pattern {
    const CYCLE: usize = 251;
    const LONGEST: usize = 1 << 20;

    fn new() -> Self {
        let bytes = (0..Self::LONGEST + Self::CYCLE).map(|place| (place % Self::CYCLE) as u8);
        Self { bytes: bytes.collect(), place: 0 }
    }

    fn next(&mut self, length: usize) -> Bytes {
        let from = self.place % Self::CYCLE;
        self.place += length;
        self.bytes.slice(from..from + length)
    }
}

async fn send_pattern(stream: &Mutex<HboneStream>, total: usize) {
    let mut pattern = Pattern::new();
    while pattern.place < total {
        let mut part = pattern.next((64 << 10).min(total - pattern.place));
        while !part.is_empty() {
            let sent = poll_fn(|cx| stream.lock().unwrap().poll_write_bytes(cx, &mut part)).await;
            assert!(sent.unwrap() > 0);
        }
    }
    poll_fn(|cx| Pin::new(&mut *stream.lock().unwrap()).poll_shutdown(cx)).await.unwrap();
}

async fn expect_pattern(stream: &Mutex<HboneStream>, total: usize) {
    let mut pattern = Pattern::new();
    loop {
        let part = poll_fn(|cx| stream.lock().unwrap().poll_read_bytes(cx)).await.unwrap();
        if part.is_empty() {
            break;
        }
        let place = pattern.place;
        assert!(part == pattern.next(part.len()), "bytes differ after {place}");
    }
    assert_eq!(pattern.place, total);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_data_both_ways_at_once_arrives_as_it_was_sent() {
    const TOTAL: usize = 64 << 20;
    let mut bench = Bench::new().await;
    let (client, server) = bench.stream().await;
    let (client, server) = (Mutex::new(client), Mutex::new(server));
    tokio::join!(
        send_pattern(&client, TOTAL),
        send_pattern(&server, TOTAL),
        expect_pattern(&client, TOTAL),
        expect_pattern(&server, TOTAL),
    );
}

#[tokio::test]
async fn readers_that_stand_still_do_not_stall_another_stream() {
    let mut bench = Bench::new().await;
    let mut stalled = Vec::new();
    for _ in 1..STREAMS {
        let (mut client, server) = bench.stream().await;
        let mut window = Bytes::from(vec![0; STREAM_WINDOW as usize]);
        while !window.is_empty() {
            poll_fn(|cx| client.poll_write_bytes(cx, &mut window)).await.unwrap();
        }
        let mut more = Bytes::from_static(b"more");
        let full = poll_fn(|cx| Poll::Ready(client.poll_write_bytes(cx, &mut more).is_pending()));
        assert!(full.await, "the window takes more than it should");
        stalled.push((client, server));
    }
    let (mut client, mut server) = bench.stream().await;
    let data = vec![7; 4 << 20];
    let mut heard = vec![0; data.len()];
    let (sent, received) = tokio::join!(client.write_all(&data), server.read_exact(&mut heard));
    sent.unwrap();
    received.unwrap();
    assert_eq!(bench.server.connections(), 1);
    // A stalled stream goes on where it was when its reader wakes up.
    let (client, server) = &mut stalled[0];
    let mut window = vec![0; STREAM_WINDOW as usize];
    server.read_exact(&mut window).await.unwrap();
    exchange(client, server, b"hello").await;
}

#[tokio::test]
async fn a_draining_server_keeps_its_streams_and_gets_no_more() {
    let mut bench = Bench::new().await;
    let (mut client, mut server) = bench.stream().await;
    bench.server.drain();
    let (mut later, mut later_server) = bench.stream().await;
    // Whether the client knew of the drain or not, the stream is there.
    exchange(&mut later, &mut later_server, b"hello").await;
    exchange(&mut client, &mut server, b"still here").await;
    assert!(bench.server.ended.is_empty());
    for stream in [&mut client, &mut server] {
        stream.shutdown().await.unwrap();
    }
    ends(&mut client).await;
    ends(&mut server).await;
    drop((client, server, later, later_server));
    bench.server.ended.recv().await.unwrap().unwrap();
    bench.stream().await;
    assert_eq!(bench.server.connections(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stream_is_lost_to_connections_that_drain() {
    let mesh = Mesh::new();
    let server = Server::start(mesh.server("order").await).await.echo();
    let pool = Arc::new(HbonePool::new(PoolOptions::default()));
    let mut clients = JoinSet::new();
    for number in 0..400_u32 {
        let (pool, tls, address) = (pool.clone(), mesh.client().await, server.address);
        clients.spawn(async move {
            let mut stream = open(&pool, address, tls).await.unwrap();
            stream.write_u32(number).await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read_u32().await.unwrap(), number);
        });
        if number % 20 == 0 {
            std::mem::take(&mut *server.drain.lock().unwrap()).cancel();
            tokio::task::yield_now().await;
        }
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

#[tokio::test]
async fn a_renewed_certificate_takes_a_new_connection_and_leaves_the_old_to_its_streams() {
    let mut bench = Bench::new().await;
    let (mut old_client, mut old_server) = bench.stream().await;
    let renewed = bench.mesh.renewed().await;
    let (mut client, mut server) = bench.stream_with(renewed.clone()).await;
    assert_eq!(bench.server.connections(), 2);
    exchange(&mut old_client, &mut old_server, b"old").await;
    exchange(&mut client, &mut server, b"new").await;
    assert!(bench.server.ended.is_empty());
    drop((old_client, old_server));
    bench.server.ended.recv().await.unwrap().unwrap();
    exchange(&mut client, &mut server, b"new").await;
    bench.stream_with(renewed).await;
    assert_eq!(bench.server.connections(), 2);
}

#[tokio::test]
async fn anything_but_a_connect_to_an_address_is_a_bad_request() {
    let Bench { mesh, mut server, .. } = Bench::new().await;
    let mut client = raw(&mesh, server.address).await;
    for (method, uri) in [
        (Method::GET, "https://10.0.0.7:8080/"),
        (Method::POST, "https://10.0.0.7:8080/"),
        (Method::CONNECT, "order.shop:8080"),
        (Method::CONNECT, "10.0.0.7"),
        (Method::CONNECT, "user@10.0.0.7:8080"),
    ] {
        let (response, _send) = client.send_request(request(method.clone(), uri), false).unwrap();
        let status = response.await.unwrap().status();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {uri}");
    }
    assert!(server.connects.try_recv().is_err());
    let (_response, _send) =
        client.send_request(request(Method::CONNECT, "[fd00::7]:8080"), false).unwrap();
    let connect = server.connects.recv().await.unwrap();
    assert_eq!(connect.authority, "[fd00::7]:8080".parse().unwrap());
}

#[tokio::test]
async fn bytes_sent_before_the_answer_wait_for_it() {
    let Bench { mesh, mut server, .. } = Bench::new().await;
    let mut client = raw(&mesh, server.address).await;
    let mut eager = || {
        let connect = request(Method::CONNECT, "10.0.0.7:8080");
        let (response, mut send) = client.send_request(connect, false).unwrap();
        send.send_data(Bytes::from_static(b"early"), false).unwrap();
        (response, send)
    };
    let (response, _send) = eager();
    server.connects.recv().await.unwrap().reject(StatusCode::FORBIDDEN);
    assert_eq!(response.await.unwrap().status(), StatusCode::FORBIDDEN);

    let (response, _send) = eager();
    let connect = server.connects.recv().await.unwrap();
    let mut stream = connect.accept().unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"early");
}

#[tokio::test]
async fn a_client_that_opens_and_resets_in_a_loop_meets_a_bound() {
    let mesh = Mesh::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = mesh.server("order").await;
    let (connect, mut connects) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        // Work that outlives the stream it is for, such as a dial to a slow application.
        let on_connect = |arrived: Connect| {
            connect.send(()).unwrap();
            async { drop((arrived, pending::<()>().await)) }
        };
        serve(stream, tls, peer_principal, CancellationToken::new(), on_connect).await
    });
    let mut client = raw(&mesh, address).await;
    for _ in 0..CONNECTS_IN_WORK {
        client = client.ready().await.unwrap();
        let connect = request(Method::CONNECT, "10.0.0.7:8080");
        let (_response, mut send) = client.send_request(connect, false).unwrap();
        connects.recv().await.unwrap();
        send.send_reset(Reason::CANCEL);
    }
    client = client.ready().await.unwrap();
    let connect = request(Method::CONNECT, "10.0.0.7:8080");
    let (response, _send) = client.send_request(connect, false).unwrap();
    let error = response.await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM), "{error}");
}

#[tokio::test]
async fn headers_beyond_the_cap_never_reach_the_handler() {
    let Bench { mesh, mut server, .. } = Bench::new().await;
    let mut client = raw(&mesh, server.address).await;
    let mut connect = request(Method::CONNECT, "10.0.0.7:8080");
    for number in 0..20 {
        let name: http::HeaderName = format!("x-{number}").parse().unwrap();
        connect.headers_mut().insert(name, "v".repeat(4000).parse().unwrap());
    }
    let (response, _send) = client.send_request(connect, false).unwrap();
    let refused = match response.await {
        Ok(response) => response.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Err(_) => true,
    };
    assert!(refused);
    assert!(server.connects.try_recv().is_err());
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_replaced_when_needed() {
    let options = PoolOptions { idle_timeout: Duration::from_secs(1), ..Default::default() };
    let mut bench = Bench::with(options).await;
    drop(bench.stream().await);
    tokio::time::pause();
    bench.server.ended.recv().await.unwrap().unwrap();
    tokio::time::resume();
    let (mut client, mut server) = bench.stream().await;
    exchange(&mut client, &mut server, b"hello").await;
    assert_eq!(bench.server.connections(), 2);
}

#[tokio::test]
async fn dropping_the_pool_closes_connections_when_their_streams_end() {
    let mut bench = Bench::new().await;
    let (mut client, mut server) = bench.stream().await;
    drop(bench.pool);
    exchange(&mut client, &mut server, b"hello").await;
    assert!(bench.server.ended.is_empty());
    drop((client, server));
    bench.server.ended.recv().await.unwrap().unwrap();
}

/// Where a step that never ends is given up.
async fn times_out<T: std::fmt::Debug>(
    step: &str,
    work: impl Future<Output = Result<T, TunnelError>>,
) {
    let error = work.await.unwrap_err();
    assert!(matches!(error, TunnelError::Timeout { step: at, .. } if at == step), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_dial_without_an_answer_is_given_up() {
    let mesh = Mesh::new();
    let pool = HbonePool::new(PoolOptions::default());
    let dial = pending::<io::Result<TcpStream>>;
    let tls = mesh.client().await;
    times_out("connecting", pool.open(key(app()), connect_request(), dial, tls)).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_given_up_by_both_sides() {
    let mesh = Mesh::new();
    let pool = HbonePool::new(PoolOptions::default());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    times_out("the TLS handshake", open(&pool, address, mesh.client().await)).await;

    let (stream, _) = listener.accept().await.unwrap();
    drop(stream);
    let _silent = TcpStream::connect(address).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let tls = mesh.server("order").await;
    let on_connect = |_| std::future::ready(());
    let served = serve(stream, tls, peer_principal, CancellationToken::new(), on_connect);
    times_out("the TLS handshake", served).await;
}

#[tokio::test]
async fn a_client_without_a_preface_is_given_up() {
    let Bench { mesh, mut server, .. } = Bench::new().await;
    let _silent = tls_only(&mesh, server.address).await;
    tokio::time::pause();
    let ended = server.ended.recv().await.unwrap();
    times_out("the HTTP/2 preface", std::future::ready(ended)).await;
}

#[tokio::test]
async fn a_connect_without_an_answer_is_given_up() {
    let mut bench = Bench::new().await;
    let opened = open(&bench.pool, bench.server.address, bench.mesh.client().await);
    let kept = async {
        let connect = bench.server.connects.recv().await.unwrap();
        tokio::time::pause();
        connect
    };
    let (opened, _connect) = tokio::join!(opened, kept);
    times_out("the answer to CONNECT", std::future::ready(opened)).await;
}

#[tokio::test]
async fn a_peer_that_is_gone_without_a_word_resets_its_streams_within_half_a_minute() {
    let mesh = Mesh::new();
    let pool = HbonePool::new(PoolOptions::default());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(mesh.server("order").await);
    let frozen = async {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(stream).await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let send = respond.send_response(Response::new(()), false).unwrap();
        let flush = poll_fn(|cx| Poll::Ready(connection.poll_closed(cx).is_ready()));
        assert!(!flush.await);
        (connection, send)
    };
    let opened = open(&pool, address, mesh.client().await);
    let (opened, _frozen) = tokio::join!(opened, frozen);
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    is_reset(&mut opened.unwrap()).await;
    assert!(began.elapsed() <= Duration::from_secs(30), "{:?}", began.elapsed());
}
