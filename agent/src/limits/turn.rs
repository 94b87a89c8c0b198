//! Processor time, shared by taking turns.

use std::task::{Context, Poll};

/// What one direction of a connection moves before it is somebody else's turn: some ten
/// microseconds. tokio lets a task go on for 128 reads, which are 8 MiB here: with hundreds of
/// connections that have all they like to send, whoever has a small request waited for seconds.
const TURN: usize = 64 << 10;

/// The turn of one direction of a connection.
#[derive(Debug)]
pub struct Turn(usize);

impl Default for Turn {
    fn default() -> Self {
        Self(TURN)
    }
}

impl Turn {
    /// Pending once it is over, until all other tasks that are ready had theirs.
    pub fn poll_mine(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.0 > 0 {
            return Poll::Ready(());
        }
        *self = Self::default();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// `bytes` were moved.
    pub fn moved(&mut self, bytes: usize) {
        self.0 = self.0.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::ready};

    use super::*;

    /// Moves `pieces` as fast as it gets turns.
    async fn eager(pieces: usize) {
        let (mut turn, mut left) = (Turn::default(), pieces);
        poll_fn(|cx| {
            while left > 0 {
                ready!(turn.poll_mine(cx));
                turn.moved(TURN / 2);
                left -= 1;
            }
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn who_has_much_to_move_lets_others_go_between() {
        let much = tokio::spawn(eager(100));
        for turns in 1..=49 {
            tokio::task::yield_now().await;
            assert!(!much.is_finished(), "after {turns} turns");
        }
        much.await.unwrap();
    }
}
