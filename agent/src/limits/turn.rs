//! Processor time, shared by taking turns.

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// What one direction of a connection moves before it is another's turn, if anybody is in line: some
/// ten microseconds. tokio alone lets a task go on for 128 reads, which are 8 MiB here.
const TURN: usize = 64 << 10;
/// A turn of someone who has little to move lasts longer.
const BUSY: Duration = Duration::from_millis(20);

/// Those whose turn it is. A task that waits for a processor waits for all that came before it:
/// with hundreds that have all they like to move, whoever has a small request would wait for a turn
/// of each of them, at every task that the request passes. So no more of those are ready to run than
/// keep their thread busy, one that runs and one that is ready when it is through; the others are in
/// line here.
const TURNS: usize = 2;

thread_local! {
    static LINE: Arc<Semaphore> = Arc::new(Semaphore::new(TURNS));
}

/// The turn of one direction of a connection.
#[derive(Debug)]
pub struct Turn {
    left: usize,
    began: Instant,
    /// Whoever takes longer has little to move, and does not stand in line.
    busy: Duration,
    line: PollSemaphore,
    in_line: bool,
    /// The place of one that is busy and has something to move.
    place: Option<OwnedSemaphorePermit>,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            left: TURN,
            began: Instant::now(),
            busy: BUSY,
            line: PollSemaphore::new(LINE.with(Arc::clone)),
            in_line: false,
            place: None,
        }
    }
}

impl Turn {
    /// Pending once it is over and others are in line, until it is this one's again. Who got that
    /// must ask again when it is woken, or be dropped: others may be in line behind it.
    pub fn poll_mine(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.left > 0 {
            return Poll::Ready(());
        }
        let now = Instant::now();
        if self.in_line || now.duration_since(self.began) < self.busy {
            // For whoever is first in line, if anybody is: this one is the last then.
            self.place = None;
            self.in_line = true;
            // Never closed.
            self.place = ready!(self.line.poll_acquire(cx));
            self.in_line = false;
        }
        (self.left, self.began) = (TURN, now);
        Poll::Ready(())
    }

    /// `bytes` were moved.
    pub fn moved(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// There is nothing to move for now.
    pub fn rest(&mut self) {
        self.place = None;
    }
}

/// A pause after each turn, in which others go first, but no line: for those that somebody else may
/// leave waiting, who must not keep a place in it meanwhile.
#[derive(Debug)]
pub struct Pause {
    left: usize,
}

impl Default for Pause {
    fn default() -> Self {
        Self { left: TURN }
    }
}

impl Pause {
    /// Pending once where a turn is over.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.left > 0 {
            return Poll::Ready(());
        }
        self.left = TURN;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// `bytes` were moved.
    pub fn moved(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}

/// Runs `work`, each step of which takes a processor for long, in turn with others: whenever it can
/// go on, it waits in line first.
pub async fn in_turn<F: Future>(work: F) -> F::Output {
    let mut work = pin!(work);
    let mut turn = Turn { busy: Duration::MAX, ..Turn::default() };
    poll_fn(|cx| {
        ready!(turn.poll_mine(cx));
        turn.moved(TURN);
        let done = work.as_mut().poll(cx);
        turn.rest();
        done
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[tokio::test]
    async fn work_goes_on_whenever_it_is_woken() {
        let slow = async {
            for _ in 0..3 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                tokio::task::yield_now().await;
            }
            "done"
        };
        assert_eq!(in_turn(slow).await, "done");
    }

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

    /// Lets everybody go first who is ready. What tokio has for that comes back sooner.
    async fn behind_all_others() {
        let mut waited = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
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
        let most = tokio::spawn(async move {
            // All of them have had the first of their turns.
            behind_all_others().await;
            let (mut before, mut most) = (moved.load(Relaxed), 0);
            while before < FLOWS * PIECES {
                behind_all_others().await;
                let now = moved.load(Relaxed);
                most = most.max(now - before);
                before = now;
            }
            most
        });
        let most = most.await.unwrap();
        assert!(most < FLOWS / 2, "{most} turns of others before one's own");
        for flow in flows {
            flow.await.unwrap();
        }
    }
}
