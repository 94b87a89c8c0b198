//! The body of a message on its way through, and those who watch it pass.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::received::{BodyError, Piece, Received};
use crate::limits::Inflow;

/// A streamed body. Frames pass untouched; [`Tap`]s see each of them.
///
/// On one node a request passes the client's and the server's side in one process, so a body
/// can carry the taps of both.
#[derive(Default)]
pub struct Body {
    source: Source,
    taps: Vec<Box<dyn Tap>>,
}

/// Watches a body pass. Dropped when the body is done or given up.
pub trait Tap: Send + Sync {
    /// `bytes` of data passed.
    fn data(&mut self, bytes: usize);
    /// The trailers passed; the body is complete.
    fn trailers(&mut self, _trailers: &HeaderMap) {}
    /// The body ended as it should.
    fn complete(&mut self) {}
    /// The body broke off.
    fn broken(&mut self, _error: &BodyError) {}
}

#[derive(Default)]
enum Source {
    #[default]
    Empty,
    Full(Bytes),
    Received(Received),
}

impl Body {
    /// A body held in memory.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { source: Source::Full(bytes.into()), taps: Vec::new() }
    }

    /// A body that a connection brings.
    pub(super) fn received(incoming: Incoming, inflow: &Arc<Inflow>) -> Self {
        let source = match incoming.is_end_stream() {
            true => Source::Empty,
            false => Source::Received(Received::new(incoming, inflow)),
        };
        Self { source, taps: Vec::new() }
    }

    /// Adds a tap that sees every frame from here on.
    pub fn tapped(mut self, tap: impl Tap + 'static) -> Self {
        self.taps.push(Box::new(tap));
        self
    }

    fn seen(&mut self, frame: Option<&Result<Frame<Piece>, BodyError>>) {
        for tap in &mut self.taps {
            match frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        tap.data(data.remaining());
                    } else if let Some(trailers) = frame.trailers_ref() {
                        tap.trailers(trailers);
                    }
                }
                Some(Err(error)) => tap.broken(error),
                None => tap.complete(),
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Empty => None,
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.source = Source::Empty;
                Some(Ok(Frame::data(bytes.into())))
            }
            Source::Received(received) => std::task::ready!(received.poll_frame(cx)),
        };
        this.seen(frame.as_ref());
        // Nothing follows trailers, and whoever sent them on need not poll again.
        let is_last = |frame: &Result<Frame<Piece>, BodyError>| {
            frame.as_ref().map_or(true, Frame::is_trailers)
        };
        if frame.as_ref().is_none_or(is_last) || this.source.is_end_stream() {
            if matches!(frame, Some(Ok(_))) {
                this.seen(None);
            }
            // Whoever polls may keep an ended body around; the taps' work is done now.
            this.taps.clear();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Received(received) => received.size_hint(),
        }
    }
}

impl Drop for Body {
    /// A body that had nothing to send is never polled: it is complete all the same.
    fn drop(&mut self) {
        if self.source.is_end_stream() && !self.taps.is_empty() {
            self.seen(None);
        }
    }
}

impl Source {
    fn is_end_stream(&self) -> bool {
        match self {
            Source::Empty => true,
            Source::Full(bytes) => bytes.is_empty(),
            Source::Received(received) => received.is_end_stream(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::BodyExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl Tap for Log {
        fn data(&mut self, bytes: usize) {
            self.0.lock().unwrap().push(format!("{bytes} bytes"));
        }
        fn complete(&mut self) {
            self.0.lock().unwrap().push("complete".into());
        }
    }

    #[tokio::test]
    async fn a_tap_sees_the_bytes_and_one_end() {
        let log = Log::default();
        let body = Body::full("hello").tapped(log.clone());
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
        assert_eq!(*log.0.lock().unwrap(), ["5 bytes", "complete"]);
    }

    #[test]
    fn an_empty_body_that_nobody_polls_is_complete() {
        let log = Log::default();
        drop(Body::default().tapped(log.clone()));
        assert_eq!(*log.0.lock().unwrap(), ["complete"]);
    }

    #[test]
    fn a_body_dropped_half_way_is_not_complete() {
        let log = Log::default();
        drop(Body::full("hello").tapped(log.clone()));
        assert!(log.0.lock().unwrap().is_empty());
    }
}
