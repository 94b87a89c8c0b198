//! The server's side: requests to a pod of this node, by whoever was let in.

use std::{fmt, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};

use super::{Unreadable, Upstream, failure_of, report::Report, tunnel};
use crate::{
    http::{
        self as web, Answer, AnyRequest, AnyResponse, Body, Ended, Fields, PoolKey, Prefixed, Watch,
    },
    proxy::{
        Io, LocalPod, Proxy,
        admission::both_certified,
        exchange::{Refusal, exchange, in_place},
        inbound::{Arrival, dial},
    },
    telemetry::{Failure, Flow},
};

/// Answers the requests of one client by sending them to the application.
pub(in crate::proxy) async fn arriving(
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    arrival: Arc<Arrival>,
    client: Io,
    read: Bytes,
    server: Option<Io>,
) {
    let drain = proxy.drain.started().clone();
    let flow = arrival.flow(&proxy, &pod);
    let handler = Arriving { proxy, pod, arrival, flow };
    let first = server.map(|server| ((), server.into()));
    let buffered = handler.pod.limits.buffered_in().clone();
    match web::http1(client, BytesMut::from(read), first, &handler, &buffered, &drain).await {
        web::Served::Done => {}
        web::Served::Http2(client, read) => {
            let client = Prefixed::new(read.freeze(), client);
            // Boxed, as what few connections come to: others would carry its size along.
            let ended = Box::pin(web::serve(client, Arc::new(handler), &buffered, &drain)).await;
            if let Err(error) = ended {
                tracing::debug!(%error, "an inbound HTTP/2 connection ended");
            }
        }
        web::Served::Tunnel { client, server, mut route } => {
            let spans = route.report.upgraded();
            let cut = handler.pod.cut(&handler.proxy.drain);
            let tunnel = tunnel(client, server, spans, &buffered, cut);
            if Box::pin(tunnel).await.is_some() {
                handler.proxy.limits.overfull(&handler.pod.uid);
            }
        }
    }
}

/// What is known about the requests of one connection.
struct Arriving {
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    arrival: Arc<Arrival>,
    flow: Arc<Flow>,
}

impl web::Handler for Arriving {
    type Route = ToApp;

    async fn route(&self, request: &mut (impl AnyRequest + Send)) -> Result<ToApp, Answer> {
        let Self { proxy, pod, arrival, flow } = self;
        let report = Report::new(proxy, flow.clone(), request);
        Ok(ToApp { report, pod: pod.clone(), arrival: arrival.clone() })
    }

    fn malformed(&self, status: u16, why: &dyn fmt::Display) {
        malformed(&self.proxy, self.flow.clone(), status, why);
    }
}

impl web::Http2Handler for Arriving {
    async fn handle(&self, request: Request<Body>) -> Response<Body> {
        let Self { proxy, pod, arrival, flow } = self;
        let deliver = |request| deliver(proxy, pod, arrival, flow, request);
        let place = pod.limits.arriving(arrival.client.ip());
        in_place(proxy, place, || flow.clone(), request, deliver).await
    }
}

/// Sends one request to the application, under a span of the server's side.
pub(super) async fn deliver(
    proxy: &Proxy,
    pod: &LocalPod,
    arrival: &Arrival,
    flow: &Arc<Flow>,
    request: Request<Body>,
) -> Response<Body> {
    exchange(proxy, flow, request, |request| async {
        both_certified(proxy, pod, arrival).await?;
        let key = PoolKey::new(arrival.client.ip(), arrival.app);
        pod.inbound.send(key, request, || dial(pod, arrival)).await.map_err(Refusal::from)
    })
    .await
}

/// Notes that a client sent what is no request.
pub(super) fn malformed(proxy: &Arc<Proxy>, flow: Arc<Flow>, status: u16, why: &dyn fmt::Display) {
    tracing::debug!(client = %flow.client, server = %flow.server, error = %why, "no request");
    let mut report = Report::new(proxy, flow, &mut Unreadable);
    report.answered(status, Failure::MalformedRequest);
}

/// A request on its way to the application.
struct ToApp {
    report: Report,
    pod: Arc<LocalPod>,
    arrival: Arc<Arrival>,
}

impl Watch for ToApp {
    fn response(&mut self, head: &mut impl AnyResponse) {
        self.report.response(head);
    }

    fn sent(&mut self, bytes: usize) {
        self.report.sent(bytes);
    }

    fn received(&mut self, bytes: usize) {
        self.report.received(bytes);
    }

    fn trailers(&mut self, trailers: &impl Fields) {
        self.report.trailers(trailers);
    }
}

impl web::Route for ToApp {
    type Stream = Upstream;
    type Key = ();

    fn key(&self) {}

    async fn connect(&mut self) -> Result<Upstream, Answer> {
        match Box::pin(dial(&self.pod, &self.arrival)).await {
            Ok(app) => Ok(Io::Tcp(app).into()),
            Err(refusal) => Err(self.report.refuse(refusal)),
        }
    }

    fn unanswered(&mut self, ended: &Ended) -> Answer {
        self.report.unanswered(ended, None)
    }

    fn finish(mut self, ended: &Ended) {
        self.report.end(failure_of(ended));
    }
}
