//! Connections that pods of this node open: the client's side.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use http::{HeaderMap, Request, Response, Version};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    CONNECT_TIMEOUT, Hop, Io, LocalPod, Proxy, Way,
    admission::{Party, certified},
    cut::Cut,
    detect::{Contrary, Detection, Found},
    exchange::{Refusal, exchange, in_place},
    generation::generation,
    hop::{declared, service_of},
    inbound::{self, Arrival},
    io,
    loops::leads_out,
    relay::{Early, relay},
};
use crate::{
    capture::Accepted,
    http::{self as web, Body, PoolKey, Prefixed, Protocol},
    identity::IdentityError,
    limits::Limit,
    mesh::{AppProtocol, Destination, HBONE_PORT, Principal, Service},
    telemetry::{Failure, Flow, Reporter, SecurityPolicy, TcpSpan},
    tunnel::{ConnectRequest, Made, PoolKey as TunnelKey, TunnelError},
};

/// Carries one captured connection from a pod of this node to where it wants to go.
pub(super) async fn connection(proxy: Arc<Proxy>, pod: Arc<LocalPod>, accepted: Accepted) {
    let Accepted { stream, peer: client, original_destination: dialled, mark } = accepted;
    if !leads_out(&pod, dialled.ip()) {
        tracing::warn!(%client, %dialled, pod = %pod.uid, "refused: it would lead back to the pod");
        return io::reset(&stream);
    }
    let cut = Cut::of(&proxy, &pod);
    let outbound = Outbound { proxy, pod, client, dialled, mark, cut };
    let destination = outbound.destination();
    let _permit = match outbound.pod.limits.departing() {
        Ok(permit) => permit,
        Err(limit) => return outbound.over(limit, &stream, &destination),
    };
    if !outbound.let_out(&stream, &destination).await {
        return;
    }
    // What is large and soon over, or not of most connections, is boxed: each keeps room for the largest.
    match outbound.declared(&destination) {
        AppProtocol::Http | AppProtocol::Http2 => {
            Box::pin(outbound.http(stream, &destination)).await
        }
        AppProtocol::Opaque => {
            if let Some(opened) = outbound.open_or_reset(&stream, &destination).await {
                opened.relay(stream, Early::default(), &outbound).await;
            }
        }
        AppProtocol::Unknown => outbound.undeclared(stream, &destination).await,
    }
}

/// One connection a pod opened.
struct Outbound {
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    /// The pod's own end.
    client: SocketAddr,
    /// What the application dialled.
    dialled: SocketAddr,
    /// What the application had marked its socket with.
    mark: u32,
    /// What may put an end to it.
    cut: Cut,
}

impl Outbound {
    /// What the dialled address means by the newest snapshot.
    fn destination(&self) -> Destination {
        self.proxy.snapshots.load().destination(self.dialled)
    }

    /// What is declared of the port that was dialled.
    fn declared(&self, destination: &Destination) -> AppProtocol {
        declared(&self.proxy.snapshots.load(), self.dialled, destination)
    }

    /// Refuses a connection that is one too many.
    fn over(&self, limit: Limit, client: &TcpStream, destination: &Destination) {
        io::reset(client);
        if self.proxy.limits.refused(limit) {
            tracing::warn!(client = %self.client, dialled = %self.dialled, pod = %self.pod.uid,
                reason = limit.as_str(), "outbound connections are refused: {limit}");
            let flow = self.flow(None, service_of(destination));
            let span = self.proxy.telemetry.connection(&flow, None);
            span.finish(Some(limit.into()));
        }
    }

    /// Lets the pod out, unless it has no certificate: nobody could tell who it is.
    async fn let_out(&self, client: &TcpStream, destination: &Destination) -> bool {
        let who = self.pod.workload().principal.clone();
        let Err(missing) = certified(&self.proxy, &who, Party::Own).await else { return true };
        let why = missing.to_string();
        tracing::info!(
            client = %self.client, dialled = %self.dialled, error = why,
            "outbound connection refused"
        );
        io::reset(client);
        let flow = self.flow(None, service_of(destination));
        let span = self.proxy.telemetry.connection(&flow, None);
        span.refuse(Failure::CertificateMissing, &why);
        false
    }

    /// Requests find their endpoint one by one; the `first` one's is connected already where
    /// the protocol had to be found out.
    async fn requests(self, client: impl web::Stream, first: Option<Hop>) {
        // A child: it is polled with the connection, and the one of all has one lock.
        let drain = self.proxy.drain.started().child_token();
        let pod = self.pod.clone();
        let handler =
            Requests { outbound: self, first: Mutex::new(first), flows: Mutex::default() };
        let buffered = pod.limits.buffered_out();
        if let Err(error) = web::serve(client, Arc::new(handler), buffered, &drain).await {
            tracing::debug!(%error, "an outbound HTTP connection ended");
        }
    }

    /// Where HTTP is declared, requests find their way by themselves. What turns out to be something
    /// else is carried all the same, and counted.
    async fn http(self, mut client: TcpStream, destination: &Destination) {
        let mut detection = Detection::declared();
        let drain = self.proxy.drain.started().child_token();
        let heard = tokio::select! {
            heard = detection.client(&mut client) => heard,
            () = drain.cancelled() => Some(Found::Declared),
        };
        match heard {
            Some(Found::Http(_) | Found::Declared) => {
                self.requests(Prefixed::new(detection.request(), client), None).await;
            }
            Some(Found::Opaque(why)) => {
                if let Some(opened) = self.open_or_reset(&client, destination).await {
                    self.contradicted(why);
                    opened.relay(client, detection.early(), &self).await;
                }
            }
            // Without a server, a request is still answered with the reason.
            None => match Box::pin(self.open(destination)).await {
                Ok(opened) => self.listen(client, opened, detection).await,
                Err(Unopened { spans, .. }) => {
                    spans.into_iter().for_each(TcpSpan::discard);
                    self.requests(client, None).await;
                }
            },
        }
    }

    /// Opens the way first and lets whoever speaks first decide, so that a server that speaks
    /// first is not kept waiting.
    async fn undeclared(self, client: TcpStream, destination: &Destination) {
        let Some(opened) = self.open_or_reset(&client, destination).await else { return };
        self.listen(client, opened, Detection::undeclared()).await;
    }

    /// Carries what a connection turns out to be once one of its ends speaks.
    async fn listen(self, mut client: TcpStream, mut opened: Opened, mut detection: Detection) {
        let cut = self.cut(&opened.hop);
        let found = tokio::select! {
            found = detection.both(&mut client, &mut opened.server) => found,
            why = cut.happens() => {
                io::reset(&client);
                return opened.abort(why);
            }
        };
        match found {
            Found::Opaque(why) => {
                self.contradicted(why);
                opened.relay(client, detection.early(), &self).await;
            }
            Found::Http(protocol) => {
                let hop = opened.hop.clone();
                if let Err(error) = opened.adopt(&self, protocol).await {
                    tracing::debug!(dialled = %self.dialled, %error, "the server does not speak HTTP");
                    return io::reset(&client);
                }
                self.requests(Prefixed::new(detection.request(), client), Some(hop)).await;
            }
            Found::Declared => {
                opened.forget().await;
                self.requests(Prefixed::new(detection.request(), client), None).await;
            }
        }
    }

    /// Counts a connection that is opaque although something says that it is HTTP.
    fn contradicted(&self, why: Option<Contrary>) {
        let Some(why) = why else { return };
        self.proxy.contradictions.count(why);
        tracing::debug!(client = %self.client, dialled = %self.dialled, reason = why.as_str(),
            "carried as opaque");
    }

    /// Waits until the server of `hop` leaves, where it is a pod of this node. Whatever else cuts the
    /// connection drops what waits here.
    async fn server_left(&self, hop: &Hop) -> Failure {
        match &hop.way {
            Way::SameNode(server) => server.left().await,
            Way::Tunnel(_) | Way::Plain => std::future::pending().await,
        }
    }

    /// What may put an end to what is carried to `hop`.
    fn cut(&self, hop: &Hop) -> Cut {
        match &hop.way {
            Way::SameNode(server) => self.cut.with(server),
            Way::Tunnel(_) | Way::Plain => self.cut.clone(),
        }
    }

    /// Picks an endpoint and connects to it. The application's connect() has succeeded long
    /// since, so a failure here reaches it as a reset; span and log say why.
    async fn open_or_reset(&self, client: &TcpStream, destination: &Destination) -> Option<Opened> {
        match Box::pin(self.open(destination)).await {
            Ok(opened) => Some(opened),
            Err(Unopened { refusal, spans }) => {
                tracing::info!(
                    client = %self.client, dialled = %self.dialled, error = %refusal.message,
                    "outbound connection failed"
                );
                io::reset(client);
                for span in spans {
                    span.finish(Some(refusal.failure));
                }
                None
            }
        }
    }

    async fn open(&self, destination: &Destination) -> Result<Opened, Unopened> {
        let hop = match Hop::choose(&self.proxy, &self.pod, self.dialled, destination) {
            Ok(hop) => hop,
            Err(error) => {
                let flow = self.flow(None, service_of(destination));
                let span = self.proxy.telemetry.connection(&flow, None);
                let refusal = Refusal::unavailable(Failure::NoHealthyUpstream, error);
                return Err(Unopened { refusal, spans: vec![span] });
            }
        };
        // Before it is dialled: policies may change until its protocol is known.
        let generation = self.generation(&hop);
        let flow = self.flow(Some(&hop), hop.service.clone());
        let span = self.proxy.telemetry.connection(&flow, None);
        let mut span = span.cut_by(self.cut(&hop).cause());
        let mut headers = HeaderMap::new();
        span.inject(&mut headers);
        let began = Instant::now();
        let opened = match &hop.way {
            Way::SameNode(pod) => {
                let arrival = self.arrival(&hop);
                match inbound::open(&self.proxy, pod, &arrival, Some(&headers)).await {
                    Ok((app, server_span)) => Ok((Io::Tcp(app), Some(server_span))),
                    Err((refusal, server_span)) => Err((refusal, Some(server_span))),
                }
            }
            Way::Tunnel(peer) => match self.tunnel(&hop, peer, headers).await {
                Ok(server) => Ok((server, None)),
                Err(refusal) => Err((refusal, None)),
            },
            Way::Plain => match self.plain(&hop).await {
                Ok(server) => Ok((server, None)),
                Err(refusal) => Err((refusal, None)),
            },
        };
        match opened {
            Ok((server, server_span)) => {
                span.connected(began.elapsed());
                let spans = std::iter::once(span).chain(server_span).collect();
                Ok(Opened { server, hop, generation, spans })
            }
            Err((refusal, server_span)) => {
                let spans = std::iter::once(span).chain(server_span).collect();
                Err(Unopened { refusal, spans })
            }
        }
    }

    /// A byte stream to an endpoint elsewhere, for requests to share.
    async fn reach(&self, hop: &Hop) -> Result<Io, Refusal> {
        match &hop.way {
            Way::Tunnel(peer) => self.tunnel(hop, peer, HeaderMap::new()).await,
            Way::Plain | Way::SameNode(_) => self.plain(hop).await,
        }
    }

    async fn plain(&self, hop: &Hop) -> Result<Io, Refusal> {
        let dial = self.pod.dialer.from_pod(self.client.ip(), hop.address, self.mark);
        match tokio::time::timeout(CONNECT_TIMEOUT, dial).await {
            Ok(Ok(stream)) => Ok(Io::Tcp(stream)),
            Ok(Err(error)) => Err(Refusal::unavailable(
                Failure::ConnectFailure,
                format!("could not connect to {}: {error}", hop.address),
            )),
            Err(_) => Err(Refusal::unavailable(
                Failure::Timeout,
                format!("no answer from {} within {CONNECT_TIMEOUT:?}", hop.address),
            )),
        }
    }

    async fn tunnel(&self, hop: &Hop, peer: &Principal, headers: HeaderMap) -> Result<Io, Refusal> {
        let source = self.pod.workload().principal.clone();
        let tls = match self.proxy.identity.client_config(&source, peer).await {
            Ok(tls) => tls,
            Err(missing @ IdentityError::NotIssued { .. }) => {
                return Err(Refusal::uncertified(missing));
            }
            Err(error) => return Err(Refusal::unavailable(Failure::TlsFailure, error)),
        };
        let address = SocketAddr::new(hop.address.ip(), HBONE_PORT);
        let key = TunnelKey { source, peer: peer.clone(), address };
        let connect = ConnectRequest { authority: hop.address, headers };
        let dial = || self.pod.dialer.from_pod(self.client.ip(), address, 0);
        let made = Made { tls, generation: self.generation(hop) };
        let opened = self.pod.tunnels.open(key, connect, dial, made).await;
        opened.map(Io::Hbone).map_err(|error| {
            Refusal::unavailable(failure_of(&error), format!("no tunnel to {address}: {error}"))
        })
    }

    /// Which connections that are kept may be used for this one.
    fn generation(&self, hop: &Hop) -> u64 {
        let snapshot = self.proxy.snapshots.load();
        generation(&snapshot, &self.pod.workload(), hop.workload.as_deref())
    }

    /// What spans and metrics of the client's side say about this connection.
    fn flow(&self, hop: Option<&Hop>, service: Option<Arc<Service>>) -> Arc<Flow> {
        let local = self.pod.workload();
        let remote = hop.and_then(|hop| hop.workload.clone());
        let meshed = hop.is_some_and(|hop| !matches!(hop.way, Way::Plain));
        Arc::new(Flow {
            reporter: Reporter::Source,
            source_principal: Some(local.principal.clone()),
            destination_principal: remote
                .as_ref()
                .filter(|_| meshed)
                .map(|remote| remote.principal.clone()),
            local,
            remote,
            service,
            security: if meshed { SecurityPolicy::MutualTls } else { SecurityPolicy::None },
            same_node: hop.is_some_and(|hop| matches!(hop.way, Way::SameNode(_))),
            client: self.client,
            server: self.dialled,
            peer: hop.map_or(self.dialled, |hop| hop.address),
        })
    }

    /// How this connection looks to a pod of the same node.
    fn arrival(&self, hop: &Hop) -> Arrival {
        let local = self.pod.workload();
        Arrival {
            client: self.client,
            app: hop.address,
            principal: Some(local.principal.clone()),
            source: Some(local),
            same_node: true,
            cut: self.cut(hop),
        }
    }
}

fn failure_of(error: &TunnelError) -> Failure {
    match error {
        TunnelError::Tls { .. } => Failure::TlsFailure,
        TunnelError::Timeout { .. } => Failure::Timeout,
        _ => Failure::ConnectFailure,
    }
}

/// A connection to an endpoint whose protocol may yet have to be found out.
struct Opened {
    server: Io,
    hop: Hop,
    /// That of the policies it was dialled under.
    generation: u64,
    /// The client's span; on the same node the server's too.
    spans: Vec<TcpSpan>,
}

/// Why there is no connection, with the spans that must tell.
struct Unopened {
    refusal: Refusal,
    spans: Vec<TcpSpan>,
}

impl Opened {
    async fn relay(self, client: TcpStream, early: Early, by: &Outbound) {
        let Self { server, hop, mut spans, .. } = self;
        spans.iter_mut().for_each(TcpSpan::opaque);
        let (client, buffered) = (Io::Tcp(client), by.pod.limits.buffered_out());
        let left = by.server_left(&hop);
        let failure = relay(client, server, early, buffered, &mut spans, left).await;
        if failure == Some(Failure::BufferLimit) {
            by.proxy.limits.overfull(&by.pod.uid);
        }
        for span in spans {
            span.finish(failure);
        }
    }

    /// Puts the connection among those that requests share: what it carries is recorded
    /// request by request from here on.
    async fn adopt(self, by: &Outbound, protocol: Protocol) -> Result<(), hyper::Error> {
        self.spans.into_iter().for_each(TcpSpan::discard);
        let key = PoolKey::speaking(by.client.ip(), self.hop.address, protocol);
        match &self.hop.way {
            // No CNI has a say in those.
            Way::SameNode(pod) => pod.inbound.adopt(key, self.server).await,
            way => {
                let key = key.of_generation(self.generation).marked(by.mark);
                by.pod.outbound(way.peer()).adopt(key, self.server).await
            }
        }
    }

    /// Closes what nothing was said on, neither by the client nor by the server.
    async fn forget(mut self) {
        self.spans.into_iter().for_each(TcpSpan::discard);
        // Fails on one that is closed already.
        let _ = self.server.shutdown().await;
    }

    fn abort(self, failure: Failure) {
        self.server.abort();
        for span in self.spans {
            span.finish(Some(failure));
        }
    }
}

/// Answers the requests of one connection by sending each to an endpoint of its own.
struct Requests {
    outbound: Outbound,
    /// The endpoint that was connected to before the connection was known to be HTTP.
    first: Mutex<Option<Hop>>,
    /// What spans say about this connection, by endpoint.
    flows: Mutex<Vec<(SocketAddr, Arc<Flow>)>>,
}

impl web::Handler for Requests {
    async fn handle(&self, request: Request<Body>) -> Response<Body> {
        if request.version() != Version::HTTP_2 {
            return self.answer(request).await;
        }
        let Outbound { proxy, pod, .. } = &self.outbound;
        let flow = || self.outbound.flow(None, service_of(&self.outbound.destination()));
        let (place, cut) = (pod.limits.departing(), &self.outbound.cut);
        in_place(proxy, place, flow, cut, request, |request| self.answer(request)).await
    }
}

impl Requests {
    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let Outbound { proxy, pod, client, dialled, .. } = &self.outbound;
        let destination = self.outbound.destination();
        let chosen = match self.first_hop() {
            Some(hop) => Ok(hop),
            None => Hop::choose(proxy, pod, *dialled, &destination),
        };
        let hop = match chosen {
            Ok(hop) => hop,
            Err(error) => {
                let flow = self.outbound.flow(None, service_of(&destination));
                let refusal = Refusal::unavailable(Failure::NoHealthyUpstream, error);
                let cut = &self.outbound.cut;
                return exchange(proxy, &flow, cut, request, |_| async { Err(refusal) }).await;
            }
        };
        let flow = self.flow(&hop);
        let cut = self.outbound.cut(&hop);
        exchange(proxy, &flow, &cut, request, |request| async {
            if let Way::SameNode(server) = &hop.way {
                let arrival = self.outbound.arrival(&hop);
                let flow = arrival.flow(proxy, server);
                return tokio::select! {
                    answered = inbound::deliver(proxy, server, &arrival, &flow, request) => Ok(answered),
                    why = server.left() => {
                        Err(Refusal::unavailable(why, "the pod left before it answered"))
                    }
                };
            }
            let key = PoolKey::new(client.ip(), hop.address, request.version());
            let key = key.of_generation(self.outbound.generation(&hop)).marked(self.outbound.mark);
            let dial = || self.outbound.reach(&hop);
            pod.outbound(hop.way.peer()).send(key, request, dial).await.map_err(Refusal::from)
        })
        .await
    }

    fn first_hop(&self) -> Option<Hop> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn flow(&self, hop: &Hop) -> Arc<Flow> {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let local = self.outbound.pod.workload();
        if let Some((_, flow)) = flows.iter().find(|(address, _)| *address == hop.address)
            && Arc::ptr_eq(&flow.local, &local)
            && flow.remote.as_ref().map(Arc::as_ptr) == hop.workload.as_ref().map(Arc::as_ptr)
            && flow.same_node == matches!(hop.way, Way::SameNode(_))
        {
            return flow.clone();
        }
        // A newer snapshot may say something else about this endpoint.
        flows.retain(|(address, _)| *address != hop.address);
        let flow = self.outbound.flow(Some(hop), hop.service.clone());
        flows.push((hop.address, flow.clone()));
        flow
    }
}
