//! HTTP/2 through [`serve`] and [`Pool`] together, with a client and servers that tests play.

mod broken;
mod ending;
mod frames;
mod pooled;
mod quiet;
mod streams;
mod unread;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
    server::SendResponse,
};
use http::{Request, Response, StatusCode};
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tokio_util::sync::CancellationToken;

use super::{Pool, PoolKey, Shared, serve};
use crate::{
    http::{Answer, AnyRequest, AnyResponse, Ended, Fields, Handler, Route, Watch},
    limits::Budget,
};

/// Sends every request to one server, whose ends of the connections a test plays.
struct Forward {
    pool: Pool,
    key: PoolKey,
    connections: UnboundedSender<DuplexStream>,
    log: Log,
    /// What everybody is answered instead.
    refusal: Option<Answer>,
}

type Log = Arc<Mutex<Vec<String>>>;

impl Handler for Forward {
    type Route = Sent;

    async fn route(&self, request: &mut (impl AnyRequest + Send)) -> Result<Sent, Answer> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let path = String::from_utf8(request.target().path.to_vec()).unwrap();
        request.add("x-seen", b"1");
        Ok(Sent {
            pool: self.pool.clone(),
            key: self.key,
            connections: self.connections.clone(),
            log: self.log.clone(),
            told: path,
        })
    }

    fn malformed(&self, status: u16, why: &dyn fmt::Display) {
        self.log.lock().unwrap().push(format!("{status}: {why}"));
    }
}

struct Sent {
    pool: Pool,
    key: PoolKey,
    connections: UnboundedSender<DuplexStream>,
    log: Log,
    told: String,
}

impl Watch for Sent {
    fn interim(&mut self, head: &impl AnyResponse) {
        self.told += &format!(" {}", head.status());
    }

    fn response(&mut self, head: &mut impl AnyResponse) {
        self.told += &format!(" {}", head.status());
        head.add("x-passed", b"1");
    }

    fn sent(&mut self, _bytes: usize) {}

    fn received(&mut self, _bytes: usize) {}

    fn trailers(&mut self, trailers: &impl Fields) {
        let sum = trailers.value_of("x-sum").unwrap_or_default();
        self.told += &format!(" x-sum {}", String::from_utf8_lossy(sum));
    }
}

impl Route for Sent {
    type Stream = DuplexStream;
    type Key = ();

    fn key(&self) {}

    async fn connect(&mut self) -> Result<DuplexStream, Answer> {
        let (ours, theirs) = duplex(64 << 10);
        let nobody = || Answer::new(503, "nobody\n".into());
        self.connections.send(theirs).map_err(|_| nobody())?;
        Ok(ours)
    }

    fn unanswered(&mut self, ended: &Ended) -> Answer {
        Answer::new(502, format!("{ended}\n"))
    }

    fn finish(self, ended: &Ended) {
        self.log.lock().unwrap().push(format!("{}: {ended}", self.told));
    }
}

impl Shared for Sent {
    fn connections(&self) -> (Pool, PoolKey) {
        (self.pool.clone(), self.key)
    }
}

/// An agent between clients and servers.
struct Bench {
    forward: Arc<Forward>,
    servers: UnboundedReceiver<DuplexStream>,
    budget: Arc<Budget>,
    ending: CancellationToken,
}

impl Bench {
    fn new() -> Self {
        Self::of(128 << 20)
    }

    /// Of which so many bytes may wait.
    fn of(total: u64) -> Self {
        let (connections, servers) = unbounded_channel();
        let budget = Budget::new(total);
        let key = PoolKey::new(Ipv4Addr::LOCALHOST.into(), SocketAddr::from(([127, 0, 0, 1], 80)));
        let pool = Pool::new(&budget.share());
        let log = Log::default();
        let forward = Arc::new(Forward { pool, key, connections, log, refusal: None });
        Self { forward, servers, budget, ending: CancellationToken::new() }
    }

    fn refusing(status: u16, text: &str) -> Self {
        let mut bench = Self::new();
        let forward = Arc::get_mut(&mut bench.forward).unwrap();
        forward.refusal = Some(Answer::new(status, text.into()));
        bench
    }

    /// A client's end of a new connection.
    fn connection(&self) -> DuplexStream {
        let (client, agent) = duplex(64 << 10);
        let (forward, ending) = (self.forward.clone(), self.ending.clone());
        let buffered = self.budget.share();
        tokio::spawn(async move { serve(agent, &*forward, &buffered, &ending).await });
        client
    }

    async fn client(&self) -> SendRequest<Bytes> {
        let (sender, connection) = h2::client::handshake(self.connection()).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// The next connection to a server, which takes any number of requests.
    async fn server(&mut self) -> Server {
        self.server_of(&h2::server::Builder::new()).await
    }

    async fn server_of(&mut self, builder: &h2::server::Builder) -> Server {
        let stream = self.servers.recv().await.unwrap();
        let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
        let (accepted, requests) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(request)) = connection.accept().await {
                let _ = accepted.send(request);
            }
        });
        Server(requests)
    }

    /// What was told, once there is as much of it.
    async fn log(&self, entries: usize) -> Vec<String> {
        loop {
            let log = self.forward.log.lock().unwrap().clone();
            if log.len() >= entries {
                return log;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Waits until nothing waits.
    async fn nothing_held(&self) {
        while self.budget.used() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// A server's end of a connection: what it is asked.
struct Server(UnboundedReceiver<(Request<RecvStream>, SendResponse<Bytes>)>);

impl Server {
    async fn request(&mut self) -> (Request<RecvStream>, SendResponse<Bytes>) {
        self.0.recv().await.unwrap()
    }
}

/// Asks for `path` on `a`; the body is still to be sent.
fn post(client: &mut SendRequest<Bytes>, path: &str) -> (ResponseFuture, SendStream<Bytes>) {
    let request = Request::post(format!("http://a{path}")).body(()).unwrap();
    client.send_request(request, false).unwrap()
}

/// Asks for `path` on `a`, with nothing more to say.
fn get(client: &mut SendRequest<Bytes>, path: &str) -> ResponseFuture {
    let request = Request::get(format!("http://a{path}")).body(()).unwrap();
    client.send_request(request, true).unwrap().0
}

/// Answers with no more than a head.
fn ok(respond: &mut SendResponse<Bytes>) {
    respond.send_response(Response::new(()), true).unwrap();
}

/// All of a body, read as it comes.
async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(bytes) = body.data().await {
        let bytes = bytes?;
        body.flow_control().release_capacity(bytes.len())?;
        all.extend(bytes);
    }
    Ok(all)
}

/// Sends as much as the other end takes.
async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes, end: bool) {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
        let part = bytes.split_to(room.min(bytes.len()));
        stream.send_data(part, end && bytes.is_empty()).unwrap();
    }
}

/// The answer to a request whose body does not matter.
async fn status(response: ResponseFuture) -> StatusCode {
    response.await.unwrap().status()
}
