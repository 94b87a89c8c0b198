//! Connections that pods of this node open: the client's side.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use http::HeaderMap;
use tokio::net::TcpStream;

use super::{
    CONNECT_TIMEOUT, Hop, Io, LocalPod, Proxy, Way,
    admission::{Party, certified},
    detect::{Side, detect},
    exchange::Refusal,
    generation::generation,
    hop::{declared, service_of},
    inbound::{self, Arrival},
    io,
    loops::leads_out,
    relay::{Early, Outcome, relay},
    requests::{First, departing},
};
use crate::{
    capture::Accepted,
    http::{PoolKey, Protocol, Stream},
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
    let outbound = Outbound { proxy, pod, client, dialled, mark };
    let destination = outbound.destination();
    let _permit = match outbound.pod.limits.departing() {
        Ok(permit) => permit,
        Err(limit) => return outbound.over(limit, &stream, &destination),
    };
    if !outbound.let_out(&stream, &destination).await {
        return;
    }
    match declared(&destination) {
        AppProtocol::Http | AppProtocol::Http2 => {
            Box::pin(departing(outbound, Io::Tcp(stream), Bytes::new(), None)).await;
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
pub(super) struct Outbound {
    pub(super) proxy: Arc<Proxy>,
    pub(super) pod: Arc<LocalPod>,
    /// The pod's own end.
    pub(super) client: SocketAddr,
    /// What the application dialled.
    pub(super) dialled: SocketAddr,
    /// What the application had marked its socket with.
    pub(super) mark: u32,
}

impl Outbound {
    /// What the dialled address means by the newest snapshot.
    pub(super) fn destination(&self) -> Destination {
        self.proxy.snapshots.load().destination(self.dialled)
    }

    /// Refuses a connection that is one too many.
    fn over(&self, limit: Limit, client: &TcpStream, destination: &Destination) {
        io::reset(client);
        if self.proxy.limits.refused(limit) {
            tracing::warn!(client = %self.client, dialled = %self.dialled, pod = %self.pod.uid,
                reason = limit.as_str(), "outbound connections are refused: {limit}");
            let flow = self.flow(None, service_of(destination));
            let span = self.proxy.telemetry.connection(&flow, None);
            span.finish(0, 0, Some(limit.into()));
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
        span.refuse(0, 0, Failure::CertificateMissing, &why);
        false
    }

    /// Opens the way first and lets whoever speaks first decide, so that a server that speaks
    /// first is not kept waiting.
    async fn undeclared(self, mut client: TcpStream, destination: &Destination) {
        let Some(mut opened) = self.open_or_reset(&client, destination).await else { return };
        let detected = tokio::select! {
            detected = detect(&mut client, &mut opened.server) => detected.map_err(Side::failure),
            why = self.cut(&opened.hop) => Err(why),
        };
        let detected = match detected {
            Ok(detected) => detected,
            Err(why) => {
                io::reset(&client);
                return opened.abort(why);
            }
        };
        if detected.protocol == Protocol::Opaque {
            return opened.relay(client, detected.early, &self).await;
        }
        match opened.adopt(&self, detected.protocol).await {
            Ok(first) => {
                let read = detected.early.from_client;
                Box::pin(departing(self, Io::Tcp(client), read, Some(first))).await;
            }
            Err(error) => {
                tracing::debug!(dialled = %self.dialled, %error, "the server does not speak HTTP/2");
                io::reset(&client);
            }
        }
    }

    /// Waits until what is still open on the way to `hop` must end, and says why.
    pub(super) async fn cut(&self, hop: &Hop) -> Failure {
        let here = self.pod.cut(&self.proxy.drain);
        match &hop.way {
            Way::SameNode(server) => tokio::select! {
                why = here => why,
                why = server.cut(&self.proxy.drain) => why,
            },
            Way::Tunnel(_) | Way::Plain => here.await,
        }
    }

    /// Picks an endpoint and connects to it. The application's connect() has succeeded long
    /// since, so a failure here reaches it as a reset; span and log say why.
    async fn open_or_reset(&self, client: &TcpStream, destination: &Destination) -> Option<Opened> {
        match self.open(destination).await {
            Ok(opened) => Some(opened),
            Err(Unopened { refusal, spans }) => {
                tracing::info!(
                    client = %self.client, dialled = %self.dialled, error = %refusal.message,
                    "outbound connection failed"
                );
                io::reset(client);
                for span in spans {
                    span.finish(0, 0, Some(refusal.failure));
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
        let mut span = self.proxy.telemetry.connection(&flow, None);
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
            Refusal::unavailable(failure_of(&error), format!("no tunnel to {address}: {error}"))
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
        let Outcome { sent, received, failure } =
            relay(Io::Tcp(client), server, early, by.pod.limits.buffered_out(), by.cut(&hop)).await;
        if failure == Some(Failure::BufferLimit) {
            by.proxy.limits.overfull(&by.pod.uid);
        }
        for span in spans {
            span.finish(sent, received, failure);
        }
    }

    /// The connection is for requests, which are recorded one by one from here on.
    ///
    /// # Errors
    /// When the server does not speak HTTP/2 after all.
    async fn adopt(self, by: &Outbound, protocol: Protocol) -> Result<First, hyper::Error> {
        let Self { server, hop, generation, spans } = self;
        spans.into_iter().for_each(TcpSpan::discard);
        if protocol != Protocol::Http2 {
            return Ok(First { hop, server: Some((generation, server)) });
        }
        let key = PoolKey::new(by.client.ip(), hop.address);
        match &hop.way {
            // No CNI has a say in those.
            Way::SameNode(pod) => pod.inbound.adopt(key, server).await?,
            way => {
                let key = key.of_generation(generation).marked(by.mark);
                by.pod.outbound(way.peer()).adopt(key, server).await?;
            }
        }
        Ok(First { hop, server: None })
    }

    fn abort(self, failure: Failure) {
        self.server.abort();
        for span in self.spans {
            span.finish(0, 0, Some(failure));
        }
    }
}
