//! Streams on which nothing happens for long.

use std::time::Duration;

use tokio::{io::AsyncReadExt, time::timeout};

use super::{
    super::limits::CLIENT_IDLE,
    Bench,
    frames::{self, GET, HEADERS},
    get, ok,
};

/// Longer than servers allow between two PINGs, or a client takes a break.
const LONG: Duration = Duration::from_secs(40 * 60);

#[tokio::test(start_paused = true)]
async fn neither_end_of_a_quiet_stream_hears_a_ping_and_the_stream_lives() {
    let mut bench = Bench::new();
    let mut client = bench.connection();
    frames::begin_as_client(&mut client).await;
    frames::write(&mut client, HEADERS, frames::ENDS, 1, GET).await;
    let mut server = bench.servers.recv().await.unwrap();
    frames::begin_as_server(&mut server).await;
    frames::next_of(HEADERS, &mut server).await;
    frames::write(&mut server, HEADERS, frames::END_HEADERS, 1, frames::OK).await;
    frames::next_of(HEADERS, &mut client).await;
    for end in [&mut client, &mut server] {
        // Settings may be confirmed.
        while let Ok(frame) = timeout(LONG, frames::next(end)).await {
            assert_eq!((frame.kind, frame.flags), (frames::SETTINGS, frames::ACK));
        }
    }
    frames::write(&mut server, 0, 1, 1, b"at last").await;
    assert_eq!(frames::next_of(0, &mut client).await.payload, b"at last");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_stopped_for_minutes_finds_its_stream_as_it_was() {
    let mut bench = Bench::new();
    let mut client = bench.connection();
    frames::begin_as_client(&mut client).await;
    frames::write(&mut client, HEADERS, frames::ENDS, 1, GET).await;
    let mut server = bench.server().await;
    let (_, mut respond) = server.request().await;
    // It reads and answers nothing meanwhile, and its server has much to say.
    let mut body = respond.send_response(http::Response::new(()), false).unwrap();
    body.send_data(vec![0; 60 << 10].into(), true).unwrap();
    tokio::time::sleep(LONG).await;
    let mut heard = 0;
    while heard < 60 << 10 {
        heard += frames::next_of(0, &mut client).await.payload.len();
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_nothing_for_an_hour_is_asked_to_go() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let response = get(&mut client, "/");
    ok(&mut bench.server().await.request().await.1);
    response.await.unwrap();
    // It is looked at once a minute.
    tokio::time::sleep(CLIENT_IDLE + CLIENT_IDLE / 60 + Duration::from_secs(1)).await;
    assert!(client.ready().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_come_to_the_point_is_hung_up_on() {
    let bench = Bench::new();
    let mut client = bench.connection();
    tokio::io::AsyncWriteExt::write_all(&mut client, b"PRI * HTTP/2.0\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
}
