//! What the servers answer with.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body::{Frame, SizeHint};

/// An answer to a request.
pub type Answer = Response<Body>;

/// The body of an answer.
pub enum Body {
    /// As it is; `None` when it has been taken.
    Whole(Option<Bytes>),
    /// In pieces, each made when there is room for it: however long it gets, no more than one is
    /// in memory.
    Pieces(Box<dyn Iterator<Item = String> + Send>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match self.get_mut() {
            Self::Whole(body) => body.take(),
            Self::Pieces(pieces) => pieces.next().map(Bytes::from),
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => SizeHint::with_exact(body.as_ref().map_or(0, Bytes::len) as u64),
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}

/// An answer in JSON.
pub fn json(body: String) -> Answer {
    whole(StatusCode::OK, "application/json", body)
}

/// A plain-text answer.
pub fn text(status: StatusCode, body: impl Into<String>) -> Answer {
    whole(status, "text/plain; charset=utf-8", body.into())
}

/// An answer in the text format of OpenMetrics.
pub fn openmetrics(pieces: impl Iterator<Item = String> + Send + 'static) -> Answer {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    typed(StatusCode::OK, content_type, Body::Pieces(Box::new(pieces)))
}

fn whole(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    typed(status, content_type, Body::Whole(Some(body.into())))
}

fn typed(status: StatusCode, content_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
