//! Connections that are to end.

use std::{sync::Arc, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_util::sync::CancellationToken;

use super::{Hello, bench, plenty, read_until, serve};

#[tokio::test]
async fn draining_closes_an_idle_connection_and_lets_a_request_under_way_finish() {
    let mut bench = bench();
    bench.say("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut server = bench.server().await;
    read_until(&mut server, "\r\n\r\n").await;
    bench.drain.cancel();
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    let mut answer = String::new();
    bench.client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("connection: close") && answer.ends_with("ok"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_gets_its_last_request_answered_and_is_asked_to_go() {
    let mut bench = bench();
    bench.say("GET /1 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut server = bench.server().await;
    for n in 1..=2 {
        read_until(&mut server, "\r\n\r\n").await;
        server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        if n == 1 {
            assert!(!bench.hear("ok").await.contains("connection: close"));
            bench.drain.cancel();
            tokio::time::sleep(Duration::from_millis(900)).await;
            bench.say("GET /2 HTTP/1.1\r\nhost: a\r\n\r\n").await;
        }
    }
    let mut answer = String::new();
    bench.client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("connection: close") && answer.ends_with("ok"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_that_asks_nothing_is_closed_in_order() {
    let mut bench = bench();
    bench.say("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut server = bench.server().await;
    read_until(&mut server, "\r\n\r\n").await;
    bench.drain.cancel();
    // The head goes before the agent ends, the body after it.
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await.unwrap();
    bench.hear("\r\n\r\n").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.write_all(b"ok").await.unwrap();
    let mut rest = String::new();
    bench.client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "ok");
}

#[tokio::test]
async fn a_connection_that_draining_finds_before_its_first_request_is_still_answered() {
    let mut bench = bench();
    bench.drain.cancel();
    bench.say("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut server = bench.server().await;
    read_until(&mut server, "\r\n\r\n").await;
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    let mut answer = String::new();
    bench.client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("connection: close") && answer.ends_with("ok"), "{answer}");
}

/// One frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The next frame: kind, stream, payload.
async fn next_frame(client: &mut DuplexStream) -> (u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    client.read_exact(&mut head).await.unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    client.read_exact(&mut payload).await.unwrap();
    (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
}

#[tokio::test(start_paused = true)]
async fn an_http_2_client_that_is_told_to_go_is_answered_what_it_had_begun_to_ask() {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    let (mut client, agent) = duplex(64 << 10);
    let drain = CancellationToken::new();
    let asked = drain.clone();
    let served =
        tokio::spawn(async move { serve(agent, Arc::new(Hello), &plenty(), &asked).await.is_ok() });
    // `:method: GET`, `:scheme: http`, `:path: /` and `:authority: a`, by HPACK's static table;
    // the flags end the stream and the header.
    let get = |stream| frame(HEADERS, 0x5, stream, &[0x82, 0x86, 0x84, 0x41, 1, b'a']);
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    client.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    client.write_all(&get(1)).await.unwrap();
    while !matches!(next_frame(&mut client).await, (HEADERS, 1, _)) {}
    drain.cancel();
    while next_frame(&mut client).await.0 != GOAWAY {}
    // A client that has a request in its queue answers a PING before it sends that.
    let soon = Duration::from_millis(50);
    if let Ok((PING, _, payload)) = tokio::time::timeout(soon, next_frame(&mut client)).await {
        client.write_all(&frame(PING, 1, 0, &payload)).await.unwrap();
    }
    tokio::time::sleep(soon).await;
    client.write_all(&get(3)).await.unwrap();
    let (mut answered, mut last) = (false, None);
    while last.is_none() {
        match next_frame(&mut client).await {
            (HEADERS, 3, _) => answered = true,
            (PING, _, payload) => client.write_all(&frame(PING, 1, 0, &payload)).await.unwrap(),
            (GOAWAY, _, payload) => last = Some(payload[3]),
            _ => {}
        }
    }
    assert_eq!(last, Some(3), "the second request belongs to those that are answered");
    while !answered {
        answered = matches!(next_frame(&mut client).await, (HEADERS, 3, _));
    }
    assert!(served.await.unwrap());
}
