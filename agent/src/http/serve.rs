//! The server's side of an HTTP/2 connection: requests in, responses out, CONNECT relayed.

use std::{
    convert::Infallible,
    future::Future,
    io, mem,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use hyper::server::conn::http2;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    Body, Stream, Tap,
    farewell::{Ending, Patient},
    pool::{H2_STREAM_WINDOW, MOST_HEADER_BYTES, connection_window},
    prompt::{Asked, InWork, Prompt},
    requests::{Open, Requests},
};
use crate::limits::{Inflow, Share};

/// Requests one client may have open on one HTTP/2 connection.
const MOST_STREAMS: u32 = 1000;

/// Answers the requests of one connection.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. Dropped when the client gives up on it.
    fn handle(&self, request: Request<Body>) -> impl Future<Output = Response<Body>> + Send;
}

/// Told how much a connection carried after it was upgraded. A response that upgrades carries
/// one in its extensions for each side that wants to know.
#[derive(Clone, Default)]
pub struct Upgraded(Arc<Mutex<Vec<WhenDone>>>);

type WhenDone = Box<dyn FnOnce(&io::Result<(u64, u64)>) + Send>;

impl Upgraded {
    /// Calls `done` with the bytes sent by the client and by the server once both are through.
    pub fn when_done(
        response: &mut Response<Body>,
        done: impl FnOnce(&io::Result<(u64, u64)>) + Send + 'static,
    ) {
        let watchers: &Self = response.extensions_mut().get_or_insert_default();
        watchers.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(done));
    }
}

/// Whether `response` turns what brought its request into a connection of two byte streams;
/// `connects` says that it was asked for with CONNECT.
fn becomes_streams(connects: bool, response: &Response<Body>) -> bool {
    response.status() == StatusCode::SWITCHING_PROTOCOLS
        || connects && response.status().is_success()
}

/// Keeps `place` until the response is through, or what it upgrades to; `connects` says that it was
/// asked for with CONNECT. hyper drops the body of a response that upgrades when its head has gone.
pub fn hold(
    place: impl Send + Sync + 'static,
    connects: bool,
    mut response: Response<Body>,
) -> Response<Body> {
    if becomes_streams(connects, &response) {
        Upgraded::when_done(&mut response, move |_| drop(place));
        return response;
    }
    response.map(|body| body.tapped(Place(place)))
}

/// What is held until a body is through.
struct Place<P>(P);

impl<P: Send + Sync> Tap for Place<P> {
    fn data(&mut self, _bytes: usize) {}
}

/// Serves HTTP/2 until the client is done or `drain` is cancelled and the requests under way are
/// answered. Then a client is asked to go elsewhere, by GOAWAY, and loses no request.
/// What a connection was upgraded to is served to its end. What waits for readers of requests is
/// counted in `buffered`.
///
/// # Errors
/// When the connection breaks or the client's bytes are not HTTP/2.
pub async fn serve<S, H>(
    stream: S,
    handler: Arc<H>,
    buffered: &Arc<Share>,
    drain: &CancellationToken,
) -> Result<(), hyper::Error>
where
    S: Stream,
    H: Handler,
{
    let window = connection_window(buffered);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(window)
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(MOST_HEADER_BYTES)
        .keep_alive_interval(Duration::from_secs(30));
    let inflow = Inflow::new(buffered, H2_STREAM_WINDOW, window);
    let in_work = Asked::default();
    let requests = Requests::none(in_work.clone());
    let upgrades = Upgrades::default();
    let upgraded = upgrades.clone();
    let ending = Ending::default();
    let asked = requests.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let open = asked.open(request.version());
        let (handler, upgrades) = (handler.clone(), upgrades.clone());
        let inflow = inflow.clone();
        async move {
            let response = answer(&*handler, request, &inflow, &upgrades, &open).await;
            Ok::<_, Infallible>(response.map(|body| body.tapped(open)))
        }
    });
    let stream = TokioIo::new(Patient::new(Prompt::new(stream, in_work), ending.clone()));
    let mut connection = pin!(builder.serve_connection(stream, service));
    let drained = async {
        drain.cancelled().await;
        ending.begin();
        requests.last().await;
    };
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = drained => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // What it was upgraded to is still this client's connection.
    let mut relays = mem::take(&mut *upgraded.lock().unwrap_or_else(PoisonError::into_inner));
    while relays.join_next().await.is_some() {}
    ended
}

/// The relays of one connection's upgrades; they end with whoever serves the connection.
type Upgrades = Arc<Mutex<JoinSet<()>>>;

async fn answer(
    handler: &impl Handler,
    mut request: Request<Incoming>,
    inflow: &Arc<Inflow>,
    upgrades: &Upgrades,
    open: &Open,
) -> Response<Body> {
    if let Err(reason) = safe(&request) {
        return plain(StatusCode::BAD_REQUEST, reason);
    }
    let from_client = hyper::upgrade::on(&mut request);
    let connects = request.method() == Method::CONNECT;
    let mut request = request.map(|body| Body::received(body, inflow));
    if !request.body().is_end_stream() {
        // It may come after its answer has gone.
        request = request.map(|body| body.tapped(open.in_work()));
    }
    let mut response = handler.handle(request).await;
    if becomes_streams(connects, &response)
        && let Some(to_server) = response.extensions_mut().remove::<OnUpgrade>()
    {
        let watchers = response.extensions_mut().remove::<Upgraded>().unwrap_or_default();
        let mut upgrades = upgrades.lock().unwrap_or_else(PoisonError::into_inner);
        upgrades.spawn(relay_upgraded(from_client, to_server, watchers, open.in_work()));
    }
    response
}

/// Refuses what two parsers might read in two ways.
fn safe<B>(request: &Request<B>) -> Result<(), &'static str> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if hosts > 1 {
        return Err("more than one Host header\n");
    }
    Ok(())
}

/// Until it ends, what the client sends is no head: `_in_work` says so.
async fn relay_upgraded(
    from_client: OnUpgrade,
    to_server: OnUpgrade,
    watchers: Upgraded,
    _in_work: InWork,
) {
    let moved = async {
        let (client, server) =
            tokio::try_join!(from_client, to_server).map_err(io::Error::other)?;
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        tokio::io::copy_bidirectional(&mut client, &mut server).await
    }
    .await;
    let watchers = std::mem::take(&mut *watchers.0.lock().unwrap_or_else(PoisonError::into_inner));
    for done in watchers {
        done(&moved);
    }
}

/// A response of the agent's own, in plain text.
pub fn plain(status: StatusCode, text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
