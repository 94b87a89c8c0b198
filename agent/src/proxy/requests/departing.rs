//! The client's side: requests of a pod of this node, each to an endpoint of its own.

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Upstream, arriving::malformed, failure_of, over, report::Report, tunnel};
use crate::{
    http::{
        self as web, Answer, AnyRequest, AnyResponse, Ended, Fields, Prefixed, Version, Watch,
        h2::{Pool, PoolKey},
    },
    limits::{Permit, Share},
    mesh::{PodUid, Principal},
    proxy::{
        Hop, Io, LocalPod, Way,
        admission::{admit_request, both_certified},
        hop::service_of,
        inbound::{Arrival, dial},
        outbound::Outbound,
        refusal::Refusal,
    },
    telemetry::{Failure, Flow},
};
use bytes::{Bytes, BytesMut};
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;

/// Endpoints of one connection of which it is kept what spans say about them.
const MOST_FLOWS: usize = 16;

/// What was connected to before the connection was known to be HTTP.
pub(in crate::proxy) struct First {
    /// The endpoint, which the first request goes to.
    pub(in crate::proxy) hop: Hop,
    /// The connection, with the generation of the policies it was dialled under. In HTTP/2 it is
    /// shared, and so is not this client's alone.
    pub(in crate::proxy) server: Option<(u64, Io)>,
}

/// Answers the requests of `client`, of which `read` has been read, by sending each to an endpoint of
/// its own.
pub(in crate::proxy) fn departing(
    outbound: Outbound,
    client: Io,
    read: Bytes,
    first: Option<First>,
) -> impl Future<Output = ()> + Send {
    // A child: the one of all has one lock, which each response would take.
    let drain = outbound.proxy.drain.started().child_token();
    let buffered = outbound.pod.limits.buffered_out().clone();
    let (hop, server) = match first {
        Some(First { hop, server }) => (Some(hop), server),
        None => (None, None),
    };
    let server = server.zip(hop.as_ref()).map(|((generation, io), hop)| {
        let io = match &hop.way {
            Way::SameNode(pod) => {
                Upstream::handed_over(io, &outbound.proxy, pod, &outbound.arrival(hop))
            }
            Way::Tunnel(_) | Way::Plain => io.into(),
        };
        (Key::of(hop, generation), io)
    });
    let handler = Departing {
        outbound: Arc::new(outbound),
        next: Arc::new(Mutex::new(Next { hop, bound: false })),
        flows: Mutex::default(),
    };
    // An async fn would keep its arguments beside what is made of them, for as long as it lasts.
    async move {
        match web::http1(client, BytesMut::from(read), server, &handler, &buffered, &drain).await {
            web::Served::Done => {}
            web::Served::Http2(client, read) => {
                let client = Prefixed::new(read.freeze(), client);
                // Boxed, as what few connections come to: others would carry its size along.
                let ended = Box::pin(web::h2::serve(client, &handler, &buffered, &drain)).await;
                if let Err(error) = ended {
                    tracing::debug!(%error, "an outbound HTTP/2 connection ended");
                }
            }
            web::Served::Tunnel(led) => Box::pin(upgraded(led, &buffered)).await,
        }
    }
}

/// Answers what the agent itself asks on behalf of a pod, at the other end of `client`.
pub(in crate::proxy) fn asked_here(
    outbound: Outbound,
    client: DuplexStream,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let buffered = outbound.pod.limits.buffered_out().clone();
    let handler =
        Departing { outbound: Arc::new(outbound), next: Arc::default(), flows: Mutex::default() };
    // Whoever asks says when it is over.
    let endless = CancellationToken::new();
    Box::pin(async move {
        match web::http1(client, BytesMut::new(), None, &handler, &buffered, &endless).await {
            // What an authorizer switches to is nothing that was asked for.
            web::Served::Done | web::Served::Tunnel(_) => {}
            web::Served::Http2(client, read) => {
                let client = Prefixed::new(read.freeze(), client);
                if let Err(error) = web::h2::serve(client, &handler, &buffered, &endless).await {
                    tracing::debug!(%error, "a connection to an authorizer ended");
                }
            }
        }
    })
}

/// Carries what a request has led to that is no HTTP.
async fn upgraded(led: Box<web::Tunnel<Io, Departs>>, buffered: &Arc<Share>) {
    let web::Tunnel { client, server, route } = *led;
    let Departs { mut report, outbound, hop, .. } = route;
    let (spans, left) = (report.upgraded(), outbound.server_left(&hop, None));
    if tunnel(client, server, spans, buffered, left).await.is_some() {
        outbound.proxy.limits.overfull(&outbound.pod.uid);
    }
}

/// What is known about the requests of one connection.
struct Departing {
    outbound: Arc<Outbound>,
    next: Arc<Mutex<Next>>,
    /// What spans say about this connection, by endpoint.
    flows: Mutex<Vec<Flows>>,
}

/// Where the next request goes, where that is not to be chosen anew.
#[derive(Default)]
struct Next {
    hop: Option<Hop>,
    /// Its server has to do with one client for as long as the connection lasts.
    bound: bool,
}

struct Flows {
    endpoint: SocketAddr,
    near: Arc<Flow>,
    /// The server's side, where it is here.
    far: Option<Arc<Flow>>,
}

/// What two requests have in common that may share a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    endpoint: SocketAddr,
    generation: u64,
    way: KeyOfWay,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum KeyOfWay {
    SameNode(PodUid),
    Tunnel(Principal),
    Plain,
}

impl Key {
    fn of(hop: &Hop, generation: u64) -> Self {
        let (way, generation) = match &hop.way {
            // No CNI has a say in those.
            Way::SameNode(pod) => (KeyOfWay::SameNode(pod.uid.clone()), 0),
            Way::Tunnel(peer) => (KeyOfWay::Tunnel(peer.clone()), generation),
            Way::Plain => (KeyOfWay::Plain, generation),
        };
        Self { endpoint: hop.address, generation, way }
    }
}

impl Departing {
    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The endpoint of the next request. An error comes with what to report it under.
    fn choose(&self) -> Result<Hop, (Arc<Flow>, Refusal)> {
        {
            let mut next = self.next();
            let hop = if next.bound { next.hop.clone() } else { next.hop.take() };
            if let Some(hop) = hop {
                return Ok(hop);
            }
        }
        let Outbound { proxy, pod, dialled, .. } = &*self.outbound;
        let destination = self.outbound.destination();
        Hop::choose(proxy, pod, *dialled, &destination).map_err(|error| {
            let flow = self.outbound.flow(None, service_of(&destination));
            (flow, Refusal::unavailable(Failure::NoHealthyUpstream, error))
        })
    }

    /// What the sides at both ends of `hop` that are here say about it.
    fn flows(&self, hop: &Hop) -> (Arc<Flow>, Option<Arc<Flow>>) {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let outbound = &*self.outbound;
        let local = outbound.pod.workload();
        if let Some(Flows { near, far, .. }) = flows.iter().find(|at| at.endpoint == hop.address)
            && Arc::ptr_eq(&near.local, &local)
            && near.remote.as_ref().map(Arc::as_ptr) == hop.workload.as_ref().map(Arc::as_ptr)
            && near.service.as_ref().map(Arc::as_ptr) == hop.service.as_ref().map(Arc::as_ptr)
            && match (&hop.way, far) {
                (Way::SameNode(pod), Some(far)) => Arc::ptr_eq(&far.local, &pod.workload()),
                (Way::SameNode(_), None) | (_, Some(_)) => false,
                (_, None) => true,
            }
        {
            return (near.clone(), far.clone());
        }
        // A newer snapshot may say something else about this endpoint.
        flows.retain(|at| at.endpoint != hop.address);
        if flows.len() == MOST_FLOWS {
            flows.remove(0);
        }
        // Most connections go to one endpoint only.
        flows.reserve_exact(1);
        let near = outbound.flow(Some(hop), hop.service.clone());
        let far = match &hop.way {
            Way::SameNode(pod) => Some(outbound.arrival(hop).flow(&outbound.proxy, pod)),
            Way::Tunnel(_) | Way::Plain => None,
        };
        flows.push(Flows { endpoint: hop.address, near: near.clone(), far: far.clone() });
        (near, far)
    }
}

impl web::Handler for Departing {
    type Route = Departs;

    async fn route(&self, request: &mut (impl AnyRequest + Send)) -> Result<Departs, Answer> {
        let Outbound { proxy, pod, cut, .. } = &*self.outbound;
        let mut place = None;
        if request.version() == Version::Http2 {
            match pod.limits.departing() {
                Ok(permit) => place = Some(permit),
                Err(limit) => {
                    let flow =
                        || self.outbound.flow(None, service_of(&self.outbound.destination()));
                    return Err(over(proxy, cut, limit, flow, request));
                }
            }
        }
        let hop = match self.choose() {
            Ok(hop) => hop,
            Err((flow, refusal)) => {
                return Err(Report::new(proxy, cut.clone(), flow, request).refuse(refusal));
            }
        };
        let (near, far) = self.flows(&hop);
        let mut report = Report::new(proxy, self.outbound.cut(&hop), near, request);
        let mut server = None;
        if let (Way::SameNode(pod), Some(far)) = (&hop.way, far) {
            let arrival = self.outbound.arrival(&hop);
            report.and(far, request);
            if let Err(refusal) = both_certified(proxy, pod, &arrival).await {
                return Err(report.refuse(refusal));
            }
            match admit_request(proxy, pod, &arrival, request).await {
                Ok(passes) => report.passes(passes),
                Err(refusal) => return Err(report.refuse(refusal)),
            }
            server = Some((pod.clone(), arrival));
        }
        let generation = self.outbound.generation(&hop);
        let (outbound, next) = (self.outbound.clone(), self.next.clone());
        let alone = request.version() != Version::Http2;
        Ok(Departs { report, outbound, hop, server, generation, next, alone, _place: place })
    }

    fn malformed(&self, status: u16, why: &dyn fmt::Display) {
        let flow = self.outbound.flow(None, service_of(&self.outbound.destination()));
        malformed(&self.outbound.proxy, &self.outbound.cut, flow, status, why);
    }
}

/// A request on its way to an endpoint.
struct Departs {
    report: Report,
    outbound: Arc<Outbound>,
    hop: Hop,
    /// The pod of this node that it leads to, and what it looks like there.
    server: Option<(Arc<LocalPod>, Arrival)>,
    generation: u64,
    next: Arc<Mutex<Next>>,
    /// Nobody else's requests go by its connection to the server.
    alone: bool,
    _place: Option<Permit>,
}

impl Watch for Departs {
    fn response(&mut self, head: &mut impl AnyResponse) {
        self.report.response(head);
        if self.alone && binds(head) {
            let hop = Some(self.hop.clone());
            *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Next { hop, bound: true };
        }
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

impl web::Route for Departs {
    type Stream = Upstream;
    type Key = Key;

    fn key(&self) -> Key {
        Key::of(&self.hop, self.generation)
    }

    async fn connect(&mut self) -> Result<Upstream, Answer> {
        let connected = match &self.server {
            Some((pod, arrival)) => Box::pin(dial(pod, arrival))
                .await
                .map(|app| Upstream::handed_over(Io::Tcp(app), &self.outbound.proxy, pod, arrival)),
            None => Box::pin(self.outbound.reach(&self.hop)).await.map(Upstream::from),
        };
        connected.map_err(|refusal| self.report.refuse(refusal))
    }

    fn unanswered(&mut self, ended: &Ended) -> Answer {
        self.report.unanswered(ended)
    }

    fn finish(mut self, ended: &Ended) {
        self.report.end(failure_of(ended));
    }
}

impl web::h2::Shared for Departs {
    fn connections(&self) -> (Pool, PoolKey) {
        let Outbound { pod, client, mark, .. } = &*self.outbound;
        let key = PoolKey::new(client.ip(), self.hop.address);
        match &self.server {
            Some((server, _)) => (server.inbound.clone(), key),
            None => {
                let key = key.of_generation(self.generation).marked(*mark);
                (pod.outbound(self.hop.way.peer()), key)
            }
        }
    }
}

/// Whether a login begins that is one of the connection, and not of each request (RFC 4559 §6): who
/// asks on it again has to meet the same server.
fn binds(head: &impl AnyResponse) -> bool {
    let of_connection = |scheme: &[u8]| {
        ["ntlm", "negotiate"].iter().any(|bound| scheme.eq_ignore_ascii_case(bound.as_bytes()))
    };
    head.status() == 401
        && head.values_of("www-authenticate").any(|challenges| {
            let mut schemes = challenges.split(|byte| matches!(byte, b',' | b' '));
            schemes.any(of_connection)
        })
}

#[cfg(test)]
mod tests {
    use http::{Response, response::Parts};

    use super::*;

    fn answer(status: u16, challenge: &str) -> Parts {
        let answer = Response::builder().status(status).header("www-authenticate", challenge);
        answer.body(()).unwrap().into_parts().0
    }

    #[test]
    fn logins_of_a_connection_bind_it_to_its_server() {
        for challenge in ["NTLM", "Negotiate", "Basic realm=\"a\", NTLM", "ntlm TlRMTVNTUAAC"] {
            assert!(binds(&answer(401, challenge)), "{challenge}");
        }
        assert!(!binds(&answer(401, "Basic realm=\"a\"")));
        assert!(!binds(&answer(200, "NTLM")));
    }
}
