//! Whoever signs tokens, and serves the keys by which they are verified.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use rcgen::KeyPair;
use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::Pod;

/// Somebody with a key on the curve P-256.
#[derive(Clone)]
pub struct TokenIssuer {
    id: String,
    key: EncodingKey,
}

impl TokenIssuer {
    /// With a new key called `id`.
    ///
    /// # Errors
    /// When there is no chance in this machine.
    pub fn new(id: &str) -> anyhow::Result<Self> {
        let pem = KeyPair::generate()?.serialize_pem();
        Ok(Self { id: id.to_owned(), key: EncodingKey::from_ec_pem(pem.as_bytes())? })
    }

    /// The public key.
    ///
    /// # Errors
    /// When the key is none.
    pub fn jwk(&self) -> anyhow::Result<Value> {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256)?;
        jwk.common.key_id = Some(self.id.clone());
        Ok(serde_json::to_value(jwk)?)
    }

    /// The key set that has it alone.
    ///
    /// # Errors
    /// When the key is none.
    pub fn jwks(&self) -> anyhow::Result<String> {
        Ok(json!({"keys": [self.jwk()?]}).to_string())
    }

    /// A token that says `claims`.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self, claims: &Value) -> anyhow::Result<String> {
        let header = Header { kid: Some(self.id.clone()), ..Header::new(Algorithm::ES256) };
        Ok(encode(&header, claims, &self.key)?)
    }
}

/// A server of keys in a pod, until it is dropped.
pub struct KeyServer {
    jwks: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl KeyServer {
    /// Serves `jwks` on `port` of `pod`: by TLS where there is a certificate, with its key.
    ///
    /// # Errors
    /// When the port is taken, or the certificate is of no use.
    pub fn start(
        pod: &Pod,
        port: u16,
        jwks: String,
        certificate: Option<(CertificateDer<'static>, &KeyPair)>,
    ) -> anyhow::Result<Self> {
        let listener = pod.listen(port)?;
        let acceptor = certificate.map(|(certificate, key)| {
            let config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into());
            let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
            let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
            let config = config.with_single_cert(vec![certificate], key);
            anyhow::Ok(TlsAcceptor::from(Arc::new(config.context("a server of keys")?)))
        });
        let acceptor = acceptor.transpose()?;
        let (jwks, asked) = (Arc::new(Mutex::new(jwks)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        let served = (jwks.clone(), asked.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (served, acceptor) = (served.clone(), acceptor.clone());
                connections.spawn(async move {
                    match acceptor {
                        None => answer(stream, served).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                answer(stream, served).await;
                            }
                        }
                    }
                });
            }
        });
        Ok(Self { jwks, asked, _tasks: tasks })
    }

    /// Serves others from now on.
    pub fn serve(&self, jwks: String) {
        *self.jwks.lock().unwrap_or_else(PoisonError::into_inner) = jwks;
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    (jwks, asked): (Arc<Mutex<String>>, Arc<AtomicUsize>),
) {
    let answer = service_fn(|_: Request<Incoming>| {
        asked.fetch_add(1, Relaxed);
        let jwks = jwks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(jwks)))) }
    });
    // Its client may leave at any time.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}
