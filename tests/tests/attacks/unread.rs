//! Servers and clients that never read, and whoever sends them all it can.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response};
use sluice_tests::ports;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    flood::{flood, hoard, open},
    siege::Siege,
};

const CONNECTIONS: usize = 600;
/// How long everybody goes on trying to send.
const TIME: Duration = Duration::from_secs(8);
/// Requests of each HTTP/2 connection: so many with a body, and so many for an answer with one.
const STREAMS: usize = 10;
const PIECE: &[u8] = &[b'x'; 64 << 10];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_hundred_connections_to_a_server_that_never_reads_harm_no_other() -> anyhow::Result<()>
{
    let siege = Siege::lay().await?;
    let kept = hoard(siege.victim.listen(ports::TCP.target)?);
    siege
        .withstands("600 connections that nobody reads", async |siege| {
            let to = Siege::service(ports::TCP);
            let streams = flood(&siege.attacker, to, CONNECTIONS, b"").await?;
            let mut senders = JoinSet::new();
            for mut stream in streams {
                senders.spawn(async move {
                    let mut sent = 0;
                    let send = async {
                        while let Ok(written) = stream.write(PIECE).await {
                            sent += written;
                        }
                    };
                    let still_open = timeout(TIME, send).await.is_err();
                    (still_open, sent, stream)
                });
            }
            let senders = senders.join_all().await;
            let open = senders.iter().filter(|(open, ..)| *open).count();
            let sent: usize = senders.iter().map(|(_, sent, _)| sent).sum();
            let told = format!("{open} of {CONNECTIONS} open, {} MiB on their way", sent >> 20);
            Ok((told, (senders, kept)))
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_bodies_that_nobody_reads_harm_no_other() -> anyhow::Result<()> {
    let siege = Siege::lay().await?;
    let server = each(siege.victim.listen(ports::HTTP.target)?, http_1_server);
    siege
        .withstands("600 HTTP/1 bodies that nobody reads", async |siege| {
            let to = Siege::service(ports::HTTP);
            let post = b"POST / HTTP/1.1\r\nhost: victim\r\ncontent-length: 1000000000\r\n\r\n";
            let mut posts = flood(&siege.attacker, to, CONNECTIONS / 2, post).await?;
            let get = b"GET / HTTP/1.1\r\nhost: victim\r\n\r\n";
            let gets = flood(&siege.attacker, to, CONNECTIONS / 2, get).await?;
            let send = posts
                .iter_mut()
                .map(|stream| async { while stream.write_all(PIECE).await.is_ok() {} });
            let _ = timeout(TIME, join_all(send)).await;
            let open = open(&posts);
            let told = format!("{open} of {} requests under way", posts.len());
            Ok((told, (posts, gets, server)))
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_bodies_that_nobody_reads_harm_no_other() -> anyhow::Result<()> {
    let siege = Siege::lay().await?;
    let server = each(siege.victim.listen(ports::HTTP.target)?, http_2_server);
    siege
        .withstands("12,000 HTTP/2 bodies that nobody reads", async |siege| {
            let to = Siege::service(ports::HTTP);
            let streams = flood(&siege.attacker, to, CONNECTIONS, b"").await?;
            let mut clients = JoinSet::new();
            for stream in streams {
                clients.spawn(http_2_client(stream));
            }
            sleep(TIME).await;
            let open = clients.len();
            Ok((format!("{open} of {CONNECTIONS} open"), (clients, server)))
        })
        .await
}

/// Runs `serve` with each connection, until dropped.
fn each<Serving>(listener: TcpListener, serve: fn(TcpStream) -> Serving) -> JoinSet<()>
where
    Serving: Future<Output = ()> + Send + 'static,
{
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream));
        }
    });
    serving
}

/// Reads a head and no more; a GET is answered without an end.
async fn http_1_server(mut stream: TcpStream) {
    let mut head = Vec::with_capacity(1 << 10);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
            return;
        }
    }
    if head.starts_with(b"GET") {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
        let mut sent = stream.write_all(answer).await;
        while sent.is_ok() {
            sent = stream.write_all(PIECE).await;
        }
    }
    sleep(Duration::MAX).await;
}

/// The same, request by request.
async fn http_2_server(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let mut kept = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if request.method() == Method::GET
            && let Ok(mut send) = respond.send_response(Response::new(()), false)
        {
            let _ = send.send_data(Bytes::from_static(PIECE), false);
            let _ = send.send_data(Bytes::from_static(PIECE), false);
            kept.push((None, None, Some(send)));
        } else {
            kept.push((Some(request), Some(respond), None));
        }
    }
}

/// Sends bodies, asks for others, and takes none.
async fn http_2_client(stream: TcpStream) {
    let Ok((mut send, connection)) = h2::client::handshake(stream).await else { return };
    let ask = async {
        let mut kept = Vec::new();
        for number in 0..2 * STREAMS {
            let method = if number % 2 == 0 { Method::POST } else { Method::GET };
            let has_body = method == Method::POST;
            let request = Request::builder().method(method).uri("http://victim/").body(());
            let Ok(mut ready) = send.ready().await else { break };
            let request = request.expect("a request");
            let Ok((response, mut body)) = ready.send_request(request, !has_body) else { break };
            if has_body {
                let _ = body.send_data(Bytes::from_static(PIECE), false);
                let _ = body.send_data(Bytes::from_static(PIECE), false);
            }
            kept.push((response, body));
            send = ready;
        }
        std::future::pending::<()>().await;
        drop(kept);
    };
    tokio::select! {
        _ = connection => {}
        () = ask => {}
    }
}
