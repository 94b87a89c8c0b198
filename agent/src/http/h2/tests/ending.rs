//! Connections that are to end.

use std::time::Duration;

use super::{
    Bench,
    frames::{self, ACK, GET, GOAWAY, HEADERS, PING},
    get, ok, status,
};

#[tokio::test(start_paused = true)]
async fn a_client_that_is_told_to_go_is_answered_what_it_had_begun_to_ask() {
    let bench = Bench::refusing(200, "hello");
    let mut client = bench.connection();
    frames::begin_as_client(&mut client).await;
    frames::write(&mut client, HEADERS, frames::ENDS, 1, GET).await;
    frames::next_of(HEADERS, &mut client).await;
    bench.ending.cancel();
    frames::next_of(GOAWAY, &mut client).await;
    // A client that has a request in its queue answers a PING before it sends that.
    let soon = Duration::from_millis(50);
    if let Ok(ping) = tokio::time::timeout(soon, frames::next_of(PING, &mut client)).await {
        frames::write(&mut client, PING, ACK, 0, &ping.payload).await;
    }
    tokio::time::sleep(soon).await;
    frames::write(&mut client, HEADERS, frames::ENDS, 3, GET).await;
    let (mut answered, mut last) = (false, None);
    while last.is_none() || !answered {
        let frame = frames::next(&mut client).await;
        match frame.kind {
            HEADERS if frame.stream == 3 => answered = true,
            PING => frames::write(&mut client, PING, ACK, 0, &frame.payload).await,
            GOAWAY => last = Some(frame.payload[3]),
            _ => {}
        }
    }
    assert_eq!(last, Some(3), "the second request belongs to those that are answered");
}

#[tokio::test(start_paused = true)]
async fn a_request_under_way_is_answered_and_then_the_connection_ends() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let response = get(&mut client, "/");
    let mut server = bench.server().await;
    let (_, mut respond) = server.request().await;
    bench.ending.cancel();
    tokio::time::sleep(Duration::from_secs(600)).await;
    ok(&mut respond);
    assert_eq!(status(response).await, 200);
    while client.clone().ready().await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_server_cannot_be_reached_is_told_so_and_to_look_for_another() {
    let mut bench = Bench::new();
    bench.servers.close();
    let mut client = bench.client().await;
    assert_eq!(status(get(&mut client, "/")).await, 503);
    while client.clone().ready().await.is_ok() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
