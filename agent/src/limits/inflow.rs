//! What one connection brings that its readers have not taken.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Permit, Share};

/// The least that a piece counts: it may hold the whole buffer it was read into.
const SMALLEST_PIECE: u64 = 8 << 10;

/// A connection that messages come from, each for a reader of its own. It holds memory for as long
/// as a reader is behind: what waits on its way out, and the window that the other end may fill
/// meanwhile. Of one whose readers keep up nothing is counted between two pieces.
#[derive(Debug)]
pub struct Inflow {
    share: Arc<Share>,
    window: u64,
    /// So many windows fill the connection's own.
    most: usize,
    behind: Mutex<Readers>,
}

/// Those that are behind, and what is held for them.
#[derive(Debug, Default)]
struct Readers {
    count: usize,
    windows: Vec<Permit>,
}

/// A reader that is behind, until this is dropped.
#[derive(Debug)]
pub struct Behind(Arc<Inflow>);

impl Inflow {
    /// Counted in `share`. Each message may bring `window` unread bytes, all together `together`.
    pub fn new(share: &Arc<Share>, window: u32, together: u32) -> Arc<Self> {
        let most = together.div_ceil(window).max(1) as usize;
        Arc::new(Self {
            share: share.clone(),
            window: window.into(),
            most,
            behind: Mutex::default(),
        })
    }

    /// One more reader is behind. `None` beyond the limit.
    pub fn behind(self: &Arc<Self>) -> Option<Behind> {
        // The lock is one connection's.
        let mut readers = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.windows.len() < self.most {
            readers.windows.push(self.share.take(self.window)?);
        }
        readers.count += 1;
        Some(Behind(self.clone()))
    }

    /// For `bytes` that go on to a reader, until they are written. `None` beyond the limit.
    pub fn piece(&self, bytes: usize) -> Option<Permit> {
        self.share.take(SMALLEST_PIECE.max(bytes as u64))
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        let mut readers = self.0.behind.lock().unwrap_or_else(PoisonError::into_inner);
        readers.count -= 1;
        let count = readers.count;
        readers.windows.truncate(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Budget;

    const WINDOW: u32 = 64 << 10;

    #[test]
    fn readers_that_are_behind_hold_their_windows_up_to_the_connections() {
        let budget = Budget::new(128 << 20);
        let inflow = Inflow::new(&budget.share(), WINDOW, 4 * WINDOW);
        let mut behind: Vec<_> = (0..100).map(|_| inflow.behind().unwrap()).collect();
        assert_eq!(budget.used(), 4 * u64::from(WINDOW));
        behind.truncate(2);
        assert_eq!(budget.used(), 2 * u64::from(WINDOW));
        behind.clear();
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_small_piece_counts_as_the_buffer_it_may_hold() {
        let budget = Budget::new(128 << 20);
        let inflow = Inflow::new(&budget.share(), WINDOW, WINDOW);
        let (small, large) = (inflow.piece(1), inflow.piece(1 << 20));
        assert_eq!(budget.used(), SMALLEST_PIECE + (1 << 20));
        drop((small, large));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn whoever_is_behind_when_nothing_is_left_is_told_so_and_holds_nothing() {
        let budget = Budget::new(u64::from(WINDOW) - 1);
        let inflow = Inflow::new(&budget.share(), WINDOW, WINDOW);
        assert!(inflow.behind().is_none());
        assert!(inflow.piece(WINDOW as usize).is_none());
        assert_eq!(budget.used(), 0);
    }
}
