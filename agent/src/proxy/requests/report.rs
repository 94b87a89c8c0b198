//! What is told about one request: a span and a count for each side that is here.

use std::sync::Arc;

use super::{answer, failure_of};
use crate::{
    http::{Answer, AnyRequest, AnyResponse, Ended, Fields},
    proxy::{Proxy, exchange::Refusal},
    telemetry::{Failure, Flow, HttpSpan, TcpSpan},
};

/// Follows one request to its end. Dropped before, its client has given up on it, or something here
/// has cut it.
pub(super) struct Report {
    proxy: Arc<Proxy>,
    /// The client's side first. On one node the server's is here too.
    near: Option<Side>,
    far: Option<Side>,
    sent: u64,
    received: u64,
}

struct Side {
    span: HttpSpan,
    flow: Arc<Flow>,
}

impl Report {
    /// Begins with the side of `flow`, whose span becomes the parent of whatever sees `request` next.
    pub(super) fn new(proxy: &Arc<Proxy>, flow: Arc<Flow>, request: &mut impl AnyRequest) -> Self {
        let span = proxy.telemetry.http_request(&flow, request);
        let near = Some(Side { span, flow });
        Self { proxy: proxy.clone(), near, far: None, sent: 0, received: 0 }
    }

    /// Begins the server's side too.
    pub(super) fn and(&mut self, flow: Arc<Flow>, request: &mut impl AnyRequest) {
        let span = self.proxy.telemetry.http_request(&flow, request);
        self.far = Some(Side { span, flow });
    }

    fn sides(&mut self) -> impl Iterator<Item = &mut Side> {
        self.near.iter_mut().chain(&mut self.far)
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    pub(super) fn received(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    pub(super) fn response(&mut self, head: &impl AnyResponse) {
        self.sides().for_each(|side| side.span.response(head));
    }

    pub(super) fn trailers(&mut self, trailers: &impl Fields) {
        self.sides().for_each(|side| side.span.trailers(trailers));
    }

    /// The client is answered here.
    pub(super) fn refuse(&mut self, refusal: Refusal) -> Answer {
        let Refusal { status, failure, message } = refusal;
        tracing::debug!(error = %message, "request refused");
        self.answered(status.as_u16(), failure);
        answer(status.as_u16(), failure)
    }

    /// The same where no answer came, for the reason that `ended` has, if there is no better one.
    pub(super) fn unanswered(&mut self, ended: &Ended, why: Option<Failure>) -> Answer {
        tracing::debug!(error = %ended, "a request got no answer");
        let status = match ended {
            Ended::ClientMalformed(_) => 400,
            Ended::Overfull => 503,
            _ => 502,
        };
        let failure = why.or(failure_of(ended)).unwrap_or(Failure::ResetRemote);
        self.answered(status, failure);
        answer(status, failure)
    }

    /// The client was answered with `status` here. The innermost side knows why, to the other it is
    /// an answer.
    pub(super) fn answered(&mut self, status: u16, failure: Failure) {
        self.sides().for_each(|side| side.span.answered(status));
        match self.far.take() {
            Some(far) => {
                self.finish(far, Some(failure));
                self.end(None);
            }
            None => self.end(Some(failure)),
        }
    }

    /// The exchange is over.
    pub(super) fn end(&mut self, failure: Option<Failure>) {
        // A span lasts as long as its children.
        for side in [self.far.take(), self.near.take()].into_iter().flatten() {
            self.finish(side, failure);
        }
    }

    fn finish(&self, Side { span, flow }: Side, failure: Option<Failure>) {
        if failure == Some(Failure::BufferLimit) {
            self.proxy.limits.overfull(&flow.local.uid);
        }
        span.finish(self.sent, self.received, failure);
    }

    /// Ends with an agreement on something else, and begins what is told about that.
    pub(super) fn upgraded(&mut self) -> Vec<TcpSpan> {
        let telemetry = &self.proxy.telemetry;
        let sides = self.near.iter().chain(&self.far);
        let spans =
            sides.map(|side| telemetry.upgraded_connection(&side.flow, &side.span)).collect();
        self.end(None);
        spans
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.end(Some(Failure::ResetLocal));
    }
}
