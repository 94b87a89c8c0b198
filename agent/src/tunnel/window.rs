//! How much of each stream may arrive before its reader takes it.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use super::limits::{FEW, FEW_CONNECTIONS, LARGEST_WINDOW, SMALLEST_WINDOW};

/// The window of each stream of one connection. Clones are of one connection.
#[derive(Clone, Debug)]
pub(super) struct Window {
    now: Arc<AtomicU32>,
    /// The largest it may be.
    most: u32,
}

impl Window {
    /// That of a new connection of a pod that has `connections` with it.
    pub(super) fn new(connections: usize) -> Self {
        let few = connections <= FEW_CONNECTIONS;
        let most = if few { LARGEST_WINDOW } else { SMALLEST_WINDOW };
        Self { now: Arc::new(AtomicU32::new(most)), most }
    }

    /// What a stream may have under way that is opened now. It never gets more.
    pub(super) fn now(&self) -> u32 {
        self.now.load(Relaxed)
    }

    /// What to tell the peer, now that there are `streams`, the newest included. It becomes less
    /// with every stream, and more only when there is none from before: so what a stream may hold
    /// is what it could when it was opened.
    pub(super) fn next(&self, streams: usize) -> Option<u32> {
        let wanted = if streams <= FEW { LARGEST_WINDOW } else { SMALLEST_WINDOW };
        let (wanted, now) = (wanted.min(self.most), self.now());
        (wanted < now || streams <= 1 && wanted > now).then_some(wanted)
    }

    /// The peer was told.
    pub(super) fn set(&self, window: u32) {
        self.now.store(window, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::limits::{CONNECTION_WINDOW, STREAMS},
        *,
    };

    /// What all streams together may hold, each opened when the others were there.
    fn held_by_all(window: &Window) -> u32 {
        (1..=STREAMS as usize)
            .map(|streams| {
                if let Some(next) = window.next(streams) {
                    window.set(next);
                }
                window.now()
            })
            .sum()
    }

    #[test]
    fn streams_that_stand_still_never_fill_the_connections_window() {
        for connections in [1, 33, 1000] {
            assert!(held_by_all(&Window::new(connections)) < CONNECTION_WINDOW);
        }
    }

    #[test]
    fn a_window_shrinks_with_more_streams_and_grows_when_there_are_none_left() {
        let window = Window::new(1);
        assert_eq!((window.now(), window.next(1)), (LARGEST_WINDOW, None));
        held_by_all(&window);
        assert_eq!((window.now(), window.next(2)), (SMALLEST_WINDOW, None));
        assert_eq!(window.next(1), Some(LARGEST_WINDOW));
    }
}
