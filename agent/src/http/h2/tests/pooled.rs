//! Connections that are shared.

use std::time::Duration;

use http::Response;
use tokio::time::{Instant, timeout};

use super::{
    super::limits::SERVER_IDLE,
    Bench,
    frames::{self, HEADERS},
    get, ok, status,
};

#[tokio::test]
async fn requests_beyond_what_a_server_takes_at_once_go_by_more_connections() {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(2);
    let mut bench = Bench::new();
    let mut clients = [bench.client().await, bench.client().await];
    let mut responses = Vec::new();
    for n in 0..6 {
        responses.push(get(&mut clients[n % 2], "/"));
    }
    // All are asked before any is answered.
    let (mut servers, mut asked) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut server = bench.server_of(&builder).await;
        for _ in 0..2 {
            asked.push(server.request().await.1);
        }
        servers.push(server);
    }
    asked.iter_mut().for_each(ok);
    for response in responses {
        assert_eq!(status(response).await, 200);
    }
    // And what was made is used again.
    let response = get(&mut clients[0], "/");
    ok(&mut servers[0].request().await.1);
    assert_eq!(status(response).await, 200);
    assert!(bench.servers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_not_said_how_many_it_takes_is_asked_once_and_waited_for() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let first = get(&mut client, "/1");
    let mut server = bench.servers.recv().await.unwrap();
    let mut preface = [0; frames::PREFACE.len()];
    tokio::io::AsyncReadExt::read_exact(&mut server, &mut preface).await.unwrap();
    assert_eq!(frames::next_of(HEADERS, &mut server).await.stream, 1);
    let second = get(&mut client, "/2");
    let quiet = timeout(Duration::from_millis(500), frames::next_of(HEADERS, &mut server)).await;
    assert!(quiet.is_err(), "asked twice");
    // MAX_CONCURRENT_STREAMS = 1
    frames::write(&mut server, frames::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]).await;
    let mut other = bench.server().await;
    ok(&mut other.request().await.1);
    assert_eq!(status(second).await, 200);
    frames::write(&mut server, HEADERS, frames::ENDS, 1, frames::OK).await;
    assert_eq!(status(first).await, 200);
}

#[tokio::test]
async fn a_request_of_another_generation_goes_by_another_connection() {
    let mut bench = Bench::new();
    for (generation, dialled) in [(0, true), (0, false), (1, true), (1, false)] {
        std::sync::Arc::get_mut(&mut bench.forward).unwrap().key.generation = generation;
        let mut client = bench.client().await;
        let response = get(&mut client, "/");
        if dialled {
            let mut server = bench.server().await;
            tokio::spawn(async move {
                while let Some((_, mut respond)) = server.0.recv().await {
                    ok(&mut respond);
                }
            });
        }
        assert_eq!(status(response).await, 200);
        assert!(bench.servers.is_empty());
        // The agent's side of the connection goes with the client.
        drop(client);
        while std::sync::Arc::strong_count(&bench.forward) > 1 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn requests_that_come_at_once_share_one_connection() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let responses: Vec<_> = (0..50).map(|_| get(&mut client, "/")).collect();
    let mut server = bench.server().await;
    for _ in 0..50 {
        ok(&mut server.request().await.1);
    }
    for response in responses {
        assert_eq!(status(response).await, 200);
    }
    assert!(bench.servers.is_empty());
}

#[tokio::test]
async fn requests_that_nobody_can_be_found_for_are_all_told_so() {
    let mut bench = Bench::new();
    bench.servers.close();
    let mut client = bench.client().await;
    let responses: Vec<_> = (0..20).map(|_| get(&mut client, "/")).collect();
    for response in responses {
        assert_eq!(status(response).await, 503);
    }
    assert_eq!(bench.log(20).await[0], "/: no server was reached");
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_closed_once_nothing_was_asked_for_a_while() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let response = get(&mut client, "/");
    let mut server = bench.server().await;
    let (_, mut respond) = server.request().await;
    // As long as a connection may be idle, and it is not.
    tokio::time::sleep(2 * SERVER_IDLE).await;
    respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(status(response).await, 200);
    drop(respond);
    let began = Instant::now();
    assert!(server.0.recv().await.is_none());
    assert!((SERVER_IDLE..2 * SERVER_IDLE).contains(&began.elapsed()));
}

#[tokio::test]
async fn a_connection_from_before_the_protocol_was_known_is_used() {
    let mut bench = Bench::new();
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let Bench { forward, .. } = &bench;
    forward.pool.adopt(forward.key, ours).await.unwrap();
    forward.connections.send(theirs).unwrap();
    let mut client = bench.client().await;
    let response = get(&mut client, "/");
    let mut server = bench.server().await;
    ok(&mut server.request().await.1);
    assert_eq!(status(response).await, 200);
    assert!(bench.servers.is_empty());
}
