//! A self-signed root with its key, and what it signs: the one place that says what the
//! mesh's certificates look like.

use std::{fmt, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;

use super::certificate;
use crate::mesh::{Principal, TrustDomain};

/// How far other nodes' clocks may lag behind this one.
const CLOCK_SKEW: time::Duration = time::Duration::minutes(2);
/// The same of a root, which is trusted because it was handed over: that it begins early harms
/// nobody, and one that begins too late for a replica or an agent is a CA that is out.
const ROOT_SKEW: time::Duration = time::Duration::days(1);

/// A root of trust. Whoever holds it can be anyone in its trust domain.
pub(crate) struct Root {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// The name of whoever makes a root, and how long it lives.
pub(crate) struct RootOptions<'a> {
    pub(crate) name: &'a str,
    pub(crate) trust_domain: &'a TrustDomain,
    pub(crate) lifetime: Duration,
}

impl Root {
    /// A new root for `key`.
    pub(crate) fn new(key: KeyPair, options: &RootOptions<'_>) -> Result<Self, rcgen::Error> {
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, options.trust_domain.as_str());
        params.distinguished_name.push(DnType::CommonName, options.name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now - ROOT_SKEW;
        params.not_after = now + options.lifetime;
        let certificate = params.self_signed(&key)?.der().clone();
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { issuer, certificate })
    }

    /// The root of `key` whose certificate is `pem`.
    ///
    /// # Errors
    /// In words, when it is no root of `key` and `trust_domain` that is valid now.
    pub(crate) fn read(
        pem: &str,
        key: KeyPair,
        trust_domain: &TrustDomain,
    ) -> Result<Self, String> {
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?;
        let parsed = certificate::parse(&certificate).map_err(|error| error.to_string())?;
        if !parsed.is_ca() {
            return Err("it is not a CA's certificate".into());
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err("it belongs to another key".into());
        }
        if !parsed.validity().is_valid() {
            return Err(format!(
                "it is valid from {} to {} (hint: is the clock right? to start a new CA, delete \
                 it and its key, and restart every agent)",
                parsed.validity().not_before,
                parsed.validity().not_after
            ));
        }
        let organisations = parsed.subject().iter_organization();
        let domains: Vec<_> = organisations.filter_map(|name| name.as_str().ok()).collect();
        if domains != [trust_domain.as_str()] {
            return Err(format!(
                "it is of trust domain `{}`, not `{trust_domain}` (hint: --trust-domain)",
                domains.join(", ")
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| e.to_string())?;
        Ok(Self { issuer, certificate })
    }

    /// Its certificate, to be trusted by everyone.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its key, to be seen by nobody.
    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate of `principal` for whoever holds the key that belongs to `key`.
    pub(crate) fn sign_workload(
        &self,
        key: &impl PublicKeyData,
        principal: &Principal,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        let name = SanType::URI(principal.to_string().try_into()?);
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(key, vec![name], usages, valid_for(lifetime))
    }

    /// A certificate for a server that is reached by `names`, which is no workload.
    pub(crate) fn sign_server(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        self.sign(key, names, vec![ExtendedKeyUsagePurpose::ServerAuth], valid_for(lifetime))
    }

    /// Signs for a key that is valid in the given time.
    pub(super) fn sign(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        (not_before, not_after): (OffsetDateTime, OffsetDateTime),
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        let mut params = CertificateParams::default();
        // The name is the alternative one alone; RFC 5280 §4.2.1.6 wants the extension critical
        // then, which rcgen sees to.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        params.not_before = not_before;
        params.not_after = not_after;
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }
}

fn valid_for(lifetime: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - CLOCK_SKEW, now + lifetime)
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root").finish_non_exhaustive()
    }
}
