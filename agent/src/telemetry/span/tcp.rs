//! One connection that is not looked into.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::HeaderMap;

use super::{Place, connection_attributes, is_error, network_type};
use crate::telemetry::{
    Telemetry,
    context::{self, Incoming, SpanContext},
    flow::{Failure, Flow, Reporter},
    judgement::Judgement,
    metrics::OpenConnection,
    semconv as key,
};

/// Knows whether the agent itself has put an end to something.
pub trait Cause: Send + Sync {
    /// Why, if it has.
    fn why(&self) -> Option<Failure>;
}

/// Follows one connection until [`finish`](Self::finish) or [`discard`](Self::discard), or until it is
/// dropped with whatever carries the connection: then it was cut, or its client went away.
pub struct TcpSpan {
    telemetry: Telemetry,
    flow: Arc<Flow>,
    began: Instant,
    connected: Option<Duration>,
    sent: u64,
    received: u64,
    /// Where the bytes count; it is in the metrics as opened then.
    open: Option<OpenConnection>,
    ended: bool,
    cause: Option<Arc<dyn Cause>>,
    judgement: Option<Box<Judgement>>,
    /// `None` where nothing is recorded at all.
    place: Option<Place>,
}

impl TcpSpan {
    pub(in crate::telemetry) fn open(
        telemetry: &Telemetry,
        flow: &Arc<Flow>,
        headers: Option<&HeaderMap>,
    ) -> Self {
        let place = telemetry.0.queue.is_some().then(|| {
            let incoming = headers.map(Incoming::extract).unwrap_or_default();
            let context = telemetry.0.sampler.span(&incoming);
            let parent = incoming.parent.map(|parent| parent.context.span_id);
            Place { context, parent, continues: None, began: SystemTime::now() }
        });
        Self::new(telemetry, flow, place)
    }

    /// What follows on a connection once the request `before` has switched protocols.
    pub(super) fn after(
        telemetry: &Telemetry,
        flow: &Arc<Flow>,
        before: Option<&SpanContext>,
    ) -> Self {
        let place = before.map(|before| Place {
            context: SpanContext { span_id: context::SpanId::random(), ..before.clone() },
            parent: Some(before.span_id),
            continues: Some(before.clone()),
            began: SystemTime::now(),
        });
        let mut span = Self::new(telemetry, flow, place);
        span.opaque();
        span
    }

    fn new(telemetry: &Telemetry, flow: &Arc<Flow>, place: Option<Place>) -> Self {
        Self {
            telemetry: telemetry.clone(),
            flow: flow.clone(),
            began: Instant::now(),
            connected: None,
            sent: 0,
            received: 0,
            open: None,
            ended: false,
            cause: None,
            judgement: None,
            place,
        }
    }

    /// Has `cause` say why the connection was cut where the span is dropped before it is finished, or
    /// is finished as if an end had broken off: what is cut is often several connections, one of which
    /// sees the other break.
    pub fn cut_by(mut self, cause: Arc<dyn Cause>) -> Self {
        self.cause = Some(cause);
        self
    }

    /// The next hop took `took` to connect.
    pub fn connected(&mut self, took: Duration) {
        self.connected = Some(took);
    }

    /// The connection will not be looked into: metrics show it as open from now on. Without
    /// this, they show it only once it is finished.
    pub fn opaque(&mut self) {
        if self.open.is_none() {
            let open = self.telemetry.0.metrics.connection_opened(&self.flow);
            open.moved(self.sent, self.received);
            self.open = Some(open);
        }
    }

    /// So many bytes more went from client to server and from server to client: metrics show them at
    /// once.
    pub fn moved(&mut self, sent: u64, received: u64) {
        self.sent += sent;
        self.received += received;
        if let Some(open) = &self.open {
            open.moved(sent, received);
        }
    }

    /// Makes this span the parent of the connection that `headers`, those of a CONNECT, open.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Some(place) = &self.place {
            context::inject(&place.context, headers);
        }
    }

    /// The connection turned out to be HTTP, whose requests speak for themselves: neither span
    /// nor metrics.
    pub fn discard(mut self) {
        self.ended = true;
    }

    /// Policy has something to say about it.
    pub fn judged(&mut self, judgement: Option<Box<Judgement>>) {
        self.judgement = judgement;
    }

    /// The connection ended.
    pub fn finish(mut self, failure: Option<Failure>) {
        let broke = matches!(failure, Some(Failure::ResetLocal | Failure::ResetRemote));
        let cut = if broke { self.cut() } else { None };
        self.end(cut.or(failure), "");
    }

    /// The connection was refused or cut, for a reason in words.
    pub fn refuse(mut self, failure: Failure, why: &str) {
        self.end(Some(failure), why);
    }

    fn cut(&self) -> Option<Failure> {
        self.cause.as_ref().and_then(|cause| cause.why())
    }

    fn end(&mut self, failure: Option<Failure>, why: &str) {
        self.ended = true;
        self.opaque();
        self.telemetry.0.metrics.connection_closed(&self.flow, failure);
        let place = self.place.take();
        let Self { telemetry, flow, began, connected, sent, received, judgement, .. } = &*self;
        let Some(place) = place.filter(|place| place.context.sampled()) else { return };
        let Some(queue) = &telemetry.0.queue else { return };
        let lasted = began.elapsed();
        let error = failure.filter(|failure| is_error(*failure, flow.reporter)).map(|_| why);
        queue.record(&flow.local, |out| {
            let name = format_args!("TCP {}", Server(flow));
            place.encode(out, flow.reporter, name, lasted, error, |attributes| {
                attributes.text(key::NETWORK_TRANSPORT, "tcp");
                attributes.text(key::NETWORK_TYPE, network_type(flow.peer));
                attributes.display(key::SERVER_ADDRESS, Server(flow));
                attributes.int(key::SERVER_PORT, flow.server.port().into());
                connection_attributes(attributes, flow);
                if flow.reporter == Reporter::Destination {
                    attributes.int(key::CLIENT_PORT, flow.client.port().into());
                }
                attributes.int(key::MESH_SENT_BYTES, *sent);
                attributes.int(key::MESH_RECEIVED_BYTES, *received);
                attributes.double(key::MESH_DURATION, lasted.as_secs_f64());
                if let Some(took) = connected {
                    attributes.double(key::MESH_CONNECT_DURATION, took.as_secs_f64());
                }
                attributes.text(key::MESH_CLOSE_REASON, failure.map_or("closed", Failure::as_str));
                if let Some(failure) = failure {
                    attributes.text(key::ERROR_TYPE, failure.as_str());
                }
                if let Some(judgement) = judgement {
                    judgement.describe(attributes);
                }
            });
        });
    }
}

impl Drop for TcpSpan {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Some(self.cut().unwrap_or(Failure::ResetLocal)), "");
        }
    }
}

/// The dialled Service, else the dialled address.
struct Server<'a>(&'a Flow);

impl fmt::Display for Server<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.service {
            Some(service) => f.write_str(&service.hostname()),
            None => write!(f, "{}", self.0.server.ip().to_canonical()),
        }
    }
}
