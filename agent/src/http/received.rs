//! A body as a connection brings it, and what of it waits.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use crate::limits::{Behind, Inflow, Limit, Pause, Permit};

/// A body of so few bytes is in the buffer that its head was read into, which costs as much without.
const SMALL: u64 = 8 << 10;

/// Bytes of a body that go on, counted until they are written.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    _held: Option<Permit>,
}

impl From<Bytes> for Piece {
    /// Bytes of the agent's own.
    fn from(bytes: Bytes) -> Self {
        Self { bytes, _held: None }
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

/// Why a body broke off.
#[derive(Debug)]
pub enum BodyError {
    /// The connection it came on.
    Broken(hyper::Error),
    /// More waits for readers of one pod than may.
    Overfull,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => error.fmt(f),
            Self::Overfull => Limit::Buffered.fmt(f),
        }
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Broken(error) => Some(error),
            Self::Overfull => None,
        }
    }
}

/// A body that is not empty. Its reader is behind from when it is handed over until it has asked for
/// more than there is. Meanwhile the connection may fill a window; with a small body it cannot.
pub(super) struct Received {
    /// `None` when too much waits already: then it is not even kept.
    incoming: Option<Incoming>,
    inflow: Arc<Inflow>,
    behind: Option<Behind>,
    /// Not a turn in line: a peer that takes its window back keeps hyper from asking again.
    pause: Pause,
}

impl Received {
    pub(super) fn new(incoming: Incoming, inflow: &Arc<Inflow>) -> Self {
        let (inflow, pause) = (inflow.clone(), Pause::default());
        let mut this = Self { incoming: None, inflow, behind: None, pause };
        let small = incoming.size_hint().upper().is_some_and(|most| most <= SMALL);
        if small || this.fall_behind().is_some() {
            this.incoming = Some(incoming);
        }
        this
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(Some(Err(BodyError::Overfull)));
        };
        ready!(self.pause.poll_over(cx));
        let Poll::Ready(frame) = Pin::new(incoming).poll_frame(cx) else {
            self.behind = None;
            return Poll::Pending;
        };
        Poll::Ready(frame.map(|frame| self.counted(frame.map_err(BodyError::Broken)?)))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_some_and(Incoming::is_end_stream)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }

    fn counted(&mut self, frame: Frame<Bytes>) -> Result<Frame<Piece>, BodyError> {
        let bytes = match frame.into_data() {
            Ok(bytes) => bytes,
            Err(frame) => return Ok(frame.map_data(Piece::from)),
        };
        self.pause.moved(bytes.len());
        let held = self.inflow.piece(bytes.len());
        let is_last = self.is_end_stream();
        if held.is_none() || !is_last && self.fall_behind().is_none() {
            self.incoming = None;
            return Err(BodyError::Overfull);
        }
        if is_last {
            self.behind = None;
        }
        Ok(Frame::data(Piece { bytes, _held: held }))
    }

    fn fall_behind(&mut self) -> Option<()> {
        if self.behind.is_none() {
            self.behind = Some(self.inflow.behind()?);
        }
        Some(())
    }
}
