//! Clients that take their time.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Buf;
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_util::sync::CancellationToken;

use super::{Body, Handler, Hello, bench, plain, plenty, read_until, serve};

#[tokio::test(start_paused = true)]
async fn a_client_that_begins_to_ask_and_does_not_come_to_the_point_is_hung_up_on() {
    for start in ["GET / HTTP/1.1\r\nhost: a\r\nx-slow: ", "PRI * HTTP/2.0\r\n\r\n"] {
        let mut bench = bench();
        bench.say(start).await;
        let mut heard = Vec::new();
        let hung_up = bench.client.read_to_end(&mut heard);
        tokio::time::timeout(Duration::from_secs(60), hung_up).await.unwrap().unwrap();
        assert_eq!(bench.dialled.load(Ordering::Relaxed), 0);
    }
}

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// A client of [`Hello`].
fn greeted() -> DuplexStream {
    let (client, agent) = duplex(64 << 10);
    tokio::spawn(async move {
        serve(agent, Arc::new(Hello), &plenty(), &CancellationToken::new()).await
    });
    client
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_silent_between_its_requests_keeps_its_connection() {
    let mut client = greeted();
    for pause in [0, 30, 5, 5, 5, 5, 19, 21, 60] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        client.write_all(GET.as_bytes()).await.unwrap();
        read_until(&mut client, "hello").await;
    }
    for _ in 0..12 {
        client.write_all(GET.repeat(2).as_bytes()).await.unwrap();
        read_until(&mut client, "hello").await;
        read_until(&mut client, "hello").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_request_that_does_not_come_to_the_point_is_not_waited_for_either() {
    let mut client = greeted();
    client.write_all(GET.as_bytes()).await.unwrap();
    read_until(&mut client, "hello").await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: ").await.unwrap();
    let (mut reads, mut writes) = tokio::io::split(client);
    let mut heard = Vec::new();
    let dribble = async {
        while writes.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    let hung_up = async { tokio::join!(reads.read_to_end(&mut heard), dribble) };
    tokio::time::timeout(Duration::from_secs(60), hung_up).await.unwrap().0.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_connection_may_be_silent() {
    let mut bench = bench();
    bench
        .say("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await;
    let mut server = bench.server().await;
    read_until(&mut server, "\r\n\r\n").await;
    let answer =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    server.write_all(answer.as_bytes()).await.unwrap();
    bench.hear("\r\n\r\n").await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        bench.say("ping").await;
        assert_eq!(read_until(&mut server, "ping").await, "ping");
        server.write_all(b"pong").await.unwrap();
        assert_eq!(bench.hear("pong").await, "pong");
    }
}

/// Answers before the request's body has come, and passes that on.
struct Hasty(tokio::sync::mpsc::UnboundedSender<Vec<u8>>);

impl Handler for Hasty {
    async fn handle(&self, request: Request<Body>) -> Response<Body> {
        let whole = self.0.clone();
        tokio::spawn(async move {
            let (mut body, mut heard) = (request.into_body(), Vec::new());
            while !http_body::Body::is_end_stream(&body) {
                let Some(Ok(frame)) = http_body_util::BodyExt::frame(&mut body).await else {
                    return;
                };
                heard.extend_from_slice(frame.into_data().unwrap().chunk());
            }
            let _ = whole.send(heard);
        });
        plain(StatusCode::OK, "hello")
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_may_take_its_time_although_its_request_is_answered() {
    let (whole, mut bodies) = tokio::sync::mpsc::unbounded_channel();
    let (mut client, agent) = duplex(64 << 10);
    let hasty = Arc::new(Hasty(whole));
    tokio::spawn(async move { serve(agent, hasty, &plenty(), &CancellationToken::new()).await });
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\n").await.unwrap();
    read_until(&mut client, "hello").await;
    for part in ["ab", "cd", "ef"] {
        client.write_all(part.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(bodies.recv().await.unwrap(), b"abcdef");
}
