//! The server's side of a connection: requests in, responses out, upgrades relayed.

use std::{
    convert::Infallible,
    future::Future,
    mem,
    pin::pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    Body, Carried, End, Stream, Tap, Upgraded,
    farewell::{Ending, Patient},
    pool::{H2_STREAM_WINDOW, MOST_HEADER_BYTES, connection_window, http1_inflow},
    prompt::{Asked, InWork, Prompt},
    requests::{Open, Requests},
    upgraded::Followed,
};
use crate::limits::{Inflow, Share};

/// How long a connection may idle, before its first request or between two: as long as Envoy lets
/// it, for a client whose pool keeps connections longer would meet closed ones. hyper counts the
/// time of the next head in; `Prompt` has a limit for that alone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Requests one client may have open on one HTTP/2 connection.
const MOST_STREAMS: u32 = 1000;

/// Answers the requests of one connection.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. Dropped when the client gives up on it.
    fn handle(&self, request: Request<Body>) -> impl Future<Output = Response<Body>> + Send;
}

/// Whether `response` turns what brought its request into a connection of two byte streams;
/// `connects` says that it was asked for with CONNECT.
pub fn becomes_streams(connects: bool, response: &Response<Body>) -> bool {
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
        Upgraded::follow(&mut response, Place(place));
        return response;
    }
    response.map(|body| body.tapped(Place(place)))
}

/// What is held until a body is through.
struct Place<P>(P);

impl<P: Send> Carried for Place<P> {}

impl<P: Send + Sync> Tap for Place<P> {
    fn data(&mut self, _bytes: usize) {}
}

/// Serves HTTP/1 or HTTP/2, whichever the client starts with, until the client is done or
/// `drain` is cancelled and the requests under way are answered. Then a client is asked to go
/// elsewhere, by `connection: close` with its next response or by GOAWAY, and loses no request.
/// What a connection was upgraded to is served to its end. What waits for readers of requests is
/// counted in `buffered`.
///
/// # Errors
/// When the connection breaks or the client's bytes are not HTTP; the client has then been
/// answered 400 where that was still possible.
pub async fn serve<S, H>(
    stream: S,
    handler: Arc<H>,
    buffered: &Arc<Share>,
    drain: &CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: Stream,
    H: Handler,
{
    let window = connection_window(buffered);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .half_close(true)
        .preserve_header_case(true)
        .auto_date_header(false)
        .max_buf_size(MOST_HEADER_BYTES as usize)
        .http2()
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(window)
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(MOST_HEADER_BYTES)
        .keep_alive_interval(Duration::from_secs(30));
    let (buffered, under) = (buffered.clone(), stream.window());
    let inflow = OnceLock::new();
    let in_work = Asked::default();
    let requests = Requests::none(in_work.clone());
    let upgrades = Upgrades::default();
    let upgraded = upgrades.clone();
    let ending = Ending::default();
    let (asked, ends) = (requests.clone(), ending.clone());
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let open = asked.open(request.version());
        let (handler, upgrades, ends) = (handler.clone(), upgrades.clone(), ends.clone());
        let inflow = inflow.get_or_init(|| match request.version() {
            Version::HTTP_2 => Inflow::new(&buffered, H2_STREAM_WINDOW, window),
            _ => http1_inflow(&buffered, under),
        });
        let inflow = inflow.clone();
        async move {
            let response = answer(&*handler, request, &inflow, &upgrades, &ends, &open).await;
            Ok::<_, Infallible>(response.map(|body| body.tapped(open)))
        }
    });
    let stream = TokioIo::new(Patient::new(Prompt::new(stream, in_work), ending.clone()));
    let mut connection = pin!(builder.serve_connection_with_upgrades(stream, service));
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
    ending: &Ending,
    open: &Open,
) -> Response<Body> {
    if let Err(reason) = safe(&request) {
        return plain(StatusCode::BAD_REQUEST, reason);
    }
    let from_client = hyper::upgrade::on(&mut request);
    let connects = request.method() == Method::CONNECT;
    let is_http1 = request.version() != Version::HTTP_2;
    let mut request = request.map(|body| Body::received(body, inflow));
    if !request.body().is_end_stream() {
        // It may come after its answer has gone.
        request = request.map(|body| body.tapped(open.in_work()));
    }
    let mut response = handler.handle(request).await;
    let upgraded = becomes_streams(connects, &response);
    if upgraded && let Some(to_server) = response.extensions_mut().remove::<OnUpgrade>() {
        let watchers = response.extensions_mut().remove::<Upgraded>().unwrap_or_default();
        let mut upgrades = upgrades.lock().unwrap_or_else(PoisonError::into_inner);
        upgrades.spawn(relay_upgraded(from_client, to_server, watchers, open.in_work()));
    }
    if is_http1 && !upgraded && ending.has_begun() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Refuses what two parsers might read in two ways.
fn safe<B>(request: &Request<B>) -> Result<(), &'static str> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if hosts > 1 {
        return Err("more than one Host header\n");
    }
    let names_host = hosts == 1 || request.uri().authority().is_some();
    if !names_host && request.version() == http::Version::HTTP_11 {
        return Err("an HTTP/1.1 request needs a Host header\n");
    }
    Ok(())
}

/// Until it ends, what the client sends is no head: `_in_work` says so.
async fn relay_upgraded(
    from_client: OnUpgrade,
    to_server: OnUpgrade,
    upgraded: Upgraded,
    _in_work: InWork,
) {
    let mut following = upgraded.into_followers();
    let broke = match tokio::try_join!(from_client, to_server) {
        Ok((client, server)) => {
            let mut client = Followed::new(TokioIo::new(client), &mut following);
            let mut server = TokioIo::new(server);
            let moved = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            moved.err().map(|_| if client.broke() { End::Client } else { End::Server })
        }
        Err(_) => Some(End::Client),
    };
    following.into_iter().for_each(|follower| follower.ended(broke));
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
