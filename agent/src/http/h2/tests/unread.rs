//! Bodies that nobody reads.

use std::task::{Context, Waker};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::Response;

use super::{super::limits::STREAM_WINDOW, Bench, get, post, read, send, status};

/// More than any of the windows that may lie between two ends.
const MUCH: usize = 1 << 20;
/// So many readers stand still.
const UNREAD: usize = 60;

#[tokio::test]
async fn a_response_moves_beside_many_that_nobody_reads() {
    let mut bench = Bench::new();
    let mut client = wide(&bench).await;
    let mut still: Vec<(SendStream<Bytes>, RecvStream)> = Vec::new();
    let mut server = None;
    for _ in 0..UNREAD {
        let response = get(&mut client, "/");
        let server = match &mut server {
            Some(server) => server,
            None => server.insert(bench.server().await),
        };
        let (_, mut respond) = server.request().await;
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        fill(&mut body).await;
        still.push((body, response.await.unwrap().into_body()));
    }
    let mut server = server.unwrap();
    let response = get(&mut client, "/");
    let (_, mut respond) = server.request().await;
    let mut body = respond.send_response(Response::new(()), false).unwrap();
    let mut heard = response.await.unwrap().into_body();
    let (heard, ()) = tokio::join!(read(&mut heard), send(&mut body, vec![0; MUCH].into(), true));
    assert_eq!(heard.unwrap().len(), MUCH);
    assert!(bench.budget.used() >= (UNREAD as u64) * u64::from(STREAM_WINDOW));
    drop((still, client));
    bench.nothing_held().await;
}

#[tokio::test]
async fn a_request_moves_beside_many_that_nobody_reads() {
    let mut bench = Bench::new();
    let mut client = wide(&bench).await;
    let mut builder = h2::server::Builder::new();
    // So that what stands still here is held by the agent.
    builder.initial_connection_window_size(64 << 20);
    let (mut still, mut server) = (Vec::new(), None);
    for _ in 0..UNREAD {
        let (response, mut body) = post(&mut client, "/");
        let server = match &mut server {
            Some(server) => server,
            None => server.insert(bench.server_of(&builder).await),
        };
        let asked = server.request().await;
        fill(&mut body).await;
        still.push((response, body, asked));
    }
    let mut server = server.unwrap();
    let (response, mut body) = post(&mut client, "/");
    let (request, mut respond) = server.request().await;
    let mut heard = request.into_body();
    let (heard, ()) = tokio::join!(read(&mut heard), send(&mut body, vec![0; MUCH].into(), true));
    assert_eq!(heard.unwrap().len(), MUCH);
    super::ok(&mut respond);
    assert_eq!(status(response).await, 200);
    drop((still, client));
    bench.nothing_held().await;
}

#[tokio::test]
async fn whoever_lets_more_wait_than_may_is_ended_and_nobody_else() {
    let mut bench = Bench::of(1 << 20);
    let mut client = wide(&bench).await;
    let (mut still, mut server) = (Vec::new(), None);
    loop {
        let response = get(&mut client, "/");
        let server = match &mut server {
            Some(server) => server,
            None => server.insert(bench.server().await),
        };
        let (_, mut respond) = server.request().await;
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        fill(&mut body).await;
        let log = bench.forward.log.lock().unwrap().clone();
        if let [ended] = &log[..] {
            assert_eq!(ended, "/ 200: too much waits for readers");
            break;
        }
        still.push((body, response.await.unwrap().into_body()));
    }
    let reset = |(body, _): &mut (SendStream<Bytes>, _)| {
        let mut now = Context::from_waker(Waker::noop());
        body.poll_reset(&mut now).is_ready()
    };
    assert!(still.len() > 2 && !still.iter_mut().any(reset));
    drop((still, client));
    bench.nothing_held().await;
}

/// A client whose own connection window stops nobody.
async fn wide(bench: &Bench) -> h2::client::SendRequest<Bytes> {
    let (sender, connection) = h2::client::Builder::new()
        .initial_connection_window_size(64 << 20)
        .handshake(bench.connection())
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends until nothing is taken any more, as far as can be told.
async fn fill(body: &mut SendStream<Bytes>) {
    let mut idle = 0;
    while idle < 50 {
        body.reserve_capacity(16 << 10);
        match body.capacity() {
            0 => {
                idle += 1;
                tokio::task::yield_now().await;
            }
            room => {
                idle = 0;
                if body.send_data(vec![0; room].into(), false).is_err() {
                    return;
                }
            }
        }
    }
    body.reserve_capacity(0);
}
