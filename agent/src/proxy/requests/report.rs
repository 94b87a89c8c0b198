//! What is told about one request: a span and a count for each side that is here.

use std::sync::Arc;

use super::{answer, failure_of};
use crate::{
    http::{Answer, AnyRequest, AnyResponse, Ended, Fields},
    proxy::{Proxy, admission::Passes, cut::Cut, external::More, refusal::Refusal},
    telemetry::{Cause, Failure, Flow, HttpSpan, Judgement, TcpSpan},
};

/// Follows one request to its end. Dropped before, its client has given up on it, or something here
/// has cut it.
pub(super) struct Report {
    proxy: Arc<Proxy>,
    cut: Cut,
    /// The client's side first. On one node the server's is here too.
    near: Option<Side>,
    far: Option<Side>,
    /// What authorizers want the client to be told.
    more: More,
    sent: u64,
    received: u64,
}

struct Side {
    span: HttpSpan,
    flow: Arc<Flow>,
}

impl Report {
    /// Begins with the side of `flow`, whose span becomes the parent of whatever sees `request` next.
    /// `cut` may put an end to it.
    pub(super) fn new(
        proxy: &Arc<Proxy>,
        cut: Cut,
        flow: Arc<Flow>,
        request: &mut impl AnyRequest,
    ) -> Self {
        let span = proxy.telemetry.http_request(&flow, request);
        let near = Some(Side { span, flow });
        let more = More::default();
        Self { proxy: proxy.clone(), cut, near, far: None, more, sent: 0, received: 0 }
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

    pub(super) fn response(&mut self, head: &mut impl AnyResponse) {
        self.more.add_to(head);
        self.sides().for_each(|side| side.span.response(head));
    }

    pub(super) fn trailers(&mut self, trailers: &impl Fields) {
        self.sides().for_each(|side| side.span.trailers(trailers));
    }

    /// The client is answered here.
    pub(super) fn refuse(&mut self, refusal: Refusal) -> Answer {
        let Refusal { status, failure, message, judgement, answer: told } = refusal;
        self.judged(judgement);
        tracing::debug!(error = %message, "request refused");
        self.answered(status.as_u16(), failure);
        told.map_or_else(|| answer(status.as_u16(), failure), |told| *told)
    }

    /// The server's side, or whichever is here, has something to say of policy.
    pub(super) fn judged(&mut self, judgement: Option<Box<Judgement>>) {
        if let (Some(side), true) = (self.far.as_mut().or(self.near.as_mut()), judgement.is_some())
        {
            side.span.judged(judgement);
        }
    }

    /// It goes on, to an application whose answer gets `more`.
    pub(super) fn passes(&mut self, Passes { told, more }: Passes) {
        self.judged(told);
        self.more = more;
    }

    /// The same where no answer came, for the reason that `ended` has.
    pub(super) fn unanswered(&mut self, ended: &Ended) -> Answer {
        tracing::debug!(error = %ended, "a request got no answer");
        let status = match ended {
            Ended::ClientMalformed(_) => 400,
            Ended::Overfull => 503,
            _ => 502,
        };
        let failure =
            failure_of(ended).map_or(Failure::ResetRemote, |failure| self.because(failure));
        self.answered(status, failure);
        answer(status, failure)
    }

    /// The client was answered with `status` here. The innermost side knows why; to the other it is
    /// an answer, unless it was cut here.
    pub(super) fn answered(&mut self, status: u16, failure: Failure) {
        self.sides().for_each(|side| side.span.answered(status));
        let to_the_other = self.cut.why();
        match self.far.take() {
            Some(far) => {
                self.finish(far, Some(failure));
                self.end(to_the_other);
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

    /// Neither end has broken off where it was cut here.
    fn because(&self, failure: Failure) -> Failure {
        match failure {
            Failure::ResetLocal | Failure::ResetRemote => self.cut.why().unwrap_or(failure),
            failure => failure,
        }
    }

    fn finish(&self, Side { span, flow }: Side, failure: Option<Failure>) {
        let failure = failure.map(|failure| self.because(failure));
        if failure == Some(Failure::BufferLimit) {
            self.proxy.limits.overfull(&flow.local.uid);
        }
        span.finish(self.sent, self.received, failure);
    }

    /// Ends with an agreement on something else, and begins what is told about that.
    pub(super) fn upgraded(&mut self) -> Vec<TcpSpan> {
        let (telemetry, cause) = (&self.proxy.telemetry, self.cut.cause());
        let sides = self.near.iter().chain(&self.far);
        let upgraded = |side: &Side| telemetry.upgraded_connection(&side.flow, &side.span);
        let spans = sides.map(|side| upgraded(side).cut_by(cause.clone())).collect();
        self.end(None);
        spans
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.end(Some(Failure::ResetLocal));
    }
}
