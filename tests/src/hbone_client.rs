//! An HBONE client that is no agent: it shows whatever certificate a test gives it.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{Method, Request, StatusCode, Uri};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use time::OffsetDateTime;
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{PATIENCE, pod::Pod, tunnel_fixture::within};

/// The port HBONE is spoken on.
pub const HBONE: u16 = 15008;

/// Signs certificates, as the mesh's own CA or as another.
#[derive(Debug)]
pub struct TestCa {
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
#[derive(Debug)]
pub struct TestCertificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl TestCertificate {
    /// The certificate, and those it came with.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
}

impl TestCa {
    /// The one whose files agents keep in `directory`.
    ///
    /// # Errors
    /// When no agent has made it yet.
    pub fn of_agents(directory: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))
        };
        let key = KeyPair::from_pem(&read("ca-key.pem")?)?;
        Ok(Self { issuer: Issuer::from_ca_cert_pem(&read("ca-cert.pem")?, key)? })
    }

    /// One that nobody trusts.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn unknown() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Ok(Self { issuer: Issuer::new(params, KeyPair::generate()?) })
    }

    /// A certificate with these URIs as its names, valid for an hour around `at`.
    ///
    /// # Errors
    /// When a URI is none.
    pub fn sign(&self, uris: &[&str], at: OffsetDateTime) -> anyhow::Result<TestCertificate> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let names = uris.iter().map(|&uri| Ok(SanType::URI(uri.try_into()?)));
        params.subject_alt_names = names.collect::<Result<_, rcgen::Error>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = at - time::Duration::minutes(30);
        params.not_after = at + time::Duration::minutes(30);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(TestCertificate {
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }
}

/// What a client keeps of its connections, to resume their sessions.
#[derive(Clone)]
pub struct HboneSessions(TlsConnector);

impl HboneSessions {
    /// Those of a client with this certificate.
    ///
    /// # Errors
    /// When its key does not fit.
    pub fn of(certificate: Option<TestCertificate>) -> anyhow::Result<Self> {
        Ok(Self(TlsConnector::from(Arc::new(tls(certificate)?))))
    }
}

/// An open HBONE connection.
#[derive(Debug)]
pub struct HboneClient {
    requests: SendRequest<Bytes>,
    server: Vec<CertificateDer<'static>>,
    resumed: bool,
    _driver: JoinSet<()>,
}

impl HboneClient {
    /// Connects from `pod` to the agent in front of `server`. A server that refuses the
    /// certificate can still be connected to: in TLS 1.3 a client is done before its server.
    ///
    /// # Errors
    /// When TLS or HTTP/2 cannot be started.
    pub async fn connect(
        pod: &Pod,
        server: &Pod,
        certificate: Option<TestCertificate>,
    ) -> anyhow::Result<Self> {
        Self::connect_by(pod, server, &HboneSessions::of(certificate)?).await
    }

    /// The same for a client that remembers its sessions, and would resume one.
    ///
    /// # Errors
    /// When TLS or HTTP/2 cannot be started.
    pub async fn connect_by(
        pod: &Pod,
        server: &Pod,
        sessions: &HboneSessions,
    ) -> anyhow::Result<Self> {
        let work = async {
            let stream = pod.connect(SocketAddr::new(server.ip(), HBONE)).await?;
            let name = ServerName::from(server.ip());
            let stream = sessions.0.connect(name, stream).await?;
            let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
            let server = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let server = server.iter().map(|one| one.clone().into_owned()).collect();
            let (requests, connection) = h2::client::handshake(stream).await?;
            let mut driver = JoinSet::new();
            // Its streams tell the test what went wrong.
            driver.spawn(async move { drop(connection.await) });
            Ok(Self { requests, server, resumed, _driver: driver })
        };
        within(PATIENCE, "connect to HBONE", work).await?
    }

    /// Does the TLS handshake on `stream` and nothing more.
    ///
    /// # Errors
    /// When the server does not.
    pub async fn tls_over(
        stream: TcpStream,
        TestCertificate { chain, key }: &TestCertificate,
    ) -> anyhow::Result<TlsStream<TcpStream>> {
        let name = ServerName::from(stream.peer_addr()?.ip());
        let certificate = TestCertificate { chain: chain.clone(), key: key.clone_key() };
        let connector = TlsConnector::from(Arc::new(tls(Some(certificate))?));
        Ok(within(PATIENCE, "a TLS handshake", connector.connect(name, stream)).await??)
    }

    /// Whether the connection went on with a session of before, without certificates.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Whether the server's certificate has this serial number, in hexadecimal.
    pub fn server_has_serial(&self, serial: &str) -> bool {
        let hex = |certificate: &CertificateDer<'_>| -> String {
            certificate.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        self.server.first().is_some_and(|certificate| hex(certificate).contains(serial))
    }

    /// Asks for a connection to `authority`.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn open(
        &mut self,
        authority: SocketAddr,
    ) -> anyhow::Result<(StatusCode, SendStream<Bytes>, RecvStream)> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = Uri::builder().authority(authority.to_string()).build()?;
        let work = async {
            let mut requests = self.requests.clone().ready().await?;
            let (response, send) = requests.send_request(request, false)?;
            let response = response.await?;
            let status = response.status();
            Ok((status, send, response.into_body()))
        };
        let answer: Result<_, h2::Error> = within(PATIENCE, "the answer to CONNECT", work).await?;
        answer.map_err(|error| anyhow!("{error}"))
    }
}

fn tls(certificate: Option<TestCertificate>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match certificate {
        Some(TestCertificate { chain, key }) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Believes every server: what a test looks at is what the server believes.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
