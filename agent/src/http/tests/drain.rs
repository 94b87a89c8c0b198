//! Connections that are to end.

use std::{sync::Arc, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_util::sync::CancellationToken;

use super::{Hello, plenty, serve};

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
