//! Whom a TLS handshake believes: chain, validity and purpose by webpki, the name by SPIFFE.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{IdentityError, peer_principal};
use crate::mesh::{Principal, TrustDomain};

/// Accepts a server that is exactly one workload. DNS names mean nothing in a mesh.
#[derive(Debug)]
pub(super) struct ExpectServer {
    pub(super) expected: Principal,
    pub(super) trust_domain: TrustDomain,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ExpectServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )
        .map_err(chain_error)?;
        let actual = member(end_entity, &self.trust_domain)?;
        if actual != self.expected {
            return Err(refuse(IdentityError::WrongPeer {
                expected: self.expected.clone(),
                actual,
            }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Accepts a client that is any workload of the trust domain; policy comes later.
#[derive(Debug)]
pub(super) struct ExpectClient {
    trust_domain: TrustDomain,
    chain: Arc<dyn ClientCertVerifier>,
}

impl ExpectClient {
    pub(super) fn new(
        trust_domain: TrustDomain,
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::server::VerifierBuilderError> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider).build()?;
        Ok(Self { trust_domain, chain })
    }
}

impl ClientCertVerifier for ExpectClient {
    /// None: a workload has one certificate and no choice to make, and a stranger need not
    /// learn the roots' names.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified =
            self.chain.verify_client_cert(end_entity, intermediates, now).map_err(chain_error)?;
        member(end_entity, &self.trust_domain)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// A root of the same name with another key is another CA, and webpki only says that the
/// signature is wrong.
fn chain_error(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            CertificateError::UnknownIssuer.into()
        }
        error => error,
    }
}

/// The workload of `trust_domain` that `certificate` names.
fn member(
    certificate: &CertificateDer<'_>,
    trust_domain: &TrustDomain,
) -> Result<Principal, Error> {
    let peer = peer_principal(Some(std::slice::from_ref(certificate))).map_err(refuse)?;
    if peer.trust_domain() != trust_domain {
        let expected = trust_domain.clone();
        return Err(refuse(IdentityError::WrongTrustDomain { peer, expected }));
    }
    Ok(peer)
}

/// Carries our own words through rustls, out of which [`IdentityError`] takes them again.
fn refuse(error: IdentityError) -> Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

fn only_tls13() -> Error {
    Error::General("HBONE is TLS 1.3 only".into())
}
