//! Finding out what a connection speaks without holding up a server that speaks first.

use std::time::Duration;

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, sleep_until},
};

use super::relay::{Early, Side};
use crate::http::{Protocol, Sniff, sniff};

/// How long bytes that may yet become a request line are held back for more of it, in all.
const LONGEST_HOLD: Duration = Duration::from_millis(100);
/// The same for bytes that hardly are anything else: a method, a blank, and more. A server has
/// nothing to answer before the line is whole, and a lost segment takes longer than the above.
const LONGEST_LINE: Duration = Duration::from_secs(5);

/// What a connection speaks, and what was read to find out.
#[derive(Debug)]
pub(super) struct Detected {
    pub(super) protocol: Protocol,
    pub(super) early: Early,
}

/// Watches both ends of a connection until one of them speaks. A server that speaks first is
/// opaque; a client's first bytes decide otherwise. So is what breaks before that is decided.
pub(super) async fn detect(
    client: &mut (impl AsyncRead + Unpin),
    server: &mut (impl AsyncRead + Unpin),
) -> Detected {
    let (mut from_client, mut from_server) = (BytesMut::new(), BytesMut::new());
    // Of the first byte, not of each: else one byte now and then would hold both ends for ever.
    let mut began = None;
    let mut broke = None;
    let protocol = loop {
        let hold = if from_client.contains(&b' ') { LONGEST_LINE } else { LONGEST_HOLD };
        let deadline = began.map_or_else(Instant::now, |began| began + hold);
        from_client.reserve(1024);
        from_server.reserve(1024);
        tokio::select! {
            biased;
            read = client.read_buf(&mut from_client) => {
                match (read, sniff(&from_client)) {
                    (Ok(0), _) => break Protocol::Opaque,
                    (Ok(_), Sniff::Is(protocol)) => break protocol,
                    // Bounded: a line that grows too long is not HTTP.
                    (Ok(_), Sniff::Undecided) => drop(began.get_or_insert_with(Instant::now)),
                    (Err(_), _) => {
                        broke = Some(Side::Client);
                        break Protocol::Opaque;
                    }
                }
            },
            read = server.read_buf(&mut from_server) => {
                broke = read.err().map(|_| Side::Server);
                break Protocol::Opaque;
            }
            // A client that waits for an answer to `HELLO` must not wait for us.
            () = sleep_until(deadline), if began.is_some() => break Protocol::Opaque,
        }
    };
    let (from_client, from_server) = (from_client.freeze(), from_server.freeze());
    Detected { protocol, early: Early { from_client, from_server, broke } }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_server_that_speaks_first_is_opaque_and_loses_no_byte() {
        let (mut client, _client_end) = duplex(64);
        let (mut server, mut server_end) = duplex(64);
        server_end.write_all(b"220 ready\r\n").await.unwrap();
        let detected = detect(&mut client, &mut server).await;
        assert_eq!(detected.protocol, Protocol::Opaque);
        assert_eq!(detected.early.from_server, "220 ready\r\n");
    }

    #[tokio::test]
    async fn a_request_line_in_pieces_is_still_http() {
        let (mut client, mut client_end) = duplex(64);
        let (mut server, _server_end) = duplex(64);
        let detected = tokio::spawn(async move { detect(&mut client, &mut server).await });
        for piece in ["G", "ET /order HT", "TP/1.1\r\n"] {
            client_end.write_all(piece.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
        }
        let detected = detected.await.unwrap();
        assert_eq!(detected.protocol, Protocol::Http1);
        assert_eq!(detected.early.from_client, "GET /order HTTP/1.1\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_does_not_end_is_held_back_for_a_moment_only() {
        let (mut client, mut client_end) = duplex(64);
        let (mut server, _server_end) = duplex(64);
        client_end.write_all(b"HELLO").await.unwrap();
        let detected = detect(&mut client, &mut server).await;
        assert_eq!(detected.protocol, Protocol::Opaque);
        assert_eq!(detected.early.from_client, "HELLO");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_line_with_a_pause_in_it_is_still_http() {
        let (mut client, mut client_end) = duplex(64);
        let (mut server, _server_end) = duplex(64);
        let detected = tokio::spawn(async move { detect(&mut client, &mut server).await });
        for piece in ["GET ", "/order HTTP/1.1\r\n"] {
            client_end.write_all(piece.as_bytes()).await.unwrap();
            tokio::time::sleep(5 * LONGEST_HOLD).await;
        }
        assert_eq!(detected.await.unwrap().protocol, Protocol::Http1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_does_not_put_the_verdict_off() {
        for (start, limit) in [("G", LONGEST_HOLD), ("GET /", LONGEST_LINE)] {
            let (mut client, mut client_end) = duplex(64);
            let (mut server, _server_end) = duplex(64);
            let began = Instant::now();
            let detected = tokio::spawn(async move { detect(&mut client, &mut server).await });
            client_end.write_all(start.as_bytes()).await.unwrap();
            while !detected.is_finished() {
                // Errors once the other end is gone.
                let _ = client_end.write_all(b"A").await;
                tokio::time::sleep(limit / 20).await;
            }
            assert_eq!(detected.await.unwrap().protocol, Protocol::Opaque);
            assert!(began.elapsed() <= limit + limit / 10, "{start}: {:?}", began.elapsed());
        }
    }

    #[tokio::test]
    async fn a_client_that_closes_without_a_word_is_opaque() {
        let (mut client, client_end) = duplex(64);
        let (mut server, _server_end) = duplex(64);
        drop(client_end);
        let detected = detect(&mut client, &mut server).await;
        assert_eq!(detected.protocol, Protocol::Opaque);
    }
}
