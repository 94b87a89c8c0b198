//! A token as it came (RFC 7515 §3.1), taken apart and not believed yet.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Number, Value};

use super::Fault;

/// With padding or without, as Envoy takes it.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// How far the clock of an issuer may be from this node's, in seconds: Envoy's default.
const CLOCK_SKEW: u64 = 60;

/// What a token says, true or not.
#[derive(Debug)]
pub(super) struct Token<'a> {
    /// What its signature is about.
    pub(super) signed: &'a str,
    /// As it came.
    pub(super) payload: &'a str,
    pub(super) signature: &'a str,
    pub(super) algorithm: Algorithm,
    pub(super) algorithm_name: String,
    pub(super) key_id: Option<String>,
    pub(super) claims: Map<String, Value>,
    not_before: u64,
    expires: u64,
}

impl<'a> Token<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, Fault> {
        let mut parts = text.split('.');
        let mut next = || parts.next().filter(|part| !part.is_empty()).ok_or(Fault::BadFormat);
        let (header, payload, signature) = (next()?, next()?, next()?);
        if parts.next().is_some() {
            return Err(Fault::BadFormat);
        }
        let json = |part: &str, bad_base64, bad_json| {
            let bytes = BASE64URL.decode(part).map_err(|_| bad_base64)?;
            serde_json::from_slice::<Map<String, Value>>(&bytes).map_err(|_| bad_json)
        };
        let head = json(header, Fault::HeaderBadBase64, Fault::HeaderBadJson)?;
        let name = head.get("alg").and_then(Value::as_str).ok_or(Fault::HeaderBadAlg)?;
        let algorithm = name.parse().map_err(|_| Fault::UnsupportedAlg)?;
        if head.contains_key("crit") {
            // RFC 7515 §4.1.11: what is said there has to be understood, and nothing is.
            return Err(Fault::VerificationFails);
        }
        let key_id = match head.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(Fault::HeaderBadKid),
        };
        let claims = json(payload, Fault::PayloadBadBase64, Fault::PayloadBadJson)?;
        for claim in ["iss", "sub", "jti"] {
            if claims.get(claim).is_some_and(|value| !value.is_string()) {
                return Err(Fault::PayloadBadClaim(claim));
            }
        }
        let seconds = |claim: &'static str| match claims.get(claim) {
            None => Ok(0),
            Some(Value::Number(number)) => {
                seconds(number).ok_or(Fault::PayloadTimeOutOfRange(claim))
            }
            Some(_) => Err(Fault::PayloadBadClaim(claim)),
        };
        let (_, not_before, expires) = (seconds("iat")?, seconds("nbf")?, seconds("exp")?);
        let is_audience = |value: &Value| match value {
            Value::Array(list) => list.iter().all(Value::is_string),
            value => value.is_string(),
        };
        if !claims.get("aud").is_none_or(is_audience) {
            return Err(Fault::PayloadBadClaim("aud"));
        }
        BASE64URL.decode(signature).map_err(|_| Fault::SignatureBadBase64)?;
        let signed = &text[..header.len() + 1 + payload.len()];
        let algorithm_name = name.to_owned();
        Ok(Self {
            signed,
            payload,
            signature,
            algorithm,
            algorithm_name,
            key_id,
            claims,
            not_before,
            expires,
        })
    }

    /// Its issuer; nothing where it names none.
    pub(super) fn issuer(&self) -> &str {
        self.claims.get("iss").and_then(Value::as_str).unwrap_or_default()
    }

    /// For whom it is.
    pub(super) fn audiences(&self) -> impl Iterator<Item = &str> {
        let (one, list) = match self.claims.get("aud") {
            Some(Value::Array(list)) => (None, list.as_slice()),
            one => (one, [].as_slice()),
        };
        one.into_iter().chain(list).filter_map(Value::as_str)
    }

    /// Whether it holds at `now`, in seconds of Unix time. One that names no end has none.
    pub(super) fn check_time(&self, now: u64) -> Result<(), Fault> {
        if now.saturating_add(CLOCK_SKEW) < self.not_before {
            return Err(Fault::NotYetValid);
        }
        if self.expires > 0 && now > self.expires.saturating_add(CLOCK_SKEW) {
            return Err(Fault::Expired);
        }
        Ok(())
    }
}

/// A NumericDate (RFC 7519 §2), without its fraction.
fn seconds(number: &Number) -> Option<u64> {
    match number.as_u64() {
        Some(seconds) => Some(seconds),
        None => {
            let seconds = number.as_f64().filter(|seconds| (0.0..1e18).contains(seconds))?;
            Some(seconds as u64)
        }
    }
}
