//! Both ends of a relay over TCP on loopback.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use std::io;

use super::{super::io::reset, *};
use crate::{
    limits::Budget,
    telemetry::{
        Reporter,
        testing::{attributes, flow, recorded, recording},
    },
};

/// What a connection carried, by its span, and how it ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    sent: u64,
    received: u64,
    failure: Option<Failure>,
}

/// Both ends of a new connection.
pub(in crate::proxy) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

struct Bench {
    client: TcpStream,
    server: TcpStream,
    relay: tokio::task::JoinHandle<Outcome>,
}

async fn bench(early: Early) -> Bench {
    bench_with(early, Budget::new(1 << 20)).await
}

async fn bench_with(early: Early, buffered: Arc<Budget>) -> Bench {
    let (client, near) = pair().await;
    let (far, server) = pair().await;
    let relay = tokio::spawn(async move {
        let buffered = buffered.share();
        let telemetry = recording(1.0);
        let mut spans = [telemetry.connection(&Arc::new(flow(Reporter::Source)), None)];
        let (near, far, never) = (Io::Tcp(near), Io::Tcp(far), std::future::pending());
        let failure = relay(near, far, early, &buffered, &mut spans, never).await;
        spans.into_iter().for_each(|span| span.finish(failure));
        let recorded = recorded(&telemetry);
        let read = attributes(&recorded[0].attributes);
        let bytes = |name: &str| read[name].parse().unwrap();
        let sent = bytes("mesh.connection.sent_bytes");
        Outcome { sent, received: bytes("mesh.connection.received_bytes"), failure }
    });
    Bench { client, server, relay }
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    let Bench { mut client, mut server, relay } = bench(Early::default()).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = String::new();
    server.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    server.write_all(b"a longer answer").await.unwrap();
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "a longer answer");
    let outcome = relay.await.unwrap();
    assert_eq!(outcome, Outcome { sent: 8, received: 15, failure: None });
}

#[tokio::test]
async fn bytes_read_while_detecting_come_first_and_are_counted() {
    let early = Early { from_client: "ab".into(), from_server: "220 ".into(), broke: None };
    let Bench { mut client, mut server, relay } = bench(early).await;
    client.write_all(b"c").await.unwrap();
    server.write_all(b"ready").await.unwrap();
    client.shutdown().await.unwrap();
    server.shutdown().await.unwrap();
    let (mut at_client, mut at_server) = (String::new(), String::new());
    client.read_to_string(&mut at_client).await.unwrap();
    server.read_to_string(&mut at_server).await.unwrap();
    assert_eq!((at_client.as_str(), at_server.as_str()), ("220 ready", "abc"));
    let outcome = relay.await.unwrap();
    assert_eq!((outcome.sent, outcome.received), (3, 9));
}

#[tokio::test]
async fn a_reset_at_one_end_is_a_reset_at_the_other() {
    let Bench { mut client, server, relay } = bench(Early::default()).await;
    reset(&server);
    drop(server);
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(relay.await.unwrap().failure, Some(Failure::ResetRemote));
}

/// Closes `leaving` with unread input, which resets it right behind its last words.
async fn last_words_are_heard(mut leaving: TcpStream, mut staying: TcpStream) {
    staying.write_all(&[0; 100]).await.unwrap();
    leaving.read_u8().await.unwrap();
    leaving.write_all(b"goodbye").await.unwrap();
    drop(leaving);
    // The relay is told of the reset by a write as well as by a read.
    let _ = staying.write_all(&[0; 100]).await;
    let mut heard = Vec::new();
    let _ = staying.read_to_end(&mut heard).await;
    assert_eq!(String::from_utf8_lossy(&heard), "goodbye");
}

#[tokio::test]
async fn last_words_before_a_reset_are_heard_in_both_directions() {
    for _ in 0..100 {
        let Bench { client, server, relay } = bench(Early::default()).await;
        last_words_are_heard(server, client).await;
        assert_eq!(relay.await.unwrap().failure, Some(Failure::ResetRemote));
        let Bench { client, server, relay } = bench(Early::default()).await;
        last_words_are_heard(client, server).await;
        assert_eq!(relay.await.unwrap().failure, Some(Failure::ResetLocal));
    }
}

#[tokio::test]
async fn an_end_that_broke_while_detecting_is_a_reset_behind_what_it_said() {
    let early = Early { from_client: "PI".into(), broke: Some(Side::Client), ..Early::default() };
    let Bench { client, mut server, relay } = bench(early).await;
    reset(&client);
    drop(client);
    let mut heard = Vec::new();
    let error = server.read_to_end(&mut heard).await.unwrap_err();
    assert_eq!((&heard[..], error.kind()), (&b"PI"[..], io::ErrorKind::ConnectionReset));
    assert_eq!(relay.await.unwrap().failure, Some(Failure::ResetLocal));
}

#[tokio::test]
async fn a_relay_that_is_cut_resets_both_ends() {
    let Bench { mut client, mut server, relay } = bench(Early::default()).await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'x');
    relay.abort();
    for end in [&mut client, &mut server] {
        let error = end.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn what_waits_for_a_reader_is_counted_until_it_is_read() {
    let buffered = Budget::new(1 << 20);
    let Bench { mut client, mut server, relay } =
        bench_with(Early::default(), buffered.clone()).await;
    let sent = fill(&mut client).await;
    assert!(buffered.used() > 0, "the server reads nothing");
    client.shutdown().await.unwrap();
    let mut received = 0;
    let mut piece = vec![0; 1 << 16];
    loop {
        match server.read(&mut piece).await.unwrap() {
            0 => break,
            read => received += read,
        }
    }
    assert_eq!((received, buffered.used()), (sent, 0));
    drop(server);
    assert_eq!(relay.await.unwrap().failure, None);
}

#[tokio::test]
async fn a_connection_for_which_more_waits_than_may_is_reset() {
    let Bench { mut client, server, relay } = bench_with(Early::default(), Budget::new(512)).await;
    let error = loop {
        if let Err(error) = client.write_all(&[0; 1 << 16]).await {
            break error;
        }
    };
    drop(server);
    assert!(is_reset(&error), "{error}");
    assert_eq!(relay.await.unwrap().failure, Some(Failure::BufferLimit));
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Sends until nothing more is taken.
async fn fill(to: &mut TcpStream) -> usize {
    let mut sent = 0;
    let quiet = std::time::Duration::from_millis(200);
    while let Ok(written) = tokio::time::timeout(quiet, to.write(&[0; 1 << 16])).await {
        sent += written.unwrap();
    }
    sent
}
