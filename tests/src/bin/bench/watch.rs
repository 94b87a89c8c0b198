//! Notices exchanges that hang.
//!
//! A timer for each would cost about as much as the exchange itself: clients note when one begins and
//! when it is over, and whoever waits for the clients looks at the notes now and then.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::net::TcpStream;

/// How long anything may go without a move.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// What a round's clients are at.
pub(crate) struct Watch {
    began: Instant,
    lines: Vec<Notes>,
}

/// Of one client, in a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Notes {
    /// Microseconds from the round's beginning to the last move, and 1; 0 while nothing is awaited.
    since: AtomicU64,
    exchanges: AtomicU64,
    ends: Mutex<Option<(SocketAddr, SocketAddr)>>,
}

/// One client's place to note what it is at.
#[derive(Clone)]
pub(crate) struct Line {
    watch: Arc<Watch>,
    number: usize,
}

impl Watch {
    pub(crate) fn of(clients: usize) -> Arc<Self> {
        let lines = (0..clients).map(|_| Notes::default()).collect();
        Arc::new(Self { began: Instant::now(), lines })
    }

    pub(crate) fn line(self: &Arc<Self>, number: usize) -> Line {
        Line { watch: self.clone(), number }
    }

    /// What has not moved for too long, in words.
    pub(crate) fn stalled(&self) -> Option<String> {
        let now = self.began.elapsed();
        let hangs = |notes: &Notes| match notes.since.load(Relaxed) {
            0 => false,
            since => now.saturating_sub(Duration::from_micros(since)) > BOUND,
        };
        let number = self.lines.iter().position(hangs)?;
        Some(format!("{}: no move for {BOUND:?}", self.describe(number)))
    }

    fn describe(&self, number: usize) -> String {
        let notes = &self.lines[number];
        let ends = *notes.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = match ends {
            Some((from, to)) => format!("from {from} to {to}"),
            None => "not connected".to_owned(),
        };
        format!("client {number}, {ends}, exchange {}", notes.exchanges.load(Relaxed))
    }
}

impl Line {
    fn notes(&self) -> &Notes {
        &self.watch.lines[self.number]
    }

    /// Notes the connection that the exchanges are on.
    pub(crate) fn is_on(&self, stream: &TcpStream) {
        let ends = stream.local_addr().and_then(|local| Ok((local, stream.peer_addr()?)));
        *self.notes().ends.lock().unwrap_or_else(PoisonError::into_inner) = ends.ok();
    }

    /// An exchange begins.
    pub(crate) fn begin(&self) -> Instant {
        let notes = self.notes();
        // This line alone writes there.
        notes.exchanges.store(notes.exchanges.load(Relaxed) + 1, Relaxed);
        self.moved()
    }

    /// Something of it came or went.
    pub(crate) fn moved(&self) -> Instant {
        let now = Instant::now();
        let since = (now - self.watch.began).as_micros() as u64 + 1;
        self.notes().since.store(since, Relaxed);
        now
    }

    /// It is over.
    pub(crate) fn end(&self) -> Instant {
        self.notes().since.store(0, Relaxed);
        Instant::now()
    }

    /// `error`, with what it happened to.
    pub(crate) fn failed(&self, error: impl Into<anyhow::Error>) -> anyhow::Error {
        error.into().context(self.watch.describe(self.number))
    }
}
