//! What decides about requests: written once, for both versions of HTTP.

use std::{error::Error, fmt, future::Future, io};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::io::{AsyncRead, AsyncWrite};

use super::message::{AnyRequest, AnyResponse, Fields};

/// What becomes of the requests of one connection.
pub trait Handler: Send + Sync {
    /// Where one of them goes.
    type Route: Route;

    /// Judges a request, whose head it may change. An error is what the client is answered.
    fn route(
        &self,
        request: &mut (impl AnyRequest + Send),
    ) -> impl Future<Output = Result<Self::Route, Answer>> + Send;

    /// Notes that bytes came that are no request, and were answered with `status`.
    fn malformed(&self, status: u16, why: &dyn fmt::Display);
}

/// Is told what passes of one request and its response.
pub trait Watch {
    /// An interim response (RFC 9110 §15.2) goes on.
    fn interim(&mut self, _head: &impl AnyResponse) {}
    /// The response, which may be changed before it goes on.
    fn response(&mut self, head: &mut impl AnyResponse);
    /// As many bytes of the request's content have gone on.
    fn sent(&mut self, bytes: usize);
    /// As many bytes of the response's content have gone on.
    fn received(&mut self, bytes: usize);
    /// The response's trailers go on.
    fn trailers(&mut self, _trailers: &impl Fields) {}
}

/// Where one request goes. Dropped before it is [finished](Self::finish), the client or the agent
/// itself has given up on it.
pub trait Route: Watch + Send + Sized {
    /// A connection to a server.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;
    /// What requests that may share a connection have in common.
    type Key: Clone + PartialEq + Send;

    /// What requests that may share a connection with this one have in common with it.
    fn key(&self) -> Self::Key;

    /// Makes a connection. An error is what the client is answered.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Stream, Answer>> + Send;

    /// What the client is answered where no server was heard of.
    fn unanswered(&mut self, ended: &Ended) -> Answer;

    /// The exchange has ended.
    fn finish(self, ended: &Ended);
}

/// A response of the agent's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Such as 503.
    pub status: u16,
    /// Plain text for whoever asked; says nothing about the mesh to strangers.
    pub text: String,
    /// More fields than what the text is. None of them is about how the answer is framed.
    pub fields: Option<Box<HeaderMap>>,
}

impl Answer {
    /// With no more fields than there have to be.
    pub fn new(status: u16, text: String) -> Self {
        Self { status, text, fields: None }
    }

    /// Whether it is about this request alone, and says nothing about the next.
    pub(super) fn is_verdict(&self) -> bool {
        matches!(self.status, 401 | 403) || self.fields.is_some()
    }

    /// Those beside what the text is.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.fields.iter().flat_map(|fields| fields.iter())
    }

    /// The text's kind, unless the fields tell it.
    pub(super) fn kind(&self) -> Option<HeaderValue> {
        let is_told =
            self.fields().any(|(name, _)| name == header::CONTENT_TYPE) || self.text.is_empty();
        (!is_told).then(|| HeaderValue::from_static("text/plain; charset=utf-8"))
    }
}

/// How an exchange ended.
#[derive(Debug)]
pub enum Ended {
    /// The response is through, and as much of the request as its server wanted.
    Through,
    /// No connection to a server was made: the client has the answer to that.
    Unsent,
    /// The client left.
    ClientGone(Option<io::Error>),
    /// The client's body is not framed as HTTP says.
    ClientMalformed(Cause),
    /// The server closed before it answered a byte.
    Unanswered(Option<io::Error>),
    /// The server closed within its answer.
    ServerGone(Option<io::Error>),
    /// What the server answered is no response.
    ServerMalformed(Cause),
    /// More waits for readers of one pod than may.
    Overfull,
}

/// Why, in words.
pub(super) type Cause = Box<dyn Error + Send + Sync>;

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, cause): (_, Option<&dyn fmt::Display>) = match self {
            Self::Through => ("the response is through", None),
            Self::Unsent => ("no server was reached", None),
            Self::ClientGone(error) => ("the client left", error.as_ref().map(|error| error as _)),
            Self::ClientMalformed(why) => ("the request is malformed", Some(why)),
            Self::Unanswered(error) => {
                ("the server closed without an answer", error.as_ref().map(|error| error as _))
            }
            Self::ServerGone(error) => {
                ("the server broke off its answer", error.as_ref().map(|error| error as _))
            }
            Self::ServerMalformed(why) => ("the server's answer is malformed", Some(why)),
            Self::Overfull => ("too much waits for readers", None),
        };
        match cause {
            Some(cause) => write!(f, "{what}: {cause}"),
            None => f.write_str(what),
        }
    }
}
