//! Bodies that nobody reads.

use std::sync::{Arc, atomic::AtomicUsize};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc::UnboundedReceiver,
};
use tokio_util::sync::CancellationToken;

use super::{Forward, Pool, read_until, serve};
use crate::limits::Budget;

/// A client, the servers' ends as they are dialled, and what may wait between them.
fn bench(total: u64) -> (DuplexStream, UnboundedReceiver<DuplexStream>, Arc<Budget>) {
    let (connections, servers) = tokio::sync::mpsc::unbounded_channel();
    let (budget, dialled) = (Budget::new(total), Arc::new(AtomicUsize::new(0)));
    let buffered = budget.share();
    let forward = Forward { pool: Pool::new(&buffered), connections, dialled };
    let (client, agent) = duplex(4 << 10);
    tokio::spawn(async move {
        serve(agent, Arc::new(forward), &buffered, &CancellationToken::new()).await
    });
    (client, servers, budget)
}

const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1048576\r\n\r\n";
const BODY: usize = 1 << 20;

#[tokio::test]
async fn a_body_is_counted_while_its_reader_is_behind_and_no_longer() {
    let (mut client, mut servers, budget) = bench(128 << 20);
    let send = async {
        client.write_all(POST.as_bytes()).await.unwrap();
        client.write_all(&vec![0; BODY]).await.unwrap();
    };
    let read = async {
        let mut server = servers.recv().await.unwrap();
        let mut head = read_until(&mut server, "\r\n\r\n").await.into_bytes();
        // The server stands still until the agent holds what it may.
        while budget.used() < 64 << 10 {
            tokio::task::yield_now().await;
        }
        let mut body = vec![0; BODY];
        server.read_exact(&mut body).await.unwrap();
        head.clear();
        server
    };
    let ((), mut server) = tokio::join!(send, read);
    while budget.used() > 0 {
        tokio::task::yield_now().await;
    }
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    assert_eq!(budget.used(), 0, "between two requests");
}

#[tokio::test]
async fn a_request_with_more_of_a_body_than_may_wait_is_broken_off() {
    let (mut client, mut servers, budget) = bench(32 << 10);
    client.write_all(POST.as_bytes()).await.unwrap();
    let mut server = servers.recv().await.unwrap();
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert!(heard.len() < BODY);
    // What the client learns.
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 502"));
    drop(client);
    while budget.used() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_answer_of_which_more_waits_than_may_is_broken_off() {
    let (mut client, mut servers, budget) = bench(96 << 10);
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut server = servers.recv().await.unwrap();
    read_until(&mut server, "\r\n\r\n").await;
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1048576\r\n\r\n").await.unwrap();
    // The client reads nothing.
    while server.write_all(&[0; 4 << 10]).await.is_ok() {}
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await.unwrap();
    assert!(heard.len() < BODY, "{} bytes", heard.len());
    while budget.used() > 0 {
        tokio::task::yield_now().await;
    }
}
