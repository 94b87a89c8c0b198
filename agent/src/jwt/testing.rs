//! Issuers with keys, for unit tests.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm};
use serde_json::{Value, json};

use super::{KeySource, Rule};

/// Somebody who signs tokens.
pub(crate) struct Issuer {
    algorithm: Algorithm,
    key: EncodingKey,
    id: String,
    jwk: Value,
}

impl Issuer {
    /// With a key called `id` on the curve P-256.
    pub(crate) fn new(id: &str) -> Self {
        Self::with(id, Algorithm::ES256, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    pub(crate) fn with(id: &str, algorithm: Algorithm, of: &'static SignatureAlgorithm) -> Self {
        let pair = KeyPair::generate_for(of).unwrap();
        let pem = pair.serialize_pem();
        let key = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(pem.as_bytes()),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(pem.as_bytes()),
            _ => EncodingKey::from_rsa_pem(pem.as_bytes()),
        };
        let key = key.unwrap();
        let mut jwk = match algorithm {
            Algorithm::EdDSA => {
                let x = BASE64_URL_SAFE_NO_PAD.encode(pair.der_bytes());
                json!({"kty": "OKP", "crv": "Ed25519", "x": x})
            }
            _ => serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap(),
        };
        jwk["kid"] = id.into();
        jwk.as_object_mut().unwrap().remove("alg");
        Self { algorithm, key, id: id.into(), jwk }
    }

    /// The same key with another algorithm.
    pub(crate) fn signing_by(&self, algorithm: Algorithm) -> Self {
        let (key, id, jwk) = (self.key.clone(), self.id.clone(), self.jwk.clone());
        Self { algorithm, key, id, jwk }
    }

    /// Its public key.
    pub(crate) fn jwk(&self) -> Value {
        self.jwk.clone()
    }

    /// Its key set.
    pub(crate) fn jwks(&self) -> String {
        json!({"keys": [self.jwk()]}).to_string()
    }

    /// A token that says which key it is signed by.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.sign(Some(&self.id), claims)
    }

    pub(crate) fn sign(&self, id: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: id.map(str::to_owned), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.key).unwrap()
    }
}

/// A rule with keys in it.
pub(crate) fn rule(issuer: &str, jwks: &str) -> Rule {
    Rule {
        issuer: issuer.into(),
        audiences: Vec::new(),
        keys: KeySource::Inline(jwks.into()),
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        forward: false,
        payload_header: None,
        claim_headers: Vec::new(),
        space_delimited: Vec::new(),
        required: false,
    }
}
