//! Connections that pods of this node open: the client's side.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    CONNECT_TIMEOUT, Hop, Io, LocalPod, Proxy, Way,
    admission::{Party, Standing, admit_opaque, certified},
    carried::{Carried, lasting},
    cut::Cut,
    detect::{Contrary, Detection, Found},
    generation::generation,
    hop::{declared, service_of},
    inbound::{self, Arrival},
    io,
    loops::leads_out,
    refusal::Refusal,
    relay::{Early, relay},
    requests::{First, Upstream, departing},
};
use crate::{
    capture::Accepted,
    http::{Protocol, Stream, h2::PoolKey},
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
    if !Box::pin(outbound.let_out(&stream, &destination)).await {
        return;
    }
    // Each of the ways that a connection may go is boxed, here and below: it would keep room for the
    // largest of all, in each future around it.
    let protocol = outbound.declared(&destination);
    let carried: Carried = match protocol {
        AppProtocol::Http | AppProtocol::Http2 => lasting(outbound.http(stream, destination)),
        AppProtocol::Opaque => Box::pin(outbound.opaque(stream, destination)),
        AppProtocol::Unknown => lasting(outbound.undeclared(stream, destination)),
    };
    carried.await;
}

/// One connection a pod opened.
pub(super) struct Outbound {
    pub(super) proxy: Arc<Proxy>,
    pub(super) pod: Arc<LocalPod>,
    /// The pod's own end.
    pub(super) client: SocketAddr,
    /// What the application dialled.
    pub(super) dialled: SocketAddr,
    /// What the application had marked its socket with.
    pub(super) mark: u32,
    /// What may put an end to it.
    pub(super) cut: Cut,
}

impl Outbound {
    /// What the dialled address means by the newest snapshot.
    pub(super) fn destination(&self) -> Destination {
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

    /// Answers requests, of which `read` has been read, and to the first of which there may be a
    /// connection.
    fn requests(self, client: TcpStream, read: Bytes, first: Option<First>) -> Carried {
        lasting(departing(self, Io::Tcp(client), read, first))
    }

    /// Where HTTP is declared, requests find their way by themselves. What turns out to be something
    /// else is carried all the same, and counted.
    fn http(
        self,
        mut client: TcpStream,
        destination: Destination,
    ) -> impl Future<Output = ()> + Send {
        let mut detection = Detection::declared();
        async move {
            let heard = Box::pin(async {
                let drain = self.proxy.drain.started().child_token();
                tokio::select! {
                    heard = detection.client(&mut client) => heard,
                    () = drain.cancelled() => Some(Found::Declared),
                }
            });
            let carried: Carried = match heard.await {
                Some(Found::Http(_) | Found::Declared) => {
                    self.requests(client, detection.request(), None)
                }
                Some(Found::Opaque(why)) => {
                    Box::pin(self.contrary(client, destination, detection, why))
                }
                None => Box::pin(self.silent(client, destination, detection)),
            };
            carried.await;
        }
    }

    /// Carries what was declared as HTTP and is not.
    async fn contrary(
        self,
        client: TcpStream,
        destination: Destination,
        detection: Detection,
        why: Option<Contrary>,
    ) {
        let Some(opened) = self.open_or_reset(&client, &destination).await else { return };
        self.contradicted(why);
        Box::pin(opened.relay(client, detection.early(), &self)).await;
    }

    /// Connects to the server of a client that says nothing: it may be the one to speak first.
    async fn silent(self, client: TcpStream, destination: Destination, detection: Detection) {
        match Box::pin(self.open(&destination)).await {
            Ok(opened) => Box::pin(self.listen(client, opened, detection)).await,
            // Without a server, a request is still answered with the reason.
            Err(Unopened { spans, .. }) => {
                spans.into_iter().for_each(TcpSpan::discard);
                self.requests(client, Bytes::new(), None).await;
            }
        }
    }

    /// What is declared to be opaque is carried as it is.
    async fn opaque(self, client: TcpStream, destination: Destination) {
        if let Some(opened) = self.open_or_reset(&client, &destination).await {
            opened.relay(client, Early::default(), &self).await;
        }
    }

    /// Opens the way first and lets whoever speaks first decide, so that a server that speaks
    /// first is not kept waiting.
    async fn undeclared(self, client: TcpStream, destination: Destination) {
        let Some(opened) = self.open_or_reset(&client, &destination).await else { return };
        Box::pin(self.listen(client, opened, Detection::undeclared())).await;
    }

    /// Carries what a connection turns out to be once one of its ends speaks.
    async fn listen(self, mut client: TcpStream, mut opened: Opened, mut detection: Detection) {
        let heard = Box::pin(async {
            let cut = self.cut(&opened.hop);
            tokio::select! {
                found = detection.both(&mut client, &mut opened.server) => Ok(found),
                why = cut.happens() => Err(why),
            }
        });
        let found = match heard.await {
            Ok(found) => found,
            Err(why) => {
                io::reset(&client);
                return opened.abort(why);
            }
        };
        match found {
            Found::Opaque(why) => {
                self.contradicted(why);
                Box::pin(opened.relay(client, detection.early(), &self)).await;
            }
            Found::Http(protocol) => match Box::pin(opened.adopt(&self, protocol)).await {
                Ok(first) => self.requests(client, detection.request(), Some(first)).await,
                Err(error) => {
                    tracing::debug!(dialled = %self.dialled, %error, "the server was gone before it was asked");
                    io::reset(&client);
                }
            },
            Found::Declared => {
                Box::pin(opened.forget()).await;
                self.requests(client, detection.request(), None).await;
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

    /// Waits until the server of `hop` leaves, where it is a pod of this node, or what policy said of
    /// the connection, which is `standing`, is not so any more. Whatever else cuts the connection drops
    /// what waits here.
    pub(super) async fn server_left(&self, hop: &Hop, standing: Option<Standing>) -> Failure {
        let Way::SameNode(server) = &hop.way else { return std::future::pending().await };
        let mut standing = standing.unwrap_or_else(|| Standing::of(&self.proxy));
        let arrival = self.arrival(hop);
        tokio::select! {
            left = server.left() => left,
            denied = standing.revoked(&self.proxy, server, &arrival) => {
                tracing::info!(client = %self.client, dialled = %self.dialled, error = %denied,
                    "connection cut");
                denied.failure()
            }
        }
    }

    /// What may put an end to what is carried to `hop`.
    pub(super) fn cut(&self, hop: &Hop) -> Cut {
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
    pub(super) async fn reach(&self, hop: &Hop) -> Result<Io, Refusal> {
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
            let why = format!("no tunnel to {address}: {error}");
            match error {
                // Sluice's, and ztunnel's.
                TunnelError::Refused {
                    status: StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED,
                } => Refusal::denied(why),
                error => Refusal::unavailable(failure_of(&error), why),
            }
        })
    }

    /// Which connections that are kept may be used for this one.
    pub(super) fn generation(&self, hop: &Hop) -> u64 {
        let snapshot = self.proxy.snapshots.load();
        generation(&snapshot, &self.pod.workload(), hop.workload.as_deref())
    }

    /// What spans and metrics of the client's side say about this connection.
    pub(super) fn flow(&self, hop: Option<&Hop>, service: Option<Arc<Service>>) -> Arc<Flow> {
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
    pub(super) fn arrival(&self, hop: &Hop) -> Arrival {
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
        let mut standing = Standing::of(&by.proxy);
        if let Way::SameNode(pod) = &hop.way {
            match admit_opaque(&by.proxy, pod, &by.arrival(&hop), &mut standing).await {
                // The server's is the last.
                Ok(told) => spans.iter_mut().last().into_iter().for_each(|span| {
                    span.judged(told.clone());
                }),
                Err(denied) => {
                    tracing::info!(client = %by.client, dialled = %by.dialled, error = %denied,
                        "connection refused");
                    io::reset(&client);
                    server.abort();
                    let why = denied.to_string();
                    if let Some(mut span) = spans.pop() {
                        span.judged(denied.judgement());
                        span.refuse(denied.failure(), &why);
                    }
                    return spans.into_iter().for_each(|span| span.finish(Some(denied.failure())));
                }
            }
        }
        spans.iter_mut().for_each(TcpSpan::opaque);
        let (client, buffered) = (Io::Tcp(client), by.pod.limits.buffered_out());
        let left = by.server_left(&hop, Some(standing));
        let failure = relay(client, server, early, buffered, &mut spans, left).await;
        if failure == Some(Failure::BufferLimit) {
            by.proxy.limits.overfull(&by.pod.uid);
        }
        for span in spans {
            span.finish(failure);
        }
    }

    /// The connection is for requests, which are recorded one by one from here on.
    ///
    /// # Errors
    /// When the server is gone already.
    async fn adopt(self, by: &Outbound, protocol: Protocol) -> Result<First, h2::Error> {
        let Self { server, hop, generation, spans } = self;
        if protocol != Protocol::Http2 {
            spans.into_iter().for_each(TcpSpan::discard);
            return Ok(First { hop, server: Some((generation, server)) });
        }
        let key = PoolKey::new(by.client.ip(), hop.address);
        let adopted = match &hop.way {
            // No CNI has a say in those.
            Way::SameNode(pod) => {
                let server = Upstream::handed_over(server, &by.proxy, pod, &by.arrival(&hop));
                pod.inbound.adopt(key, server).await
            }
            way => {
                let key = key.of_generation(generation).marked(by.mark);
                by.pod.outbound(way.peer()).adopt(key, Upstream::from(server)).await
            }
        };
        for span in spans {
            match &adopted {
                Ok(()) => span.discard(),
                Err(_) => span.finish(Some(Failure::ResetRemote)),
            }
        }
        adopted.map(|()| First { hop, server: None })
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
