//! Connections that reach pods of this node: the server's side.

use std::{fmt, future::ready, net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::{net::TcpStream, runtime::Handle};

use super::{
    CONNECT_TIMEOUT, Io, LocalPod, Proxy,
    admission::{
        Admitted, Denied, Party, Standing, admit, admit_handed_over, admit_opaque, certified,
    },
    carried::{Carried, lasting},
    cut::Cut,
    detect::{Contrary, Detection, Found},
    io,
    loops::is_somewhere,
    refusal::Refusal,
    relay::{Early, relay},
    requests::{Upstream, arriving},
};
use crate::{
    capture::Accepted,
    http::{Protocol, Stream, h2::PoolKey},
    identity,
    limits::Limit,
    mesh::{AppProtocol, HBONE_PORT, Principal, Workload},
    telemetry::{Failure, Flow, Reporter, SecurityPolicy, TcpSpan},
    tunnel::{self, Connect, TunnelError},
};

/// What is known about a connection when it arrives at a pod.
#[derive(Clone)]
pub(super) struct Arrival {
    /// The client application's address; the server's application will see it.
    pub(super) client: SocketAddr,
    /// The application's own address and port.
    pub(super) app: SocketAddr,
    /// Who the client proved to be; `None` for plaintext.
    pub(super) principal: Option<Principal>,
    /// The client pod, where the mesh knows one at the client's address and it is who it
    /// proved to be.
    pub(super) source: Option<Arc<Workload>>,
    /// Handed over by a pod of this node, in this process.
    pub(super) same_node: bool,
    /// What may put an end to it.
    pub(super) cut: Cut,
}

/// Carries one connection that capture took on its way into a pod of this node.
pub(super) async fn connection(proxy: Arc<Proxy>, pod: Arc<LocalPod>, accepted: Accepted) {
    let Accepted { stream, peer, original_destination, .. } = accepted;
    if !is_somewhere(original_destination.ip()) {
        tracing::warn!(client = %peer, dialled = %original_destination, pod = %pod.uid,
            "refused: a rule in the pod redirects it to the pod's loopback");
        return io::reset(&stream);
    }
    let _permit = match pod.limits.arriving(peer.ip()) {
        Ok(permit) => permit,
        Err(limit) => {
            io::reset(&stream);
            return over(
                &proxy,
                &pod,
                limit,
                &Arrival::unknown(&proxy, &pod, peer, original_destination),
            );
        }
    };
    if original_destination.port() == HBONE_PORT {
        return Box::pin(hbone(proxy, pod, stream, peer, original_destination)).await;
    }
    let source = proxy.snapshots.load().workload(peer.ip()).cloned();
    if source.is_none() {
        proxy.unknown_clients.notify_one();
    }
    let arrival = Arrival {
        // A plaintext peer's address proves nothing about a workload of the mesh.
        source: source.filter(|workload| !workload.meshed),
        ..Arrival::unknown(&proxy, &pod, peer, original_destination)
    };
    carry(proxy, pod, arrival, Door::Plain(stream)).await;
}

/// Notes that a connection, a handshake or a stream was refused as one too many.
fn over(proxy: &Proxy, pod: &LocalPod, limit: Limit, arrival: &Arrival) {
    if proxy.limits.refused(limit) {
        tracing::warn!(client = %arrival.client, app = %arrival.app, pod = %pod.uid,
            reason = limit.as_str(), "inbound connections are refused: {limit}");
        let span = proxy.telemetry.connection(&arrival.flow(proxy, pod), None);
        span.finish(Some(limit.into()));
    }
}

/// Terminates HBONE: each CONNECT becomes one connection to the application.
async fn hbone(
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
) {
    let who = pod.workload().principal.clone();
    let tls = match certified(&proxy, &who, Party::Mesh).await {
        Ok(()) => proxy.identity.server_config(&who).await,
        Err(missing) => Err(missing),
    };
    let refused = |failure: Failure, why: &dyn fmt::Display| {
        tracing::info!(%peer, pod = %pod.uid, error = %why, "HBONE connection refused");
        let arrival = Arrival::unknown(&proxy, &pod, peer, local);
        let span = proxy.telemetry.connection(&arrival.flow(&proxy, &pod), None);
        span.refuse(failure, &why.to_string());
    };
    let tls = match tls {
        Ok(tls) => tls,
        Err(missing) => {
            io::reset(&stream);
            return refused(Failure::CertificateMissing, &missing);
        }
    };
    let handshaking = match pod.limits.handshake(peer.ip()) {
        Ok(handshaking) => handshaking,
        Err(limit) => {
            io::reset(&stream);
            return over(&proxy, &pod, limit, &Arrival::unknown(&proxy, &pod, peer, local));
        }
    };
    let (_tunnel, tunnels) = pod.limits.tunnel();
    // A child: it is polled with the connection, and the one of all has one lock.
    let drain = proxy.drain.started().child_token();
    let connect = {
        let (proxy, pod) = (proxy.clone(), pod.clone());
        move |connect: Connect| {
            let (proxy, pod) = (proxy.clone(), pod.clone());
            // A task of its own, which the end of the tunnel does not end: the drain waits for its
            // span too.
            let drain = proxy.drain.clone();
            let connected = lasting(connected(proxy.clone(), pod.clone(), connect, peer));
            let carried = drain.held(async move { pod.while_captured(connected).await });
            (proxy.workers.elsewhere().unwrap_or_else(Handle::current), carried)
        }
    };
    let peer_of = identity::peer_principal;
    let served = tunnel::serve(stream, tls, handshaking, tunnels, peer_of, drain, connect).await;
    match served {
        Ok(()) => {}
        Err(error @ TunnelError::Tls { .. }) => refused(Failure::TlsFailure, &error),
        Err(error) => tracing::debug!(%peer, %error, "an HBONE connection broke"),
    }
}

fn connected(
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    connect: Connect,
    peer: SocketAddr,
) -> impl Future<Output = ()> + Send {
    let app = connect.authority;
    async move {
        if !pod.workload().ips.contains(&app.ip()) {
            // A tunnel into one pod must not become a way to somewhere else.
            tracing::info!(%peer, %app, pod = %pod.uid, "CONNECT to an address that is not the pod's");
            return connect.reject(StatusCode::NOT_FOUND);
        }
        let _permit = match pod.limits.arriving(peer.ip()) {
            Ok(permit) => permit,
            Err(limit) => {
                connect.reject(StatusCode::SERVICE_UNAVAILABLE);
                return over(&proxy, &pod, limit, &Arrival::unknown(&proxy, &pod, peer, app));
            }
        };
        let principal = connect.peer.clone();
        let source = proxy.snapshots.load().workload(peer.ip()).cloned();
        let arrival = Arrival {
            source: source.filter(|workload| workload.principal == principal),
            principal: Some(principal),
            ..Arrival::unknown(&proxy, &pod, peer, app)
        };
        carry(proxy, pod, arrival, Door::Tunnel(connect)).await;
    }
}

/// A client that waits to be let in.
enum Door {
    Plain(TcpStream),
    Tunnel(Connect),
}

impl Door {
    /// The trace context of the connection itself, as far as the client sent one.
    fn headers(&self) -> Option<&HeaderMap> {
        match self {
            Door::Plain(_) => None,
            Door::Tunnel(connect) => Some(&connect.headers),
        }
    }

    fn open(self) -> std::io::Result<Io> {
        match self {
            Door::Plain(stream) => Ok(Io::Tcp(stream)),
            Door::Tunnel(connect) => connect.accept().map(Io::Hbone),
        }
    }

    fn refuse(self, status: StatusCode) {
        match self {
            Door::Plain(stream) => io::reset(&stream),
            Door::Tunnel(connect) => connect.reject(status),
        }
    }
}

/// Carries one connection to the application, if policy lets it in.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps room for its arguments twice")]
fn carry(
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    arrival: Arrival,
    door: Door,
) -> impl Future<Output = ()> + Send {
    async move {
        // Those that are large are boxed, here and at the client's side: a connection keeps room for the
        // largest of all for as long as it lasts, be it over long since.
        match Box::pin(admit(&proxy, &pod, &arrival)).await {
            Ok(Admitted::Traffic(standing)) => traffic(proxy, pod, arrival, door, standing).await,
            Ok(Admitted::Probe) => Box::pin(probe(&proxy, &pod, &arrival, door)).await,
            Err(denied) if denied.is_of_nobody() => {
                tracing::debug!(client = %arrival.client, app = %arrival.app, error = %denied,
                "inbound connection refused");
                door.refuse(denied.status());
            }
            Err(denied) => {
                let why = denied.to_string();
                tracing::info!(
                    client = %arrival.client, app = %arrival.app, error = why,
                    "inbound connection refused"
                );
                let flow = arrival.flow(&proxy, &pod);
                let mut span = proxy.telemetry.connection(&flow, door.headers());
                door.refuse(denied.status());
                span.judged(denied.judgement());
                span.refuse(denied.failure(), &why);
            }
        }
    }
}

/// Carries a connection of the node itself, without a look into it and without a span.
async fn probe(proxy: &Proxy, pod: &LocalPod, arrival: &Arrival, door: Door) {
    let app = match dial(pod, arrival).await {
        Ok(app) => app,
        Err(refusal) => {
            tracing::debug!(app = %arrival.app, error = %refusal.message, "a probe failed");
            return door.refuse(refusal.status);
        }
    };
    match door.open() {
        Ok(client) => {
            let (buffered, app) = (pod.limits.buffered_in(), Io::Tcp(app));
            let never = std::future::pending();
            let failure = relay(client, app, Early::default(), buffered, &mut [], never).await;
            if failure == Some(Failure::BufferLimit) {
                proxy.limits.overfull(&pod.uid);
            }
        }
        Err(_) => io::reset(&app),
    }
}

/// Carries one connection to the application, by what its port is declared to speak, and for as
/// long as policy allows it.
fn traffic(
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    arrival: Arrival,
    door: Door,
    standing: Standing,
) -> Carried {
    let protocol = proxy.snapshots.load().spoken_at(arrival.app);
    let admitted = Admission { proxy, pod, arrival, standing };
    match protocol {
        AppProtocol::Http | AppProtocol::Http2 => match door.open() {
            Ok(client) => lasting(admitted.http(client)),
            Err(_) => Box::pin(ready(())),
        },
        protocol => Box::pin(admitted.other(door, protocol)),
    }
}

/// A connection that was let in.
struct Admission {
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    arrival: Arrival,
    standing: Standing,
}

impl Admission {
    async fn open(
        &self,
        parent: Option<&HeaderMap>,
    ) -> Result<(TcpStream, TcpSpan), (Refusal, TcpSpan)> {
        let Self { proxy, pod, arrival, .. } = self;
        let opened = open(proxy, pod, arrival, parent).await;
        if let Err((refusal, _)) = &opened {
            tracing::info!(
                client = %arrival.client, app = %arrival.app, error = %refusal.message,
                "inbound connection failed"
            );
        }
        opened
    }

    /// The application is reached before the client is let in: a client whose server cannot be
    /// reached is refused, and a server that speaks first is not kept waiting.
    async fn other(self, door: Door, protocol: AppProtocol) {
        let (app, span) = match Box::pin(self.open(door.headers())).await {
            Ok(opened) => opened,
            Err((refusal, span)) => {
                door.refuse(refusal.status);
                return span.finish(Some(refusal.failure));
            }
        };
        let Ok(client) = door.open() else {
            io::reset(&app);
            return span.finish(Some(Failure::ResetLocal));
        };
        match protocol {
            AppProtocol::Opaque => {
                Box::pin(self.opaque(client, app, Early::default(), span)).await;
            }
            _ => Box::pin(self.listen(client, app, span, Detection::undeclared())).await,
        }
    }

    /// Where HTTP is declared, requests find their way by themselves. What turns out to be something
    /// else is carried all the same, and counted.
    fn http(mut self, mut client: Io) -> impl Future<Output = ()> + Send {
        let mut detection = Detection::declared();
        async move {
            let heard = Box::pin(async {
                let drain = self.proxy.drain.started().child_token();
                tokio::select! {
                    heard = detection.client(&mut client) => Ok(heard),
                    () = drain.cancelled() => Ok(Some(Found::Declared)),
                    denied = self.standing.revoked(&self.proxy, &self.pod, &self.arrival) => Err(denied),
                }
            });
            let carried: Carried = match heard.await {
                Ok(Some(Found::Http(_) | Found::Declared)) => {
                    self.requests(client, detection.request(), None)
                }
                Ok(Some(Found::Opaque(why))) => Box::pin(self.contrary(client, detection, why)),
                Ok(None) => Box::pin(self.silent(client, detection)),
                Err(denied) => {
                    client.abort();
                    return drop(cut(&self.arrival, &denied));
                }
            };
            carried.await;
        }
    }

    /// Carries what was declared as HTTP and is not.
    async fn contrary(self, client: Io, detection: Detection, why: Option<Contrary>) {
        match Box::pin(self.open(None)).await {
            Ok((app, span)) => {
                self.contradicted(why);
                Box::pin(self.opaque(client, app, detection.early(), span)).await;
            }
            Err((refusal, span)) => {
                client.abort();
                span.finish(Some(refusal.failure));
            }
        }
    }

    /// Connects to the application of a client that says nothing: it may be the one to speak first.
    async fn silent(self, client: Io, detection: Detection) {
        match Box::pin(open(&self.proxy, &self.pod, &self.arrival, None)).await {
            Ok((app, span)) => Box::pin(self.listen(client, app, span, detection)).await,
            // Without a server, a request is still answered with the reason.
            Err((_, span)) => {
                span.discard();
                self.requests(client, Bytes::new(), None).await;
            }
        }
    }

    /// Carries what a connection turns out to be once one of its ends speaks.
    async fn listen(
        mut self,
        mut client: Io,
        mut app: TcpStream,
        span: TcpSpan,
        mut detection: Detection,
    ) {
        let heard = Box::pin(async {
            tokio::select! {
                found = detection.both(&mut client, &mut app) => Ok(found),
                why = self.arrival.cut.happens() => Err(Over::Cut(why)),
                denied = self.standing.revoked(&self.proxy, &self.pod, &self.arrival) => {
                    Err(Over::Denied(denied))
                }
            }
        });
        let found = match heard.await {
            Ok(found) => found,
            Err(over) => {
                io::reset(&app);
                client.abort();
                return match over {
                    Over::Denied(denied) => refuse(span, &self.arrival, &denied),
                    Over::Cut(why) => span.finish(Some(why)),
                };
            }
        };
        match found {
            Found::Opaque(why) => {
                self.contradicted(why);
                Box::pin(self.opaque(client, app, detection.early(), span)).await;
            }
            Found::Http(protocol) => {
                let app = match protocol {
                    Protocol::Http2 => {
                        let key = PoolKey::new(self.arrival.client.ip(), self.arrival.app);
                        let app = Upstream::to_pod(Io::Tcp(app), &self.pod);
                        if let Err(error) = Box::pin(self.pod.inbound.adopt(key, app)).await {
                            tracing::debug!(app = %self.arrival.app, %error, "the application was gone before it was asked");
                            client.abort();
                            return span.finish(Some(Failure::ResetRemote));
                        }
                        None
                    }
                    Protocol::Http1 | Protocol::Opaque => Some(Io::Tcp(app)),
                };
                // What the connection carries is recorded request by request from here on.
                span.discard();
                self.requests(client, detection.request(), app).await;
            }
            Found::Declared => {
                span.discard();
                drop(app);
                self.requests(client, detection.request(), None).await;
            }
        }
    }

    /// Counts a connection that is opaque although something says that it is HTTP.
    fn contradicted(&self, why: Option<Contrary>) {
        let Some(why) = why else { return };
        self.proxy.contradictions.count(why);
        tracing::debug!(client = %self.arrival.client, app = %self.arrival.app,
            reason = why.as_str(), "carried as opaque");
    }

    async fn opaque(self, client: Io, app: TcpStream, early: Early, mut span: TcpSpan) {
        let Self { proxy, pod, arrival, mut standing } = self;
        match admit_opaque(&proxy, &pod, &arrival, &mut standing).await {
            Ok(told) => span.judged(told),
            Err(denied) => {
                io::reset(&app);
                client.abort();
                return refuse(span, &arrival, &denied);
            }
        }
        span.opaque();
        let mut denied = None;
        let revoked = async {
            let why = standing.revoked(&proxy, &pod, &arrival).await;
            denied.insert(why).failure()
        };
        let (app, buffered) = (Io::Tcp(app), pod.limits.buffered_in());
        let spans = std::slice::from_mut(&mut span);
        let failure = relay(client, app, early, buffered, spans, revoked).await;
        if failure == Some(Failure::BufferLimit) {
            proxy.limits.overfull(&pod.uid);
        }
        match denied {
            Some(denied) => refuse(span, &arrival, &denied),
            None => span.finish(failure),
        }
    }

    /// Answers the requests of one client for as long as policy allows it. `read` has been read of it,
    /// and `app` was connected to for its first request.
    fn requests(self, client: Io, read: Bytes, app: Option<Io>) -> Carried {
        let Self { proxy, pod, arrival, mut standing } = self;
        let arrival = Arc::new(arrival);
        let requests = arriving(proxy.clone(), pod.clone(), arrival.clone(), client, read, app);
        let requests = lasting(requests);
        lasting(async move {
            tokio::select! {
                () = requests => {}
                // Requests under way end with it, and their spans say so: they ask when they are
                // dropped, which is before anything behind the arrow.
                () = async {
                    let denied = loop {
                        let denied = standing.revoked(&proxy, &pod, &arrival).await;
                        // The next request is answered with the reason.
                        if !matches!(denied, Denied::Unauthorized(_)) || !arrival.cut.is_idle() {
                            break denied;
                        }
                    };
                    arrival.cut.because(denied.failure());
                    drop(cut(&arrival, &denied));
                } => {}
            }
        })
    }
}

/// Why a connection is over before it is known what it speaks.
enum Over {
    Cut(Failure),
    Denied(Denied),
}

/// Ends the span of a connection that ends because policy does not allow it any more.
fn refuse(mut span: TcpSpan, arrival: &Arrival, denied: &Denied) {
    span.judged(denied.judgement());
    span.refuse(denied.failure(), &cut(arrival, denied));
}

/// Notes that a connection ends because policy does not allow it any more; in words.
fn cut(arrival: &Arrival, denied: &Denied) -> String {
    let why = denied.to_string();
    tracing::info!(
        client = %arrival.client, app = %arrival.app, error = why, "inbound connection cut"
    );
    why
}

/// Dials the application as the client, under a span of the server's side.
pub(super) async fn open(
    proxy: &Proxy,
    pod: &LocalPod,
    arrival: &Arrival,
    parent: Option<&HeaderMap>,
) -> Result<(TcpStream, TcpSpan), (Refusal, TcpSpan)> {
    let span = proxy.telemetry.connection(&arrival.flow(proxy, pod), parent);
    let mut span = span.cut_by(arrival.cut.cause());
    if let Err(refusal) = admit_handed_over(proxy, pod, arrival).await {
        span.judged(refusal.judgement.clone());
        return Err((refusal, span));
    }
    let began = Instant::now();
    match dial(pod, arrival).await {
        Ok(app) => {
            span.connected(began.elapsed());
            Ok((app, span))
        }
        Err(refusal) => Err((refusal, span)),
    }
}

pub(super) async fn dial(pod: &LocalPod, arrival: &Arrival) -> Result<TcpStream, Refusal> {
    let app = arrival.app;
    let dial = pod.dialer.to_app(arrival.client.ip(), app);
    match tokio::time::timeout(CONNECT_TIMEOUT, dial).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(Refusal::unavailable(
            Failure::ConnectFailure,
            format!("the application at {app} did not accept the connection: {error}"),
        )),
        Err(_) => Err(Refusal::unavailable(
            Failure::Timeout,
            format!("the application at {app} did not accept within {CONNECT_TIMEOUT:?}"),
        )),
    }
}

impl Arrival {
    /// Of whoever is at `client`, when nothing else about it was looked at.
    fn unknown(
        proxy: &Arc<Proxy>,
        pod: &Arc<LocalPod>,
        client: SocketAddr,
        app: SocketAddr,
    ) -> Self {
        let cut = Cut::of(proxy, pod);
        Self { client, app, principal: None, source: None, same_node: false, cut }
    }

    /// What spans and metrics of the server's side say about this connection.
    pub(super) fn flow(&self, proxy: &Proxy, pod: &LocalPod) -> Arc<Flow> {
        let local = pod.workload();
        let service = proxy.snapshots.load().serving(self.app).map(|(service, _)| service.clone());
        Arc::new(Flow {
            reporter: Reporter::Destination,
            source_principal: self.principal.clone(),
            destination_principal: self.principal.is_some().then(|| local.principal.clone()),
            local,
            remote: self.source.clone(),
            service,
            security: match self.principal {
                Some(_) => SecurityPolicy::MutualTls,
                None => SecurityPolicy::None,
            },
            same_node: self.same_node,
            client: self.client,
            server: self.app,
            peer: self.client,
        })
    }
}
