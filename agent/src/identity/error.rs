//! Why an identity could not be had, or was not believed.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::UnixTime;

use crate::mesh::{Principal, TrustDomain};

/// Why an identity could not be had, or was not believed.
///
/// Cheap to clone: several connections may wait for one certificate or one handshake.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each field is a part of the message above it")]
pub enum IdentityError {
    /// Mutual TLS needs both certificates.
    #[error("the peer presented no certificate (hint: is it an HBONE client of this mesh?)")]
    NoCertificate,
    /// Not X.509, or X.509 that says one thing twice.
    #[error("the peer's certificate cannot be read: {0}")]
    Malformed(String),
    /// SPIFFE X.509-SVID §2: exactly one URI SAN.
    #[error("the peer's certificate names {0} URI identities; a SPIFFE certificate names one")]
    NotOneIdentity(usize),
    /// A URI, but not one of a workload.
    #[error("the peer's certificate names no workload: {0}")]
    NotWorkload(String),
    /// Wrong CA.
    #[error(
        "the peer's certificate is signed by no CA this node trusts \
         (hint: do both nodes use the same root certificate?)"
    )]
    UnknownIssuer,
    /// Too late.
    #[error(
        "the peer's certificate expired at {} (hint: does its agent renew? are both clocks right?)",
        humantime::format_rfc3339_seconds(*.not_after)
    )]
    Expired { not_after: SystemTime },
    /// Too early.
    #[error(
        "the peer's certificate is not valid before {} (hint: are both clocks right?)",
        humantime::format_rfc3339_seconds(*.not_before)
    )]
    NotYetValid { not_before: SystemTime },
    /// Extended key usage lacks the peer's side of TLS.
    #[error("the peer's certificate was not issued for its side of TLS (extended key usage)")]
    WrongPurpose,
    /// Right CA, foreign trust domain.
    #[error("the peer is {peer}, which is not of trust domain `{expected}`")]
    WrongTrustDomain { peer: Principal, expected: TrustDomain },
    /// Right CA, but somebody else answers.
    #[error(
        "the peer is {actual}, not {expected} \
         (hint: the destination's address may have moved to another pod)"
    )]
    WrongPeer { expected: Principal, actual: Principal },
    /// The other side's verdict on us; its log says why.
    #[error("the peer refused this side's certificate: alert {0:?} (hint: see the peer's log)")]
    RefusedByPeer(AlertDescription),
    /// Any other failure of TLS, or an alert that came after the handshake.
    #[error("TLS failed: {0} (hint: the peer's log may say more)")]
    Tls(String),
    /// The certificate of a pod of this node could not be had.
    #[error("no certificate for {principal}: {cause}")]
    NotIssued { principal: Principal, cause: String },
    /// A file of the built-in CA.
    #[error("could not {action} `{}`: {source}", path.display())]
    CaFile { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    /// A private key that is not private.
    #[error(
        "others may read the CA's key `{path}` (mode {mode:04o}) (hint: `chmod 600 {path}`; \
         if others may have read it, delete it and `{certificate}`, and restart every agent)",
        path = path.display(), certificate = certificate.display()
    )]
    ExposedKey { path: PathBuf, certificate: PathBuf, mode: u32 },
    /// The built-in CA's files are no CA of this trust domain.
    #[error("`{}` is not usable as a CA: {cause}", path.display())]
    UnusableCa { path: PathBuf, cause: String },
}

impl From<&rustls::Error> for IdentityError {
    fn from(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::NoCertificatesPresented => IdentityError::NoCertificate,
            rustls::Error::AlertReceived(alert) => IdentityError::RefusedByPeer(*alert),
            rustls::Error::InvalidCertificate(error) => error.into(),
            error => IdentityError::Tls(error.to_string()),
        }
    }
}

impl From<&CertificateError> for IdentityError {
    fn from(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer => IdentityError::UnknownIssuer,
            CertificateError::ExpiredContext { not_after, .. } => {
                IdentityError::Expired { not_after: system_time(*not_after) }
            }
            CertificateError::NotValidYetContext { not_before, .. } => {
                IdentityError::NotYetValid { not_before: system_time(*not_before) }
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                IdentityError::WrongPurpose
            }
            CertificateError::Other(other) => match other.0.downcast_ref::<IdentityError>() {
                Some(ours) => ours.clone(),
                None => IdentityError::Malformed(other.to_string()),
            },
            error => IdentityError::Malformed(error.to_string()),
        }
    }
}

impl From<&io::Error> for IdentityError {
    /// For an error out of a TLS stream.
    fn from(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => error.into(),
            None => IdentityError::Tls(error.to_string()),
        }
    }
}

fn system_time(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}
