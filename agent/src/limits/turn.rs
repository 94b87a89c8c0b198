//! Processor time, shared by taking turns.

use std::{
    sync::{Arc, LazyLock},
    task::{Context, Poll, ready},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// What one direction of a connection moves before it is another's turn: some ten microseconds.
/// tokio alone lets a task go on for 128 reads, which are 8 MiB here.
const TURN: usize = 64 << 10;

/// Those whose turn it is. A task that waits for a processor waits for all that came before it:
/// with hundreds that have all they like to move, whoever has a small request would wait for a turn
/// of each of them, at every task that the request passes. So no more of those are ready to run than
/// keep all processors busy; the others are in line here, and whoever moves little never is.
static TURNS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    // One that runs, and one that is ready when it is through.
    Arc::new(Semaphore::new(2 * processors))
});

/// The turn of one direction of a connection.
#[derive(Debug)]
pub struct Turn {
    left: usize,
    line: PollSemaphore,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Moving,
    InLine,
    /// First in line at once, but others that are ready go first.
    Next(#[expect(dead_code, reason = "held for the sake of being dropped")] OwnedSemaphorePermit),
}

impl Default for Turn {
    fn default() -> Self {
        Self { left: TURN, line: PollSemaphore::new(TURNS.clone()), phase: Phase::Moving }
    }
}

impl Turn {
    /// Pending once it is over, until it is this one's again. Who got that must ask again when it is
    /// woken, or be dropped: others may be in line behind it.
    pub fn poll_mine(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.left > 0 {
            return Poll::Ready(());
        }
        if !matches!(self.phase, Phase::Next(_)) {
            let has_waited = matches!(self.phase, Phase::InLine);
            self.phase = Phase::InLine;
            // Never closed.
            let place = ready!(self.line.poll_acquire(cx));
            if let (Some(place), false) = (place, has_waited) {
                self.phase = Phase::Next(place);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        self.phase = Phase::Moving;
        self.left = TURN;
        Poll::Ready(())
    }

    /// `bytes` were moved.
    pub fn moved(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use super::*;

    /// Moves `pieces` as fast as it gets turns, and counts those in `moved`.
    async fn eager(pieces: usize, moved: Arc<AtomicUsize>) {
        let (mut turn, mut left) = (Turn::default(), pieces);
        poll_fn(|cx| {
            while left > 0 {
                ready!(turn.poll_mine(cx));
                turn.moved(TURN);
                moved.fetch_add(1, Relaxed);
                left -= 1;
            }
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn whoever_is_ready_waits_for_few_of_those_who_have_much_to_move() {
        const FLOWS: usize = 1000;
        const PIECES: usize = 20;
        let moved = Arc::new(AtomicUsize::new(0));
        let flows: Vec<_> =
            (0..FLOWS).map(|_| tokio::spawn(eager(PIECES, moved.clone()))).collect();
        // All of them have had the first of their turns.
        tokio::task::yield_now().await;
        let mut before = moved.load(Relaxed);
        let mut most = 0;
        while before < FLOWS * PIECES {
            tokio::task::yield_now().await;
            let now = moved.load(Relaxed);
            most = most.max(now - before);
            before = now;
        }
        assert!(most < FLOWS / 2, "{most} turns of others before one's own");
        for flow in flows {
            flow.await.unwrap();
        }
    }
}
