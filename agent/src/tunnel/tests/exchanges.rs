//! HTTP through two agents and the tunnel between them.

use std::{fmt, future::Future, net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Duration, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Mesh, Server, connect_request, key, made};
use crate::{
    http::{Answer, AnyRequest, AnyResponse, Ended, Handler, Route, Stream, Watch, http1},
    limits::Budget,
    tunnel::{HbonePool, HboneStream, PoolOptions},
};

impl Stream for HboneStream {
    fn abort(self) {
        HboneStream::abort(self);
    }
}

/// How an agent reaches the next one.
trait Next: Clone + Send + Sync + 'static {
    type Stream: Stream;

    fn connect(&self) -> impl Future<Output = Self::Stream> + Send;
}

/// The client's agent: by a tunnel.
impl Next for Arc<Near> {
    type Stream = HboneStream;

    async fn connect(&self) -> HboneStream {
        let Near { pool, address, tls } = &**self;
        let dial = || TcpStream::connect(*address);
        pool.open(key(*address), connect_request(), dial, made(tls.clone())).await.unwrap()
    }
}

struct Near {
    pool: HbonePool,
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
}

/// The server's agent: its application is at this address.
impl Next for SocketAddr {
    type Stream = TcpStream;

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(*self).await.unwrap()
    }
}

/// An agent: sends all requests on.
#[derive(Clone)]
struct Via<N>(N);

impl<N: Next> Handler for Via<N> {
    type Route = Self;
    async fn route(&self, request: &mut (impl AnyRequest + Send)) -> Result<Self, Answer> {
        request.add("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        Ok(self.clone())
    }
    fn malformed(&self, _: u16, why: &dyn fmt::Display) {
        panic!("{why}");
    }
}

impl<N> Watch for Via<N> {
    fn response(&mut self, _: &mut impl AnyResponse) {}
    fn sent(&mut self, _: usize) {}
    fn received(&mut self, _: usize) {}
}

impl<N: Next> Route for Via<N> {
    type Stream = N::Stream;
    type Key = ();
    fn key(&self) {}
    async fn connect(&mut self) -> Result<N::Stream, Answer> {
        Ok(self.0.connect().await)
    }
    fn unanswered(&mut self, ended: &Ended) -> Answer {
        panic!("{ended}");
    }
    fn finish(self, _: &Ended) {}
}

/// Answers every request on one connection.
async fn answer_all(mut stream: TcpStream) {
    let (mut heard, mut piece) = (Vec::new(), [0; 1024]);
    while let Ok(read @ 1..) = stream.read(&mut piece).await {
        heard.extend_from_slice(&piece[..read]);
        if heard.ends_with(b"\r\n\r\n") {
            heard.clear();
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
        }
    }
}

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const CLIENTS: usize = 32;
const REQUESTS: usize = 200;

/// Runs `carry` for each connection to a new listener, whose address is returned.
async fn listen<F: Future<Output = ()> + Send + 'static>(
    tasks: &mut JoinSet<()>,
    carry: impl Fn(TcpStream) -> F + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(carry(stream));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_of_many_clients_at_once_are_all_answered() {
    let buffered = Budget::new(128 << 20).share();
    let mesh = Mesh::new();
    let mut tasks = JoinSet::new();
    let app = listen(&mut tasks, answer_all).await;
    let mut server = Server::start(mesh.server("order").await).await;
    let (address, counted) = (server.address, buffered.clone());
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, buffered) = (server.accept().await, counted.clone());
            connections.spawn(async move {
                let never = CancellationToken::new();
                http1(stream, BytesMut::new(), None, &Via(app), &buffered, &never).await;
            });
        }
    });
    let pool = HbonePool::new(PoolOptions::default());
    let via = Via(Arc::new(Near { pool, address, tls: mesh.client().await }));
    let near = listen(&mut tasks, move |stream| {
        let (via, buffered) = (via.clone(), buffered.clone());
        async move {
            let never = CancellationToken::new();
            http1(stream, BytesMut::new(), None, &via, &buffered, &never).await;
        }
    })
    .await;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(async move {
            let mut stream = TcpStream::connect(near).await.unwrap();
            for _ in 0..REQUESTS {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
                let mut heard = [0; ANSWER.len()];
                let read = stream.read_exact(&mut heard);
                timeout(Duration::from_secs(60), read).await.expect("an answer").unwrap();
                assert_eq!(heard, ANSWER);
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}
