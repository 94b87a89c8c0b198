//! Moving opaque bytes both ways until both ends are done.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{io::AsyncWrite, time::timeout};

use super::{
    io::{Io, ReadSize},
    last_words::{PATIENCE, delivered},
};
use crate::{
    http::Stream,
    limits::{Permit, Share, Turn},
    telemetry::Failure,
};

/// What a connection carried and how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Bytes from the client to the server.
    pub(super) sent: u64,
    /// Bytes from the server to the client.
    pub(super) received: u64,
    /// Why it broke; `None` when both ends closed in order.
    pub(super) failure: Option<Failure>,
}

/// Bytes that were read while finding out what the connection speaks.
#[derive(Debug, Default)]
pub(super) struct Early {
    pub(super) from_client: Bytes,
    pub(super) from_server: Bytes,
    /// The end that broke meanwhile. It tells nobody twice.
    pub(super) broke: Option<Side>,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    fn failure(self) -> Failure {
        match self {
            Side::Client => Failure::ResetLocal,
            Side::Server => Failure::ResetRemote,
        }
    }
}

/// Moves bytes between `client` and `server`. An end in one direction is passed on and the
/// other direction goes on; a reset at one end becomes a reset at the other, behind all that was said
/// before it.
///
/// When `cut` says why it must end now, or the returned future dropped half way, both ends are reset: an end
/// would tell them that they have everything. The same where more waits for readers of one pod than
/// `buffered` has room for.
pub(super) async fn relay(
    client: Io,
    server: Io,
    early: Early,
    buffered: &Arc<Share>,
    cut: impl Future<Output = Failure>,
) -> Outcome {
    let mut relay = Relay {
        ends: Some((client, server)),
        buffered,
        up: Direction::starting_with(early.from_client),
        down: Direction::starting_with(early.from_server),
        down_first: false,
    };
    let failure = tokio::select! {
        failure = relay.run(early.broke) => failure,
        why = cut => Some(why),
    };
    if failure.is_none() {
        // Both directions were shut down; nothing is left to reset.
        relay.ends = None;
    }
    Outcome { sent: relay.up.moved, received: relay.down.moved, failure }
}

struct Relay<'a> {
    ends: Option<(Io, Io)>,
    buffered: &'a Arc<Share>,
    up: Direction,
    down: Direction,
    down_first: bool,
}

impl Relay<'_> {
    /// Runs until both directions have ended, or one end `broke` and the other has what it said.
    async fn run(&mut self, broke: Option<Side>) -> Option<Failure> {
        let broken = match broke {
            Some(side) => Broken::End(side),
            None => poll_fn(|cx| self.poll(cx)).await.err()?,
        };
        match broken {
            Broken::Overfull => Some(Failure::BufferLimit),
            Broken::End(side) => {
                self.deliver_last_words(side).await;
                Some(side.failure())
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Some((client, server)) = &mut self.ends else { return Poll::Ready(Ok(())) };
        // In turn: a task may do only so much before it has to yield, and where one direction never
        // has to wait, it would be all of that.
        self.down_first = !self.down_first;
        let mut ended = true;
        for is_down in [self.down_first, !self.down_first] {
            let polled = match is_down {
                false => self.up.poll(cx, client, server, self.buffered),
                true => self.down.poll(cx, server, client, self.buffered),
            };
            match polled {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(why)) => return Poll::Ready(Err(why.of(is_down))),
                Poll::Pending => ended = false,
            }
        }
        if ended { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Passes on what the end that broke had said before. Some of it may still be unread: a socket
    /// keeps it when it is reset, and it is often by writing that the reset is noticed.
    async fn deliver_last_words(&mut self, broke: Side) {
        let Some((client, server)) = &mut self.ends else { return };
        let (direction, source, sink) = match broke {
            Side::Client => (&mut self.up, client, server),
            Side::Server => (&mut self.down, server, client),
        };
        while matches!(direction.phase, Phase::Moving) {
            let before = direction.written();
            let rest = poll_fn(|cx| direction.poll_move(cx, source, sink, self.buffered));
            match timeout(PATIENCE, rest).await {
                // Of a reset that a write was told of, a read sees no more than an end.
                Ok(Ok(()) | Err(Failed::Source)) => break,
                Ok(Err(Failed::Sink | Failed::Overfull)) => return,
                Err(_) if direction.written() > before => {}
                Err(_) => return,
            }
        }
        delivered(sink).await;
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        if let Some((client, server)) = self.ends.take() {
            client.abort();
            server.abort();
        }
    }
}

/// Why a connection ends before both ends wanted.
enum Broken {
    End(Side),
    /// Too much waits for readers.
    Overfull,
}

/// Why a direction ends before its source does.
enum Failed {
    Source,
    Sink,
    /// Neither broke, but too much waits for sinks.
    Overfull,
}

impl Failed {
    fn of(self, is_down: bool) -> Broken {
        match (self, is_down) {
            (Failed::Source, false) | (Failed::Sink, true) => Broken::End(Side::Client),
            (Failed::Source, true) | (Failed::Sink, false) => Broken::End(Side::Server),
            (Failed::Overfull, _) => Broken::Overfull,
        }
    }
}

/// One direction of a connection.
struct Direction {
    pending: Bytes,
    read_size: ReadSize,
    moved: u64,
    phase: Phase,
    /// While the sink takes nothing: for what waits here, and what the source may still send.
    waiting: Option<Permit>,
    turn: Turn,
}

enum Phase {
    Moving,
    Ending,
    Ended,
}

impl Direction {
    fn starting_with(pending: Bytes) -> Self {
        let moved = pending.len() as u64;
        Self {
            pending,
            read_size: ReadSize::default(),
            moved,
            phase: Phase::Moving,
            waiting: None,
            turn: Turn::default(),
        }
    }

    /// How much of what was read the sink has taken.
    fn written(&self) -> u64 {
        self.moved - self.pending.len() as u64
    }

    /// Ready once the source ended and the sink was told so.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
        buffered: &Arc<Share>,
    ) -> Poll<Result<(), Failed>> {
        loop {
            match self.phase {
                Phase::Moving => {
                    ready!(self.poll_move(cx, source, sink, buffered))?;
                    self.phase = Phase::Ending;
                }
                Phase::Ending => {
                    let ended = ready!(Pin::new(&mut *sink).poll_shutdown(cx));
                    // A sink that is gone already is the other direction's to notice.
                    if ended.is_err_and(|error| error.kind() != io::ErrorKind::NotConnected) {
                        return Poll::Ready(Err(Failed::Sink));
                    }
                    self.phase = Phase::Ended;
                }
                Phase::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Ready at the end of the source, with everything written.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
        buffered: &Arc<Share>,
    ) -> Poll<Result<(), Failed>> {
        loop {
            while !self.pending.is_empty() {
                let Poll::Ready(written) = sink.poll_write_bytes(cx, &mut self.pending) else {
                    self.turn.rest();
                    return self.wait(source, buffered);
                };
                written.map_err(|_| Failed::Sink)?;
            }
            self.waiting = None;
            ready!(self.turn.poll_mine(cx));
            let Poll::Ready(read) = source.poll_read_bytes(cx, &mut self.read_size) else {
                self.turn.rest();
                return Poll::Pending;
            };
            self.pending = read.map_err(|_| Failed::Source)?;
            if self.pending.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.moved += self.pending.len() as u64;
            self.turn.moved(self.pending.len());
        }
    }
}

impl Direction {
    /// Waits for the sink, which takes nothing now. Only then does a connection cost memory for
    /// as long as somebody else likes: what was read, and the window that the source has to fill.
    fn wait(&mut self, source: &Io, buffered: &Arc<Share>) -> Poll<Result<(), Failed>> {
        if self.waiting.is_none() {
            let most = self.pending.len() + source.window();
            self.waiting = buffered.take(most as u64);
            if self.waiting.is_none() {
                return Poll::Ready(Err(Failed::Overfull));
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::limits::Budget;

    async fn pair() -> (TcpStream, TcpStream) {
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
            relay(Io::Tcp(near), Io::Tcp(far), early, &buffered, std::future::pending()).await
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
        super::super::io::reset(&server);
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
        let early =
            Early { from_client: "PI".into(), broke: Some(Side::Client), ..Early::default() };
        let Bench { client, mut server, relay } = bench(early).await;
        super::super::io::reset(&client);
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
        let Bench { mut client, server, relay } =
            bench_with(Early::default(), Budget::new(512)).await;
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
}
