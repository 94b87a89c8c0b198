//! The server's side: requests to a pod of this node, by whoever was let in.

use std::{fmt, sync::Arc};

use super::{Unreadable, Upstream, failure_of, over, report::Report, tunnel};
use crate::{
    http::{
        self as web, Answer, AnyRequest, AnyResponse, Ended, Fields, Prefixed, Version, Watch,
        h2::{Pool, PoolKey},
    },
    limits::{Arrived, Share},
    proxy::{
        Io, LocalPod, Proxy,
        admission::{admit_request, both_certified},
        cut::{Cut, UnderWay},
        inbound::{Arrival, dial},
    },
    telemetry::{Failure, Flow},
};
use bytes::{Bytes, BytesMut};

/// Answers the requests of one client by sending them to the application.
pub(in crate::proxy) fn arriving(
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    arrival: Arc<Arrival>,
    client: Io,
    read: Bytes,
    server: Option<Io>,
) -> impl Future<Output = ()> + Send {
    // A child: the one of all has one lock, which each response would take.
    let drain = proxy.drain.started().child_token();
    let flow = arrival.flow(&proxy, &pod);
    let handler = Arriving { proxy, pod, arrival, flow };
    let first = server.map(|server| ((), server.into()));
    let buffered = handler.pod.limits.buffered_in().clone();
    // An async fn would keep its arguments beside what is made of them, for as long as it lasts.
    async move {
        match web::http1(client, BytesMut::from(read), first, &handler, &buffered, &drain).await {
            web::Served::Done => {}
            web::Served::Http2(client, read) => {
                let client = Prefixed::new(read.freeze(), client);
                // Boxed, as what few connections come to: others would carry its size along.
                let ended = Box::pin(web::h2::serve(client, &handler, &buffered, &drain)).await;
                if let Err(error) = ended {
                    tracing::debug!(%error, "an inbound HTTP/2 connection ended");
                }
            }
            web::Served::Tunnel(led) => {
                Box::pin(upgraded(led, &handler, &buffered)).await;
            }
        }
    }
}

/// Carries what a request has led to that is no HTTP.
async fn upgraded(led: Box<web::Tunnel<Io, ToApp>>, by: &Arriving, buffered: &Arc<Share>) {
    let web::Tunnel { client, server, mut route } = *led;
    let spans = route.report.upgraded();
    // Whatever cuts it drops what waits here.
    let left = std::future::pending();
    if tunnel(client, server, spans, buffered, left).await.is_some() {
        by.proxy.limits.overfull(&by.pod.uid);
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
        let mut place = None;
        if request.version() == Version::Http2 {
            match pod.limits.arriving(arrival.client.ip()) {
                Ok(arrived) => place = Some(arrived),
                Err(limit) => {
                    return Err(over(proxy, &arrival.cut, limit, || flow.clone(), request));
                }
            }
        }
        let mut report = Report::new(proxy, arrival.cut.clone(), flow.clone(), request);
        if let Err(refusal) = both_certified(proxy, pod, arrival).await {
            return Err(report.refuse(refusal));
        }
        match admit_request(proxy, pod, arrival, request).await {
            Ok(passes) => report.passes(passes),
            Err(refusal) => return Err(report.refuse(refusal)),
        }
        let _under_way = arrival.cut.request();
        let (pod, arrival) = (pod.clone(), arrival.clone());
        Ok(ToApp { report, pod, arrival, _place: place, _under_way })
    }

    fn malformed(&self, status: u16, why: &dyn fmt::Display) {
        malformed(&self.proxy, &self.arrival.cut, self.flow.clone(), status, why);
    }
}

/// Notes that a client sent what is no request.
pub(super) fn malformed(
    proxy: &Arc<Proxy>,
    cut: &Cut,
    flow: Arc<Flow>,
    status: u16,
    why: &dyn fmt::Display,
) {
    tracing::debug!(client = %flow.client, server = %flow.server, error = %why, "no request");
    let mut report = Report::new(proxy, cut.clone(), flow, &mut Unreadable);
    report.answered(status, Failure::MalformedRequest);
}

/// A request on its way to the application.
struct ToApp {
    report: Report,
    pod: Arc<LocalPod>,
    arrival: Arc<Arrival>,
    _place: Option<Arrived>,
    _under_way: UnderWay,
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
            Ok(app) => Ok(Upstream::to_pod(Io::Tcp(app), &self.pod)),
            Err(refusal) => Err(self.report.refuse(refusal)),
        }
    }

    fn unanswered(&mut self, ended: &Ended) -> Answer {
        self.report.unanswered(ended)
    }

    fn finish(mut self, ended: &Ended) {
        self.report.end(failure_of(ended));
    }
}

impl web::h2::Shared for ToApp {
    fn connections(&self) -> (Pool, PoolKey) {
        let key = PoolKey::new(self.arrival.client.ip(), self.arrival.app);
        (self.pod.inbound.clone(), key)
    }
}
