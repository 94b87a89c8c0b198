//! OTLP as protobuf over HTTP/1.1.

use std::{io::Write, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::{ExportError, Receiver, describe, retry};

/// Answers are a few bytes; a receiver that says more is not listened to.
const LONGEST_ANSWER: usize = 64 * 1024;

pub(super) struct Client {
    transport: Transport,
    endpoint: Uri,
    headers: HeaderMap,
    gzip: bool,
}

/// Sends requests and collects their answers, within a time.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    client: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeout: Duration,
}

impl Transport {
    /// # Errors
    /// When the certificate file, or the system's certificates, cannot be used.
    pub(super) fn new(receiver: &Receiver) -> anyhow::Result<Self> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(receiver)?)
            .https_or_http()
            .enable_http1()
            .build();
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Ok(Self { client, timeout: receiver.timeout })
    }

    /// # Errors
    /// When there is no complete answer in time, in words.
    pub(super) async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let exchange = async {
            let response = self.client.request(request.map(Full::new)).await;
            let (parts, body) = response.map_err(|error| describe(&error))?.into_parts();
            let body = Limited::new(body, LONGEST_ANSWER).collect().await;
            let body = body.map_err(|error| error.to_string())?.to_bytes();
            Ok(Response::from_parts(parts, body))
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer in {:?}", self.timeout)),
        }
    }
}

fn tls(receiver: &Receiver) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &receiver.certificate {
        let what = || {
            format!(
                "could not use {} (hint: OTEL_EXPORTER_OTLP_CERTIFICATE is a PEM file)",
                path.display()
            )
        };
        for certificate in CertificateDer::pem_file_iter(path).with_context(what)? {
            roots.add(certificate.with_context(what)?).with_context(what)?;
        }
    } else if receiver.endpoint.scheme_str() == Some("https") {
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        anyhow::ensure!(
            added > 0,
            "no trusted certificates on this system for {} (hint: install ca-certificates or set \
             OTEL_EXPORTER_OTLP_CERTIFICATE)",
            receiver.endpoint
        );
    }
    Ok(ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

impl Client {
    pub(super) fn new(receiver: &Receiver) -> anyhow::Result<Self> {
        let mut headers: HeaderMap = receiver.headers.iter().cloned().collect();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("sluice/", env!("CARGO_PKG_VERSION"))),
        );
        if receiver.gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Ok(Self {
            transport: Transport::new(receiver)?,
            endpoint: receiver.endpoint.clone(),
            headers,
            gzip: receiver.gzip,
        })
    }

    pub(super) async fn export(&mut self, message: Bytes) -> Result<Bytes, ExportError> {
        let body = if self.gzip { compress(&message) } else { message };
        let mut request = Request::post(self.endpoint.clone())
            .body(body)
            .map_err(|error| ExportError::Refused { cause: error.to_string() })?;
        *request.headers_mut() = self.headers.clone();
        let response = self
            .transport
            .send(request)
            .await
            .map_err(|cause| ExportError::Retry { after: None, cause })?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(retry::http(response.status(), response.headers()))
    }
}

fn compress(message: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(message.len() / 4), Compression::fast());
    encoder
        .write_all(message)
        .and_then(|()| encoder.finish())
        .expect("writing to a Vec cannot fail")
        .into()
}
