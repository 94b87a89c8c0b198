//! Finding out what a connection speaks without holding up a server that speaks first.
//!
//! What a port is declared to speak decides where the bytes do not: a wrong name of a port must not be
//! an outage. Only bytes that cannot be HTTP, or a server that speaks first, make a connection opaque
//! there, which is counted.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, sleep_until},
};

use super::relay::{Early, Side};
use crate::http::{Protocol, Sniff, claims_http, is_likely_http, sniff};

/// How long bytes that may yet become a request line, but do not look like one, are held back for more
/// of it, in all: a client that waits for an answer to `HELLO` must not wait for us.
const LONGEST_HOLD: Duration = Duration::from_millis(100);
/// The same for bytes that hardly are anything else. A server has nothing to answer before the line
/// is whole, and a lost segment takes longer than the above. Where HTTP is declared, no end is silent
/// for longer before it is believed.
const LONGEST_LINE: Duration = Duration::from_secs(5);
/// How long a client may be silent where HTTP is declared before its server is dialled, which may be
/// the one to speak first. HTTP's clients connect to ask.
const SILENCE: Duration = Duration::from_millis(300);

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// One kind of HTTP, by the client's bytes.
    Http(Protocol),
    /// HTTP, because it is declared and nothing contradicts.
    Declared,
    /// Anything else, and what makes that worth a count, if something does.
    Opaque(Option<Contrary>),
}

/// Why a connection is opaque, although something says that it is HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contrary {
    /// HTTP is declared, and the client speaks TLS.
    Tls,
    /// HTTP is declared, and the server spoke first.
    ServerFirst,
    /// HTTP is declared, and the client's bytes are none.
    NotHttp,
    /// Nothing is declared, and what may be a request line did not end in time.
    Unfinished,
}

impl Contrary {
    /// Each in one word, for metrics.
    const WORDS: [&'static str; 4] = ["tls", "server_first", "not_http", "unfinished"];

    pub(super) fn as_str(self) -> &'static str {
        Self::WORDS[self as usize]
    }
}

/// Connections that are opaque, although something said that they are HTTP.
#[derive(Debug, Default)]
pub struct Contradictions([AtomicU64; Contrary::WORDS.len()]);

impl Contradictions {
    /// How many of each kind there were.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Contrary::WORDS.into_iter().zip(self.0.iter().map(|count| count.load(Relaxed)))
    }

    pub(super) fn count(&self, why: Contrary) {
        self.0[why as usize].fetch_add(1, Relaxed);
    }
}

/// Listens to the ends of one connection until it is known what they speak. Keeps what it has
/// heard when it is interrupted.
#[derive(Debug)]
pub(super) struct Detection {
    declared: bool,
    /// Since the first byte, not the last: else one byte now and then would hold both ends for ever.
    /// Where HTTP is declared, since the start.
    began: Option<Instant>,
    from_client: BytesMut,
    from_server: BytesMut,
    broke: Option<Side>,
}

impl Detection {
    /// Of a port of which nothing is said.
    pub(super) fn undeclared() -> Self {
        Self {
            declared: false,
            began: None,
            from_client: BytesMut::new(),
            from_server: BytesMut::new(),
            broke: None,
        }
    }

    /// Of a port that is declared as HTTP.
    pub(super) fn declared() -> Self {
        Self { declared: true, began: Some(Instant::now()), ..Self::undeclared() }
    }

    /// Listens to the client alone, for what decides alone; `None` where it is silent so long that
    /// the server is to be asked.
    pub(super) async fn client(&mut self, client: &mut (impl AsyncRead + Unpin)) -> Option<Found> {
        loop {
            let wait = if self.from_client.is_empty() { SILENCE } else { LONGEST_LINE };
            let deadline = self.began.unwrap_or_else(Instant::now) + wait;
            self.from_client.reserve(1024);
            tokio::select! {
                biased;
                read = client.read_buf(&mut self.from_client) => {
                    if let Some(found) = self.heard(read.ok()) {
                        return Some(found);
                    }
                }
                () = sleep_until(deadline) => {
                    return (!self.from_client.is_empty()).then(|| self.late());
                }
            }
        }
    }

    /// Watches both ends until one of them speaks. A server that speaks first is opaque; a client's
    /// first bytes decide otherwise. So is what breaks before that is decided.
    pub(super) async fn both(
        &mut self,
        client: &mut (impl AsyncRead + Unpin),
        server: &mut (impl AsyncRead + Unpin),
    ) -> Found {
        loop {
            let likely = self.declared || is_likely_http(&self.from_client);
            let hold = if likely { LONGEST_LINE } else { LONGEST_HOLD };
            let deadline = self.began.map_or_else(Instant::now, |began| began + hold);
            self.from_client.reserve(1024);
            self.from_server.reserve(1024);
            tokio::select! {
                biased;
                read = client.read_buf(&mut self.from_client) => {
                    if let Some(found) = self.heard(read.ok()) {
                        return found;
                    }
                }
                read = server.read_buf(&mut self.from_server) => {
                    self.broke = read.as_ref().err().map(|_| Side::Server);
                    let spoke = self.declared && matches!(read, Ok(1..));
                    return Found::Opaque(spoke.then_some(Contrary::ServerFirst));
                }
                () = sleep_until(deadline), if self.began.is_some() => return self.late(),
            }
        }
    }

    /// What the client's bytes say, after it sent so many more; `None` where it broke.
    fn heard(&mut self, read: Option<usize>) -> Option<Found> {
        let nothing = self.from_client.is_empty();
        match (read, sniff(&self.from_client)) {
            // It has no request any more, and never had one.
            (Some(0) | None, _) if self.declared && nothing => Some(Found::Declared),
            (Some(0), _) => Some(Found::Opaque(None)),
            (None, _) => {
                self.broke = Some(Side::Client);
                Some(Found::Opaque(None))
            }
            (Some(_), Sniff::Is(Protocol::Opaque)) => Some(self.contradicted()),
            (Some(_), Sniff::Is(protocol)) => Some(Found::Http(protocol)),
            // Bounded: a line that grows too long is not HTTP.
            (Some(_), Sniff::Undecided) => {
                self.began.get_or_insert_with(Instant::now);
                None
            }
        }
    }

    /// What bytes that are not HTTP make of it.
    fn contradicted(&self) -> Found {
        match (self.declared, &self.from_client[..]) {
            (false, _) => Found::Opaque(None),
            // HTTP that is wrong is to be told so.
            (true, bytes) if claims_http(bytes) => Found::Declared,
            // A handshake record of TLS 1.x (RFC 8446 §5.1).
            (true, [0x16, 0x03, ..] | [0x16]) => Found::Opaque(Some(Contrary::Tls)),
            (true, _) => Found::Opaque(Some(Contrary::NotHttp)),
        }
    }

    /// What is not decided by now.
    fn late(&self) -> Found {
        match self.declared {
            true => Found::Declared,
            false => {
                let likely = is_likely_http(&self.from_client);
                Found::Opaque(likely.then_some(Contrary::Unfinished))
            }
        }
    }

    /// What was read so far.
    pub(super) fn early(self) -> Early {
        let (from_client, from_server) = (self.from_client.freeze(), self.from_server.freeze());
        Early { from_client, from_server, broke: self.broke }
    }

    /// What the client has said so far, for whom it is a request.
    pub(super) fn request(self) -> Bytes {
        self.from_client.freeze()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// What `detection` finds between two ends that are left open, and what was read.
    async fn both(
        mut detection: Detection,
        mut client: DuplexStream,
        mut server: DuplexStream,
    ) -> (Found, Early) {
        let found = detection.both(&mut client, &mut server).await;
        (found, detection.early())
    }

    #[tokio::test]
    async fn a_server_that_speaks_first_is_opaque_and_loses_no_byte() {
        for (detection, why) in
            [(Detection::undeclared(), None), (Detection::declared(), Some(Contrary::ServerFirst))]
        {
            let (client, _client_end) = duplex(64);
            let (server, mut server_end) = duplex(64);
            server_end.write_all(b"220 ready\r\n").await.unwrap();
            let (found, early) = both(detection, client, server).await;
            assert_eq!(found, Found::Opaque(why));
            assert_eq!(early.from_server, "220 ready\r\n");
        }
    }

    #[tokio::test]
    async fn a_request_line_in_pieces_is_still_http() {
        let (client, mut client_end) = duplex(64);
        let (server, _server_end) = duplex(64);
        let detected = tokio::spawn(both(Detection::undeclared(), client, server));
        for piece in ["G", "ET /order HT", "TP/1.1\r\n"] {
            client_end.write_all(piece.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
        }
        let (found, early) = detected.await.unwrap();
        assert_eq!(found, Found::Http(Protocol::Http1));
        assert_eq!(early.from_client, "GET /order HTTP/1.1\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_does_not_end_is_held_back_for_a_moment_only() {
        let (client, mut client_end) = duplex(64);
        let (server, _server_end) = duplex(64);
        client_end.write_all(b"HELLO").await.unwrap();
        let began = Instant::now();
        let (found, early) = both(Detection::undeclared(), client, server).await;
        assert_eq!((found, began.elapsed()), (Found::Opaque(None), LONGEST_HOLD));
        assert_eq!(early.from_client, "HELLO");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_line_with_a_pause_anywhere_in_it_is_still_http() {
        for pieces in [["G", "ET /order HTTP/1.1\r\n"], ["GET ", "/order HTTP/1.1\r\n"]] {
            let (client, mut client_end) = duplex(64);
            let (server, _server_end) = duplex(64);
            let detected = tokio::spawn(both(Detection::undeclared(), client, server));
            for piece in pieces {
                client_end.write_all(piece.as_bytes()).await.unwrap();
                tokio::time::sleep(5 * LONGEST_HOLD).await;
            }
            assert_eq!(detected.await.unwrap().0, Found::Http(Protocol::Http1), "{pieces:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_does_not_put_the_verdict_off() {
        for (start, limit, why) in
            [("X", LONGEST_HOLD, None), ("GET /", LONGEST_LINE, Some(Contrary::Unfinished))]
        {
            let (client, mut client_end) = duplex(64);
            let (server, _server_end) = duplex(64);
            let began = Instant::now();
            let detected = tokio::spawn(both(Detection::undeclared(), client, server));
            client_end.write_all(start.as_bytes()).await.unwrap();
            while !detected.is_finished() {
                // Errors once the other end is gone.
                let _ = client_end.write_all(b"A").await;
                tokio::time::sleep(limit / 20).await;
            }
            assert_eq!(detected.await.unwrap().0, Found::Opaque(why));
            assert!(began.elapsed() <= limit + limit / 10, "{start}: {:?}", began.elapsed());
        }
    }

    #[tokio::test]
    async fn a_client_that_closes_without_a_word_is_opaque_where_nothing_is_declared() {
        for (detection, expected) in [
            (Detection::undeclared(), Found::Opaque(None)),
            (Detection::declared(), Found::Declared),
        ] {
            let (client, client_end) = duplex(64);
            let (server, _server_end) = duplex(64);
            drop(client_end);
            assert_eq!(both(detection, client, server).await.0, expected);
        }
    }

    /// What a client alone makes of a port that is declared as HTTP.
    async fn declared(says: &[u8]) -> Option<Found> {
        let (mut client, mut client_end) = duplex(64);
        client_end.write_all(says).await.unwrap();
        Detection::declared().client(&mut client).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_is_declared_as_http_is_it_unless_the_bytes_cannot_be() {
        let opaque = |why| Some(Found::Opaque(Some(why)));
        for (says, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Found::Http(Protocol::Http1))),
            // HTTP, but wrong: to be answered so.
            (b"get / HTTP/1.1\r\n", Some(Found::Declared)),
            (b"GET / HTTP/4.2\r\n", Some(Found::Declared)),
            // Never ends.
            (b"GE", Some(Found::Declared)),
            (b"\x16\x03\x01\x02\x00\x01", opaque(Contrary::Tls)),
            (b"\x16", opaque(Contrary::Tls)),
            (b"\x16\x00", opaque(Contrary::NotHttp)),
            (b"*1\r\n$4\r\nPING\r\n", opaque(Contrary::NotHttp)),
            (b"DESCRIBE rtsp://media/film RTSP/1.0\r\n", opaque(Contrary::NotHttp)),
            (b"SOURCE /radio HTTP/1.0\r\n", opaque(Contrary::NotHttp)),
            // The server is to be asked.
            (b"", None),
        ] {
            assert_eq!(declared(says).await, expected, "{}", says.escape_ascii());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_http_is_declared_nobody_is_waited_for_longer_than_for_a_line() {
        let (client, _client_end) = duplex(64);
        let (server, _server_end) = duplex(64);
        let began = Instant::now();
        let (found, _) = both(Detection::declared(), client, server).await;
        assert_eq!((found, began.elapsed()), (Found::Declared, LONGEST_LINE));
    }
}
