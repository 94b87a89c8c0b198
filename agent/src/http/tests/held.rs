//! How long what is held for a request is held.

use std::{convert::Infallible, sync::Arc};

use http::{Method, Request, Response, StatusCode};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use tokio_util::sync::CancellationToken;

use super::{Body, Forward, Http2Handler, hold, new_pool, plenty, serve};

/// Holds a place for each request.
struct Holding {
    forward: Forward,
    place: Arc<()>,
}

impl Http2Handler for Holding {
    async fn handle(&self, request: Request<Body>) -> Response<Body> {
        let connects = request.method() == Method::CONNECT;
        hold(self.place.clone(), connects, self.forward.handle(request).await)
    }
}

/// Answers each CONNECT with 200, and then with what it is told.
async fn echo(server: DuplexStream) {
    let answer = service_fn(async |mut request: Request<Incoming>| {
        let client = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut heard, mut said) = split(TokioIo::new(client.await.unwrap()));
            tokio::io::copy(&mut heard, &mut said).await
        });
        Ok::<_, Infallible>(Response::new(Body::default()))
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(server), answer).await;
}

#[tokio::test]
async fn a_place_is_taken_until_a_stream_of_http_2_that_was_upgraded_ends() {
    let (connections, mut servers) = tokio::sync::mpsc::unbounded_channel();
    let forward = Forward { pool: new_pool(), connections, dialled: Arc::default() };
    let place = Arc::new(());
    let holding = Arc::new(Holding { forward, place: place.clone() });
    let none_held = Arc::strong_count(&place);
    let (client, agent) = duplex(64 << 10);
    tokio::spawn(async move { serve(agent, holding, &plenty(), &CancellationToken::new()).await });
    tokio::spawn(async move { echo(servers.recv().await.unwrap()).await });
    let (mut sender, connection) = hyper::client::conn::http2::handshake::<_, _, Body>(
        TokioExecutor::new(),
        TokioIo::new(client),
    )
    .await
    .unwrap();
    tokio::spawn(connection);

    let request = Request::connect("a:80").body(Body::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"ping").await.unwrap();
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ping");
    assert_eq!(Arc::strong_count(&place), none_held + 1);

    drop(stream);
    while Arc::strong_count(&place) > none_held {
        tokio::task::yield_now().await;
    }
}
