//! Certificate requests: a key and the proof that the caller holds it. What else they ask for
//! is the CA's to decide.

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    public_key::PublicKey,
};

/// Bits of an RSA key. Fewer are weak; more cost everyone who verifies.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// A request whose signature is right.
pub(super) struct SigningRequest {
    /// The key to certify.
    pub(super) key: SubjectPublicKeyInfo,
    /// The URIs it asks to be named by.
    pub(super) uris: Vec<String>,
}

impl SigningRequest {
    /// Reads PEM.
    ///
    /// # Errors
    /// In words, when it is no request, is not signed by its key, or the key is of a kind that
    /// is not certified here.
    pub(super) fn parse(pem: &str) -> Result<Self, String> {
        let malformed =
            |cause: &dyn std::fmt::Display| format!("it is no PEM certificate request: {cause}");
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| malformed(&error))?;
        let (rest, request) =
            X509CertificationRequest::from_der(&der).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(malformed(&"bytes follow it"));
        }
        let info = &request.certification_request_info;
        let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
            .map_err(|_| "its key is neither ECDSA P-256 nor RSA".to_owned())?;
        // The kind before the signature, so that no huge key is computed with.
        if key.algorithm() == &PKCS_RSA_SHA256 {
            let bits = match info.subject_pki.parsed() {
                Ok(PublicKey::RSA(key)) => key.key_size(),
                _ => 0,
            };
            if !RSA_BITS.contains(&bits) {
                let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
                return Err(format!("its RSA key has {bits} bits, not {least} to {most}"));
            }
        } else if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err("its key is neither ECDSA P-256 nor RSA".into());
        }
        request
            .verify_signature()
            .map_err(|_| "it is not signed by the key it is for".to_owned())?;
        let names = request.requested_extensions().into_iter().flatten();
        let uris = names
            .filter_map(|extension| match extension {
                ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
                _ => None,
            })
            .flatten()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
            .collect();
        Ok(Self { key, uris })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, RsaKeySize, SanType,
    };

    use super::*;

    fn request(key: &KeyPair, names: Vec<SanType>) -> String {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn the_key_and_the_uris_are_taken_and_other_names_are_not() {
        let key = KeyPair::generate().unwrap();
        let dns = SanType::DnsName("sluice-ca.sluice-system.svc".try_into().unwrap());
        let pem = request(&key, vec![uri("spiffe://cluster.local/ns/a/sa/b"), dns]);
        let request = SigningRequest::parse(&pem).unwrap();
        assert_eq!(request.uris, ["spiffe://cluster.local/ns/a/sa/b"]);
        assert_eq!(request.key.der_bytes(), key.der_bytes());
    }

    #[test]
    fn rsa_of_2048_bits_is_certified() {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        SigningRequest::parse(&request(&key, Vec::new())).unwrap();
    }

    #[test]
    fn other_kinds_of_key_are_not_certified() {
        for kind in [&PKCS_ED25519, &PKCS_ECDSA_P384_SHA384] {
            let key = KeyPair::generate_for(kind).unwrap();
            let refused = SigningRequest::parse(&request(&key, Vec::new())).err().unwrap();
            assert!(refused.contains("neither ECDSA P-256 nor RSA"), "{refused}");
        }
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let pem = request(&KeyPair::generate().unwrap(), vec![uri("spiffe://a/ns/b/sa/c")]);
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut der = der.to_vec();
        // Inside the URI, which the signature covers.
        let at = der.windows(6).position(|bytes| bytes == b"spiffe").unwrap();
        der[at + 9] = b'x';
        let pem = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der));
        let refused = SigningRequest::parse(&pem).err().unwrap();
        assert_eq!(refused, "it is not signed by the key it is for");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in ["", "nonsense", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"] {
            assert!(SigningRequest::parse(text).is_err(), "{text:?}");
        }
    }
}
