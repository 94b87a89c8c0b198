//! Bodies that nobody reads.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{bench_with, hear, say, seen};
use crate::limits::Budget;

const POST: &str = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1048576\r\n\r\n";
const BODY: usize = 1 << 20;

#[tokio::test]
async fn a_body_is_counted_while_its_reader_is_behind_and_no_longer() {
    let budget = Budget::new(128 << 20);
    let mut bench = bench_with(4 << 10, &budget.share());
    let mut servers = bench.servers;
    let send = async {
        bench.client.write_all(POST.as_bytes()).await.unwrap();
        bench.client.write_all(&vec![0; BODY]).await.unwrap();
    };
    let read = async {
        let mut server = servers.recv().await.unwrap();
        // The server stands still until something is held for it.
        while budget.used() == 0 {
            tokio::task::yield_now().await;
        }
        let mut head = vec![0; POST.len() + "x-seen: 1\r\n".len()];
        server.read_exact(&mut head).await.unwrap();
        server.read_exact(&mut vec![0; BODY]).await.unwrap();
        server
    };
    let ((), mut server) = tokio::join!(send, read);
    while budget.used() > 0 {
        tokio::task::yield_now().await;
    }
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    say(&mut server, answer).await;
    hear(&mut bench.client, answer).await;
    assert_eq!(budget.used(), 0, "between two requests");
}

#[tokio::test]
async fn a_request_with_more_of_a_body_than_may_wait_is_broken_off() {
    let budget = Budget::new(2 << 10);
    let mut bench = bench_with(4 << 10, &budget.share());
    let mut client = bench.client;
    let flood = tokio::spawn(async move {
        let _ = client.write_all(POST.as_bytes()).await;
        // The answer comes while it sends.
        let (mut reads, mut writes) = tokio::io::split(client);
        let send = async { while writes.write_all(&[0; 4 << 10]).await.is_ok() {} };
        let mut heard = vec![0; 12];
        tokio::select! {
            read = reads.read_exact(&mut heard) => drop(read.unwrap()),
            () = send => {}
        }
        String::from_utf8(heard).unwrap()
    });
    let mut server = bench.servers.recv().await.unwrap();
    assert_eq!(flood.await.unwrap(), "HTTP/1.1 502");
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert!(heard.len() < BODY);
    bench.served.await.unwrap();
    assert_eq!(budget.used(), 0);
    assert_eq!(*bench.forward.log.lock().unwrap(), ["/ Overfull"]);
}

#[tokio::test]
async fn an_answer_of_which_more_waits_than_may_is_broken_off() {
    let budget = Budget::new(2 << 10);
    let mut bench = bench_with(4 << 10, &budget.share());
    bench.say("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut server = bench.server().await;
    hear(&mut server, &seen("/")).await;
    say(&mut server, "HTTP/1.1 200 OK\r\ncontent-length: 1048576\r\n\r\n").await;
    // The client reads nothing.
    while server.write_all(&[0; 4 << 10]).await.is_ok() {}
    assert!(bench.rest().await.len() < BODY);
    assert_eq!(budget.used(), 0);
}

#[tokio::test]
async fn a_long_head_that_does_not_end_is_counted() {
    let budget = Budget::new(128 << 10);
    let share = budget.share();
    let mut benches = Vec::new();
    for _ in 0..3 {
        let mut bench = bench_with(64 << 10, &share);
        bench.say(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(16 << 10))).await;
        benches.push(bench);
    }
    let last = benches.last_mut().unwrap();
    last.hear("HTTP/1.1 503 Service Unavailable\r\n").await;
    drop(benches);
    while budget.used() > 0 {
        tokio::task::yield_now().await;
    }
}
