//! HTTP/2 requests through [`serve`] and [`Pool`] together.

mod drain;
mod held;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{DuplexStream, duplex};

use super::{
    Body, Http2Handler, Pool, PoolKey, forwardable, forwardable_request, hold, plain, serve,
};
use crate::limits::{Budget, Share};

/// More than any test lets wait.
fn plenty() -> Arc<Share> {
    Budget::new(128 << 20).share()
}

fn new_pool() -> Pool {
    Pool::new(&plenty())
}

/// Passes every request to one server, whose ends of the connections a test plays.
struct Forward {
    pool: Pool,
    connections: tokio::sync::mpsc::UnboundedSender<DuplexStream>,
    dialled: Arc<AtomicUsize>,
}

impl Http2Handler for Forward {
    async fn handle(&self, mut request: Request<Body>) -> Response<Body> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let key = PoolKey::new(Ipv4Addr::LOCALHOST.into(), server);
        forwardable_request(request.headers_mut());
        let dial = || async {
            self.dialled.fetch_add(1, Ordering::Relaxed);
            let (ours, theirs) = duplex(64 << 10);
            self.connections.send(theirs).map_err(|_| "the test is over")?;
            Ok::<_, &str>(ours)
        };
        match self.pool.send(key, request, dial).await {
            Ok(mut response) => {
                forwardable(response.headers_mut());
                response
            }
            Err(error) => plain(StatusCode::BAD_GATEWAY, error.to_string()),
        }
    }
}

/// Answers every request by itself.
struct Hello;

impl Http2Handler for Hello {
    async fn handle(&self, _request: Request<Body>) -> Response<Body> {
        plain(StatusCode::OK, "hello")
    }
}

#[tokio::test]
async fn a_request_of_another_generation_goes_by_another_connection() {
    let pool = new_pool();
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    {
        let key = PoolKey::new(Ipv4Addr::LOCALHOST.into(), server);
        let dialled = AtomicUsize::new(0);
        for (generation, connections) in [(0, 1), (0, 1), (1, 2), (1, 2)] {
            let dial = || async {
                dialled.fetch_add(1, Ordering::Relaxed);
                let (ours, theirs) = duplex(64 << 10);
                tokio::spawn(answer_all(theirs));
                Ok::<_, &str>(ours)
            };
            let request = Request::builder().uri("http://a/").header("host", "a");
            let request = request.body(Body::default()).unwrap();
            let response = pool.send(key.of_generation(generation), request, dial).await;
            let body = response.unwrap().into_body();
            http_body_util::BodyExt::collect(body).await.unwrap();
            assert_eq!(dialled.load(Ordering::Relaxed), connections);
        }
    }
}

/// A server that has nothing to say to any request.
async fn answer_all(stream: DuplexStream) {
    let nothing = hyper::service::service_fn(|_| async {
        Ok::<_, std::convert::Infallible>(Response::new(http_body_util::Empty::<Bytes>::new()))
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), nothing).await;
}

#[tokio::test(start_paused = true)]
async fn requests_that_waited_for_an_http_2_dial_that_failed_do_not_queue_up() {
    let pool = Arc::new(new_pool());
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    let key = PoolKey::new(Ipv4Addr::LOCALHOST.into(), server);
    let slow = Duration::from_secs(10);
    let began = tokio::time::Instant::now();
    let requests = (0..20).map(|_| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let dial = || async {
                tokio::time::sleep(slow).await;
                Err::<DuplexStream, _>("nobody there")
            };
            pool.send(key, Request::new(Body::default()), dial).await.is_err()
        })
    });
    for request in requests.collect::<Vec<_>>() {
        assert!(request.await.unwrap());
    }
    assert_eq!(began.elapsed(), 2 * slow);
}

#[tokio::test(start_paused = true)]
async fn an_http_2_connection_is_closed_once_nothing_was_asked_for_a_while() {
    let (pool, server) = (new_pool(), SocketAddr::from((Ipv4Addr::LOCALHOST, 80)));
    let key = PoolKey::new(Ipv4Addr::LOCALHOST.into(), server);
    let (ours, theirs) = duplex(64 << 10);
    let served = tokio::spawn(async move {
        let mut connection = h2::server::handshake(theirs).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                // As long as a connection may be idle.
                tokio::time::sleep(Duration::from_secs(50)).await;
                respond.send_response(Response::new(()), true).unwrap();
            });
        }
    });
    let request = Request::get("http://a/").version(http::Version::HTTP_2).body(Body::default());
    let response = pool.send(key, request.unwrap(), async || Ok::<_, &str>(ours)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    drop(response);
    assert!(!served.is_finished(), "closed while it was in use");
    tokio::time::timeout(Duration::from_secs(100), served).await.unwrap().unwrap();
}
