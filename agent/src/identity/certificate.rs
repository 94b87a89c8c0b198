//! A certificate with its key, and what is written in certificates.

use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{ASN1Time, FromDer},
};

use super::IdentityError;
use crate::mesh::Principal;

/// What a [`super::CertificateSource`] hands out.
#[derive(Debug)]
pub struct Certificate {
    /// The workload's certificate, then intermediates up to, but without, a root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The workload's private key.
    pub key: PrivateKeyDer<'static>,
    /// The roots that peers are verified against; several while one replaces another.
    pub roots: Vec<CertificateDer<'static>>,
}

/// What the agent needs to know of a certificate of its own.
#[derive(Clone)]
pub(super) struct Facts {
    pub(super) principal: Principal,
    /// Hexadecimal.
    pub(super) serial: String,
    pub(super) not_after: SystemTime,
}

impl Facts {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let parsed = parse(certificate)?;
        Ok(Self {
            principal: principal(&parsed)?,
            serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            not_after: system_time(parsed.validity().not_after),
        })
    }
}

/// Who the owner of a verified chain is: the one SPIFFE URI of its first certificate.
///
/// # Errors
/// When there is no certificate, or it names no workload, or more than one URI.
pub fn peer_principal(
    certificates: Option<&[CertificateDer<'_>]>,
) -> Result<Principal, IdentityError> {
    let first = certificates.and_then(<[_]>::first).ok_or(IdentityError::NoCertificate)?;
    principal(&parse(first)?)
}

/// Whether it vouches for itself, as roots do.
pub(super) fn is_self_issued(certificate: &CertificateDer<'_>) -> Result<bool, IdentityError> {
    let parsed = parse(certificate)?;
    Ok(parsed.is_ca() && parsed.subject().as_raw() == parsed.issuer().as_raw())
}

pub(crate) fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, IdentityError> {
    let (rest, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| IdentityError::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(IdentityError::Malformed("bytes follow the certificate".into()));
    }
    Ok(parsed)
}

fn principal(certificate: &X509Certificate<'_>) -> Result<Principal, IdentityError> {
    /// The tag of a URI in a GeneralName, RFC 5280 §4.2.1.6.
    const URI: u32 = 6;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| IdentityError::Malformed(error.to_string()))?;
    let names = names.iter().flat_map(|extension| &extension.value.general_names);
    let uris: Vec<_> = names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(Ok(*uri)),
            // One that is not ASCII must not be overlooked beside one that is.
            GeneralName::Invalid(tag, _) if tag.0 == URI => {
                Some(Err(IdentityError::Malformed("a URI that is not ASCII".into())))
            }
            _ => None,
        })
        .collect::<Result<_, _>>()?;
    match uris[..] {
        [uri] => uri.parse().map_err(|error: crate::mesh::InvalidPrincipal| {
            IdentityError::NotWorkload(error.to_string())
        }),
        _ => Err(IdentityError::NotOneIdentity(uris.len())),
    }
}

/// `certificate` as text.
pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate.as_ref()), config)
}

/// A time before 1970 counts as 1970: long over either way.
pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.timestamp().try_into().unwrap_or(0))
}
