//! Bytes of a body that are on their way out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;

use crate::limits::Permit;

/// Bytes of a body that go on, counted until they are written or given up.
#[derive(Debug, Default)]
pub(super) struct Piece {
    bytes: Bytes,
    _held: Option<Permit>,
    _under_way: Option<UnderWay>,
}

impl Piece {
    /// Of what somebody sent; it counts as much as `held` says.
    pub(super) fn new(bytes: Bytes, held: Permit, unwritten: &Unwritten) -> Self {
        Self { bytes, _held: Some(held), _under_way: Some(unwritten.one_more()) }
    }
}

impl From<Bytes> for Piece {
    /// Of the agent's own.
    fn from(bytes: Bytes) -> Self {
        Self { bytes, ..Self::default() }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// The pieces of one body that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Unwritten(Arc<State>);

#[derive(Debug, Default)]
struct State {
    pieces: AtomicUsize,
    waker: AtomicWaker,
}

#[derive(Debug)]
struct UnderWay(Arc<State>);

impl Unwritten {
    fn one_more(&self) -> UnderWay {
        self.0.pieces.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.0.clone())
    }

    /// Ready once there are none.
    pub(super) fn poll_none(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.waker.register(cx.waker());
        match self.0.pieces.load(Ordering::Acquire) {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.0.pieces.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.waker.wake();
        }
    }
}
