//! Connections that pods of this node open: the client's side.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    HBONE_PORT, Hop, Io, LocalPod, Proxy, Way,
    detect::detect,
    exchange::{Refusal, exchange},
    hop::declared,
    inbound::{self, Arrival},
    relay::{self, relay},
};
use crate::{
    capture::Accepted,
    http::{self as web, Body, PoolKey, Prefixed, Protocol, SendError},
    identity::IdentityError,
    mesh::{AppProtocol, Destination},
    telemetry::{Failure, Flow, Reporter, SecurityPolicy, TcpSpan},
    tunnel::{ConnectRequest, PoolKey as TunnelKey, TunnelError},
};

/// How long the application at the other end may take to accept a connection.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// One connection a pod opened.
struct Outbound {
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    /// The pod's own end.
    client: SocketAddr,
    /// What the application dialled.
    dialled: SocketAddr,
}

/// Carries one captured connection from a pod of this node to where it wants to go.
pub(super) async fn connection(proxy: Arc<Proxy>, pod: Arc<LocalPod>, accepted: Accepted) {
    let Accepted { stream, peer: client, original_destination: dialled } = accepted;
    let outbound = Outbound { proxy, pod, client, dialled };
    let destination = outbound.destination();
    match declared(&destination) {
        AppProtocol::Http | AppProtocol::Http2 => outbound.http(stream, None).await,
        AppProtocol::Opaque => outbound.opaque(stream, &destination).await,
        AppProtocol::Unknown => outbound.undeclared(stream, &destination).await,
    }
}

impl Outbound {
    /// What the dialled address means by the newest snapshot.
    fn destination(&self) -> Destination {
        self.proxy.snapshots.load().destination(self.dialled)
    }

    /// Requests find their endpoint one by one; `first` has been chosen and connected already.
    async fn http(self, stream: impl web::Stream, first: Option<Hop>) {
        let drain = self.proxy.drain.started().clone();
        let handler = Requests { outbound: self, first: Mutex::new(first), flows: Mutex::default() };
        if let Err(error) = web::serve(stream, Arc::new(handler), &drain).await {
            tracing::debug!(%error, "a pod's HTTP connection ended");
        }
    }

    async fn opaque(&self, mut client: TcpStream, destination: &Destination) {
        let Some(mut opened) = self.open_or_reset(&mut client, destination).await else { return };
        let outcome = relay(client, &mut opened.upstream, Bytes::new(), self.proxy.drain.started()).await;
        opened.finish(&outcome);
    }

    /// Opens the way first and then lets whoever speaks first decide, so that a server that
    /// speaks first is not kept waiting.
    async fn undeclared(self, mut client: TcpStream, destination: &Destination) {
        let Some(mut opened) = self.open_or_reset(&mut client, destination).await else { return };
        let detected = match detect(&mut client, &mut opened.upstream).await {
            Ok(detected) => detected,
            Err(error) => {
                relay::abort(&client);
                return opened.finish(&relay::Outcome::broken(&error));
            }
        };
        if detected.protocol == Protocol::Opaque {
            if client.write_all(&detected.from_server).await.is_err() {
                relay::abort(&client);
            }
            let outcome =
                relay(client, &mut opened.upstream, detected.from_client, self.proxy.drain.started()).await;
            opened.received_before(detected.from_server.len());
            return opened.finish(&outcome);
        }
        let hop = opened.hop.clone();
        if let Err(error) = opened.adopt(&self, detected.protocol).await {
            tracing::debug!(%error, "the HTTP/2 handshake with the server failed");
            return relay::abort(&client);
        }
        self.http(Prefixed::new(detected.from_client, client), Some(hop)).await;
    }

    /// Picks an endpoint and connects to it. The application's connect() has succeeded long
    /// since, so a failure here reaches it as a reset; span and log say why.
    async fn open_or_reset(
        &self,
        client: &mut TcpStream,
        destination: &Destination,
    ) -> Option<Opened> {
        match self.open(destination).await {
            Ok(opened) => Some(opened),
            Err(Unopened { refusal, spans }) => {
                tracing::debug!(
                    client = %self.client, dialled = %self.dialled, error = %refusal.message,
                    "outbound connection failed"
                );
                relay::abort(client);
                for span in spans {
                    span.finish(0, 0, Some(refusal.failure));
                }
                None
            }
        }
    }

    async fn open(&self, destination: &Destination) -> Result<Opened, Unopened> {
        let hop = match Hop::choose(&self.proxy, self.dialled, destination) {
            Ok(hop) => hop,
            Err(error) => {
                let flow = self.flow(None, destination_service(destination));
                let span = self.proxy.telemetry.connection(&flow, None);
                let refusal = Refusal::unavailable(Failure::NoHealthyUpstream, error);
                return Err(Unopened { refusal, spans: vec![span] });
            }
        };
        let flow = self.flow(Some(&hop), hop.service.clone());
        let mut span = self.proxy.telemetry.connection(&flow, None);
        let mut headers = HeaderMap::new();
        span.inject(&mut headers);
        let began = Instant::now();
        let opened = match &hop.way {
            Way::SameNode(pod) => {
                let arrival = self.arrival(&hop, pod);
                match inbound::open(&self.proxy, pod, &arrival, Some(&headers)).await {
                    Ok((app, server_span)) => Ok((Io::Tcp(app), Some(server_span))),
                    Err((refusal, server_span)) => {
                        return Err(Unopened { refusal, spans: vec![span, server_span] });
                    }
                }
            }
            _ => self.reach(&hop, headers).await.map(|upstream| (upstream, None)),
        };
        match opened {
            Ok((upstream, server_span)) => {
                span.connected(began.elapsed());
                let spans = std::iter::once(span).chain(server_span).collect();
                Ok(Opened { upstream, hop, spans, received_before: 0 })
            }
            Err(refusal) => Err(Unopened { refusal, spans: vec![span] }),
        }
    }

    /// A byte stream to an endpoint that is not handed over in this process.
    async fn reach(&self, hop: &Hop, headers: HeaderMap) -> Result<Io, Refusal> {
        match &hop.way {
            Way::Tunnel(peer) => self.tunnel(hop, peer, headers).await,
            Way::Plain | Way::SameNode(_) => {
                let dial = self.pod.dialer.from_pod(self.client.ip(), hop.address);
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
        }
    }

    async fn tunnel(
        &self,
        hop: &Hop,
        peer: &crate::mesh::Principal,
        headers: HeaderMap,
    ) -> Result<Io, Refusal> {
        let source = self.pod.workload().principal.clone();
        let identity = |error: IdentityError| Refusal::unavailable(Failure::TlsFailure, error);
        let tls = self.proxy.identity.client_config(&source, peer).await.map_err(identity)?;
        let address = SocketAddr::new(hop.address.ip(), HBONE_PORT);
        let key = TunnelKey { source, peer: peer.clone(), address };
        let connect = ConnectRequest { authority: hop.address, headers };
        let dial = || self.pod.dialer.from_pod(self.client.ip(), address);
        let opened = self.pod.tunnels.open(key, connect, dial, tls).await;
        opened.map(Io::Hbone).map_err(|error| {
            Refusal::unavailable(failure_of(&error), format!("no tunnel to {address}: {error}"))
        })
    }

    fn flow(&self, hop: Option<&Hop>, service: Option<Arc<crate::mesh::Service>>) -> Arc<Flow> {
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
    fn arrival(&self, hop: &Hop, _pod: &LocalPod) -> Arrival {
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

fn destination_service(destination: &Destination) -> Option<Arc<crate::mesh::Service>> {
    match destination {
        Destination::Service(service, _) | Destination::Workload(_, Some((service, _))) => {
            Some(service.clone())
        }
        _ => None,
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
    upstream: Io,
    hop: Hop,
    /// The client's span; on the same node the server's too.
    spans: Vec<TcpSpan>,
}

/// Why there is no connection, with the spans that must tell.
struct Unopened {
    refusal: Refusal,
    spans: Vec<TcpSpan>,
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
        let Outbound { proxy, client, .. } = &self.outbound;
        let destination = self.outbound.destination();
        let hop = match self.first_hop() {
            Some(hop) => Ok(hop),
            None => Hop::choose(proxy, self.outbound.dialled, &destination),
        };
        let hop = match hop {
            Ok(hop) => hop,
            Err(error) => {
                let flow = self.outbound.flow(None, destination_service(&destination));
                let refusal = Refusal::unavailable(Failure::NoHealthyUpstream, error);
                return exchange(&proxy.telemetry, &flow, request, |_| async { Err(refusal) })
                    .await;
            }
        };
        let flow = self.flow(&hop);
        exchange(&proxy.telemetry, &flow, request, |request| async {
            if let Way::SameNode(pod) = &hop.way {
                let arrival = self.outbound.arrival(&hop);
                return Ok(inbound::handle(proxy, pod, &arrival, request).await);
            }
            let key = PoolKey::new(client.ip(), hop.address, request.version());
            let dial = || self.outbound.reach(&hop, HeaderMap::new());
            self.outbound.pod.outbound.send(key, request, dial).await.map_err(Refusal::from)
        })
        .await
    }
}

impl Requests {
    fn first_hop(&self) -> Option<Hop> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn flow(&self, hop: &Hop) -> Arc<Flow> {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, flow)) = flows.iter().find(|(address, _)| *address == hop.address) {
            return flow.clone();
        }
        let flow = self.outbound.flow(Some(hop), hop.service.clone());
        flows.push((hop.address, flow.clone()));
        flow
    }
}

impl From<SendError<Refusal>> for Refusal {
    fn from(error: SendError<Refusal>) -> Self {
        match error {
            SendError::Connect(refusal) => refusal,
            exchange @ SendError::Exchange(_) => Self {
                status: StatusCode::BAD_GATEWAY,
                failure: Failure::ResetRemote,
                message: format!("the server broke off: {exchange}"),
            },
        }
    }
}
