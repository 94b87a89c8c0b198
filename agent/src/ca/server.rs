//! The gRPC server: TLS 1.3, HTTP/2, one method, and a bound to everything a stranger can ask.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rcgen::SanType;
use rustls::{ServerConfig, server::NoServerSessionStorage, version::TLS13};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body};
use tonic_prost::ProstCodec;

use super::{
    keeper::Keeper,
    service::{Call, Issuer},
};
use crate::{
    identity::{
        PROVIDER,
        istio::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse},
    },
    listen::{Bounds, Guest, Listener},
};

/// Connections at a time. An agent that starts has one for each identity of its node.
const BOUNDS: Bounds = Bounds { most: 1024, per_source: 256 };
/// Requests at a time on one connection.
const STREAMS: u32 = 16;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be without a first request; after it there is none to wait for.
const IDLE: Duration = Duration::from_secs(10);
/// How long a connection may last, busy or not: a request waits for its turn, for a review and
/// for a list of pods.
const LONGEST: Duration = Duration::from_secs(60);
/// A token and a few fields.
const HEADERS: u32 = 32 << 10;
/// A request of an RSA key is 2 KiB.
const MESSAGE: usize = 64 << 10;

/// A name that agents reach the CA by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// A name of DNS.
    Dns(String),
    /// An address, for agents that have no DNS.
    Ip(IpAddr),
}

/// Listens for agents.
pub(super) struct Server {
    listener: Listener,
    tls: TlsAcceptor,
    issuer: Arc<Issuer>,
    ending: CancellationToken,
    connections: TaskTracker,
}

impl Server {
    pub(super) fn bind(
        address: SocketAddr,
        keeper: Arc<Keeper>,
        issuer: Arc<Issuer>,
    ) -> anyhow::Result<Self> {
        let listener = Listener::bind("the CA", address, BOUNDS).with_context(|| {
            format!("could not listen on {address} (hint: --listen-addr takes another one)")
        })?;
        let mut tls = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(keeper);
        tls.alpn_protocols = vec![b"h2".to_vec()];
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        Ok(Self {
            listener,
            tls: TlsAcceptor::from(Arc::new(tls)),
            issuer,
            ending: CancellationToken::new(),
            connections: TaskTracker::new(),
        })
    }

    /// Serves until `end`, and returns what that says.
    pub(super) async fn serve_until<T>(&self, end: impl Future<Output = T>) -> T {
        tokio::pin!(end);
        loop {
            let (stream, guest) = tokio::select! {
                ended = &mut end => return ended,
                accepted = self.listener.accept() => accepted,
            };
            let (tls, issuer) = (self.tls.clone(), self.issuer.clone());
            let guest = Arc::new(guest);
            let connection = connection(stream, tls, issuer, guest.clone(), self.ending.clone());
            self.connections.spawn(async move {
                tokio::select! {
                    () = guest.dismissed() => tracing::debug!("connection gave way to another"),
                    ended = timeout(LONGEST, connection) => {
                        if let Ok(Err(error)) = ended {
                            tracing::debug!(error = format!("{error:#}"), "connection failed");
                        }
                    }
                }
            });
        }
    }

    /// Lets requests under way end, for `at_most`.
    pub(super) async fn drain(self, at_most: Duration) {
        drop(self.listener);
        self.ending.cancel();
        self.connections.close();
        if timeout(at_most, self.connections.wait()).await.is_err() {
            tracing::warn!("requests outlived the drain timeout and were cut");
        }
    }
}

/// One connection, which is for one request: whoever has a certificate, or is not to get one,
/// holds nobody's place.
async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    issuer: Arc<Issuer>,
    guest: Arc<Guest>,
    ending: CancellationToken,
) -> anyhow::Result<()> {
    let stream = timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await??;
    let (begun, answered) = (CancellationToken::new(), CancellationToken::new());
    let service = service_fn(|mut request: Request<Incoming>| {
        guest.set_busy(true);
        begun.cancel();
        request.extensions_mut().insert(guest.source());
        let (issuer, answered) = (issuer.clone(), answered.clone());
        async move {
            let response = route(request, issuer).await;
            answered.cancel();
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = &mut connection => return Ok(ended?),
        () = answered.cancelled() => {}
        () = ending.cancelled() => {}
        idle = timeout(IDLE, begun.cancelled()) => match idle {
            Ok(()) => tokio::select! {
                ended = &mut connection => return Ok(ended?),
                () = answered.cancelled() => {}
                () = ending.cancelled() => {}
            },
            Err(_) => anyhow::bail!("no request within {IDLE:?}"),
        },
    }
    connection.as_mut().graceful_shutdown();
    Ok(connection.await?)
}

async fn route(request: Request<Incoming>, issuer: Arc<Issuer>) -> Response<Body> {
    if request.uri().path() != CREATE_CERTIFICATE {
        return Status::unimplemented("this is a CA: only CreateCertificate").into_http();
    }
    let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
    let mut grpc = tonic::server::Grpc::new(codec).max_decoding_message_size(MESSAGE);
    grpc.unary(Call(issuer), request).await
}

impl ServerName {
    pub(super) fn to_san(&self) -> Result<SanType, rcgen::Error> {
        Ok(match self {
            Self::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            Self::Ip(address) => SanType::IpAddress(*address),
        })
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

impl FromStr for ServerName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        match rustls_pki_types::DnsName::try_from(text) {
            Ok(_) => Ok(Self::Dns(text.to_owned())),
            Err(_) => Err("no DNS name or address (hint: sluice-ca.sluice-system.svc)".into()),
        }
    }
}
