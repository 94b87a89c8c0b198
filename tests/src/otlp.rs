//! A real OTLP receiver inside the test: gRPC and HTTP with protobuf bodies, gzip accepted.

use std::{
    convert::Infallible,
    io::Read,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use flate2::read::GzDecoder;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use prost::Message;
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};
use tonic::{codec::CompressionEncoding, transport::server::TcpIncoming};

use crate::{lab::Lab, netns::Netns, span::Span};

/// How spans can be sent here. The ports are OTLP's own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with protobuf.
    Http,
}

impl Protocol {
    /// Its port.
    pub fn port(self) -> u16 {
        match self {
            Self::Grpc => 4317,
            Self::Http => 4318,
        }
    }

    /// What `OTEL_EXPORTER_OTLP_PROTOCOL` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http/protobuf",
        }
    }
}

/// Receives spans outside the mesh, where every node and pod reaches it.
#[derive(Debug)]
pub struct OtlpReceiver {
    ip: IpAddr,
    spans: watch::Receiver<Vec<Span>>,
    _servers: JoinSet<()>,
}

impl OtlpReceiver {
    /// Starts receiving at the lab's router.
    ///
    /// # Errors
    /// When the lab has one already.
    pub fn start(lab: &Lab) -> anyhow::Result<Self> {
        let [ip, _] = lab.fabric_ips();
        Self::start_in(lab.fabric(), ip)
    }

    /// Starts receiving in `netns`, one of whose addresses is `ip`. To be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// When the namespace has one already.
    pub fn start_in(netns: &Netns, ip: IpAddr) -> anyhow::Result<Self> {
        let (sender, spans) = watch::channel(Vec::new());
        let store = Store { spans: sender };
        let mut servers = JoinSet::new();
        let service = TraceServiceServer::new(store.clone())
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip);
        let incoming = TcpIncoming::from(listen(netns, Protocol::Grpc.port())?);
        servers.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            if let Err(error) = server.serve_with_incoming(incoming).await {
                eprintln!("the OTLP/gRPC receiver ended: {error}");
            }
        });
        servers.spawn(serve_http(listen(netns, Protocol::Http.port())?, store));
        Ok(Self { ip, spans, _servers: servers })
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` must say.
    pub fn endpoint(&self, protocol: Protocol) -> String {
        format!("http://{}", SocketAddr::new(self.ip, protocol.port()))
    }

    /// Everything received so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.borrow().clone()
    }

    /// Waits until what was received satisfies `enough`, and returns it.
    ///
    /// # Errors
    /// When that is not so after `at_most`, with what was received.
    pub async fn wait_for(
        &self,
        at_most: Duration,
        enough: impl Fn(&[Span]) -> bool,
    ) -> anyhow::Result<Vec<Span>> {
        let mut spans = self.spans.clone();
        if let Ok(Ok(spans)) = timeout(at_most, spans.wait_for(|spans| enough(spans))).await {
            return Ok(spans.clone());
        }
        let received = self.spans();
        bail!(
            "the awaited spans did not arrive within {at_most:?}; {} did:\n{}",
            received.len(),
            crate::trace_tree(&received)
        )
    }
}

fn listen(netns: &Netns, port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let listener = netns
        .run(|| std::net::TcpListener::bind(address))?
        .with_context(|| format!("could not listen on {address} in {}", netns.name()))?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

#[derive(Clone, Debug)]
struct Store {
    spans: watch::Sender<Vec<Span>>,
}

impl Store {
    fn add(&self, request: ExportTraceServiceRequest) {
        self.spans.send_modify(|spans| spans.extend(Span::all_of(request)));
    }
}

#[tonic::async_trait]
impl TraceService for Store {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.add(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn serve_http(listener: TcpListener, store: Store) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let store = store.clone();
        connections.spawn(async move {
            let service = service_fn(|request| {
                let store = store.clone();
                async move { Ok::<_, Infallible>(answer(request, &store).await) }
            });
            // A connection that breaks is its client's matter.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, store: &Store) -> Response<Full<Bytes>> {
    let (status, body) = match export(request).await {
        Ok(request) => {
            store.add(request);
            (StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec().into())
        }
        Err((status, why)) => (status, Bytes::from(why)),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("application/x-protobuf");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Reads one export as strictly as OTLP/HTTP says.
async fn export(
    request: Request<Incoming>,
) -> Result<ExportTraceServiceRequest, (StatusCode, String)> {
    let refuse = |status, why: String| (status, why);
    if request.method() != Method::POST || request.uri().path() != "/v1/traces" {
        return Err(refuse(StatusCode::NOT_FOUND, "only POST /v1/traces".into()));
    }
    let named = |name| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
    if named(header::CONTENT_TYPE) != "application/x-protobuf" {
        return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "only protobuf".into()));
    }
    let gzip = match named(header::CONTENT_ENCODING) {
        "gzip" => true,
        "" | "identity" => false,
        other => return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("no {other}"))),
    };
    let body = request.into_body().collect().await;
    let mut body =
        body.map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))?.to_bytes();
    if gzip {
        let mut plain = Vec::new();
        let read = GzDecoder::new(body.as_ref()).read_to_end(&mut plain);
        read.map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))?;
        body = plain.into();
    }
    ExportTraceServiceRequest::decode(body)
        .map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))
}
