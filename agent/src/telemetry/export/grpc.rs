//! OTLP over gRPC, with messages that are encoded already.

use anyhow::Context;
use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use tonic::{
    Code, Request, Status,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use super::{ExportError, Receiver, describe, retry};

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

pub(super) struct Client {
    channel: Channel,
    metadata: MetadataMap,
    gzip: bool,
    timeout: std::time::Duration,
}

/// A connection to `receiver`, made when it is needed and again when it breaks.
///
/// # Errors
/// When the certificate file cannot be used.
pub(super) fn channel(receiver: &Receiver) -> anyhow::Result<Channel> {
    let mut endpoint = Endpoint::from(receiver.endpoint.clone())
        .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")))?
        .connect_timeout(receiver.timeout);
    if receiver.endpoint.scheme_str() == Some("https") {
        let tls = match &receiver.certificate {
            Some(path) => {
                let pem = std::fs::read(path).with_context(|| {
                    format!(
                        "could not read {} (hint: OTEL_EXPORTER_OTLP_CERTIFICATE is a PEM file)",
                        path.display()
                    )
                })?;
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        endpoint = endpoint
            .tls_config(tls)
            .with_context(|| format!("could not set up TLS for {}", receiver.endpoint))?;
    }
    Ok(endpoint.connect_lazy())
}

/// What goes with every message to `receiver`.
pub(super) fn metadata(receiver: &Receiver) -> MetadataMap {
    MetadataMap::from_headers(receiver.headers.iter().cloned().collect())
}

impl Client {
    pub(super) fn new(receiver: &Receiver) -> anyhow::Result<Self> {
        Ok(Self {
            channel: channel(receiver)?,
            metadata: metadata(receiver),
            gzip: receiver.gzip,
            timeout: receiver.timeout,
        })
    }

    pub(super) async fn export(&mut self, message: Bytes) -> Result<Bytes, ExportError> {
        match self.attempt(message.clone(), self.gzip).await {
            // Also the answer of a receiver that cannot decompress.
            Err(status) if self.gzip && status.code() == Code::Unimplemented => {
                let answer = self.attempt(message, false).await;
                self.gzip = answer.is_err();
                answer
            }
            answer => answer,
        }
        .map_err(|status| retry::grpc(&status))
    }

    async fn attempt(&self, message: Bytes, gzip: bool) -> Result<Bytes, Status> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        if gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        client = client.accept_compressed(CompressionEncoding::Gzip);
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request.set_timeout(self.timeout);
        let call = async {
            client.ready().await.map_err(|error| Status::unavailable(describe(&error)))?;
            client.unary(request, PathAndQuery::from_static(EXPORT), Raw).await
        };
        match tokio::time::timeout(self.timeout, call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("no answer in {:?}", self.timeout))),
        }
    }
}

/// Bytes in, bytes out.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(input.copy_to_bytes(input.remaining())))
    }
}
