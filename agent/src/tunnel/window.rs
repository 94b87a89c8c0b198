//! How much of each stream may arrive before its reader takes it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::Context,
};

use h2::{FlowControl, RecvStream};
use slab::Slab;

use super::limits::{FEW, FEW_CONNECTIONS, LARGEST_WINDOW, SMALLEST_WINDOW};

/// The window of each stream of one connection. Clones are of one connection.
#[derive(Clone, Debug)]
pub(super) struct Window(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    now: AtomicU32,
    /// The largest it may be.
    most: u32,
    /// The peer was told of a smaller one, and has not confirmed it yet.
    shrinks: AtomicBool,
    /// The peer could not be told of another yet.
    again: AtomicBool,
    streams: Mutex<Slab<Stream>>,
}

/// What arrives on one stream.
#[derive(Debug)]
struct Stream {
    flow: FlowControl,
    /// The largest window it has had.
    most: u32,
    /// Its reader stands still, and was told how much may come meanwhile.
    stands: bool,
}

/// Whoever takes what arrives on one stream, until it is dropped.
#[derive(Debug)]
pub(super) struct Reader {
    window: Window,
    key: usize,
    stands: AtomicBool,
}

impl Window {
    /// That of a new connection of a pod that has `connections` with it.
    pub(super) fn new(connections: usize) -> Self {
        let few = connections <= FEW_CONNECTIONS;
        let most = if few { LARGEST_WINDOW } else { SMALLEST_WINDOW };
        Self(Arc::new(Shared {
            now: AtomicU32::new(most),
            most,
            shrinks: AtomicBool::new(false),
            again: AtomicBool::new(false),
            streams: Mutex::default(),
        }))
    }

    /// What the peer is to send on a stream that is opened now.
    pub(super) fn now(&self) -> u32 {
        self.0.now.load(Relaxed)
    }

    /// What it may send on a stream that has come: it may not have heard of a smaller one.
    pub(super) fn unasked(&self) -> u32 {
        if self.0.shrinks.load(Relaxed) { self.0.most } else { self.now() }
    }

    /// Makes it what it should be now that there are `count` streams. `tell` says it to the peer, which
    /// h2 refuses until the last change was confirmed; then it is tried again.
    ///
    /// It becomes smaller with many, and larger again with a few unless one of their readers stands
    /// still: that one was told how much may come, and keeps room for it.
    pub(super) fn adjust(&self, count: usize, tell: impl FnOnce(u32) -> bool) {
        let wanted = if count <= FEW { LARGEST_WINDOW } else { SMALLEST_WINDOW };
        let (wanted, now) = (wanted.min(self.0.most), self.now());
        if wanted == now || wanted > now && count > FEW / 2 {
            return;
        }
        let mut streams = self.streams();
        let larger = wanted > now;
        if larger && streams.iter().any(|(_, stream)| stream.stands) {
            return;
        }
        if !tell(wanted) {
            self.0.again.store(true, Relaxed);
            return;
        }
        self.0.now.store(wanted, Relaxed);
        if larger {
            streams.iter_mut().for_each(|(_, stream)| stream.most = wanted);
        } else {
            self.0.shrinks.store(true, Relaxed);
        }
    }

    /// A reader of what arrives on a stream, on which the peer may have `most` under way already.
    pub(super) fn reader(&self, stream: &mut RecvStream, most: u32) -> Reader {
        let flow = stream.flow_control().clone();
        let mut streams = self.streams();
        let most = most.max(self.now());
        let key = streams.insert(Stream { flow, most, stands: false });
        Reader { window: self.clone(), key, stands: AtomicBool::new(false) }
    }

    /// Called by the task that drives the connection, of `count` streams, whenever h2 has taken all that
    /// has come. Does what `adjust` could not. After a smaller window, `tell` says it to the peer once
    /// more, which h2 refuses until it was confirmed.
    ///
    /// h2 gives a window back once its reader has taken half of what is left of it, and looks at that
    /// when more is taken, not when the window becomes smaller. A sender may then have nothing left,
    /// with nothing under way that could be taken, and would stand still for ever. So h2 is made to
    /// look at each stream once more.
    pub(super) fn driven(&self, cx: &Context<'_>, count: usize, mut tell: impl FnMut(u32) -> bool) {
        let mut told = false;
        if self.0.again.swap(false, Relaxed) {
            self.adjust(count, |next| {
                told = tell(next);
                told
            });
        } else if self.0.shrinks.load(Relaxed) && tell(self.now()) {
            told = true;
            self.0.shrinks.store(false, Relaxed);
            let now = self.now();
            for (_, stream) in self.streams().iter_mut() {
                // Fails only for more than has been taken.
                let _ = stream.flow.release_capacity(0);
                if !stream.stands {
                    let unread = stream.flow.used_capacity().try_into().unwrap_or(u32::MAX);
                    stream.most = now.max(unread);
                }
            }
        }
        if told {
            // For what was said to the peer just now, and what h2 has found.
            cx.waker().wake_by_ref();
        }
    }

    fn streams(&self) -> MutexGuard<'_, Slab<Stream>> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// How much may come while nothing is read. It does not become more until something is.
    pub(super) fn stands(&self) -> u32 {
        self.stands.store(true, Relaxed);
        let mut streams = self.window.streams();
        let stream = &mut streams[self.key];
        stream.stands = true;
        stream.most
    }

    /// Something is read.
    pub(super) fn reads(&self) {
        if self.stands.load(Relaxed) {
            self.stands.store(false, Relaxed);
            self.window.streams()[self.key].stands = false;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.window.streams().remove(self.key);
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
                window.adjust(streams, |_| true);
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
    fn a_window_shrinks_with_many_streams_and_grows_when_there_are_few() {
        let window = Window::new(1);
        held_by_all(&window);
        assert_eq!(window.now(), SMALLEST_WINDOW);
        for (count, then) in
            [(FEW, SMALLEST_WINDOW), (FEW / 2, LARGEST_WINDOW), (FEW, LARGEST_WINDOW)]
        {
            window.adjust(count, |_| true);
            assert_eq!(window.now(), then, "{count} streams");
        }
    }

    #[test]
    fn what_the_peer_cannot_be_told_is_tried_again() {
        let window = Window::new(1);
        window.adjust(FEW + 1, |_| false);
        assert_eq!(window.now(), LARGEST_WINDOW);
        window.adjust(FEW + 1, |next| next == SMALLEST_WINDOW);
        assert_eq!(window.now(), SMALLEST_WINDOW);
    }
}
