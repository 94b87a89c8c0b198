//! The keys of an issuer (RFC 7517), and whether a token is signed by one of them.

use std::fmt;

use jsonwebtoken::{DecodingKey, crypto, jwk::Jwk};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Fault, token::Token};

/// A JSON Web Key Set, of which what can verify nothing is left out, as Envoy does.
pub struct KeySet {
    keys: Vec<Key>,
}

struct Key {
    id: Option<Box<str>>,
    /// The only algorithm that it is for, where it says so.
    algorithm: Option<Box<str>>,
    key: DecodingKey,
}

/// Why a text is no JSON Web Key Set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKeys {
    /// It is no JSON object.
    #[error("no JSON object: {0}")]
    NoJson(String),
    /// It has no list of keys.
    #[error("no list of `keys`")]
    NoList,
    /// None of its keys is of use.
    #[error("no key that could verify a token: {0}")]
    NoneOfUse(String),
}

impl KeySet {
    /// Of a JSON text.
    ///
    /// # Errors
    /// Where none of its keys could verify anything.
    pub fn parse(text: &[u8]) -> Result<Self, NoKeys> {
        let set: Map<String, Value> =
            serde_json::from_slice(text).map_err(|error| NoKeys::NoJson(error.to_string()))?;
        let Some(Value::Array(list)) = set.get("keys") else { return Err(NoKeys::NoList) };
        let mut why = "the list is empty".to_owned();
        let mut keys = Vec::new();
        for one in list {
            match Key::of(one) {
                Ok(key) => keys.push(key),
                Err(other) => why = other,
            }
        }
        if keys.is_empty() { Err(NoKeys::NoneOfUse(why)) } else { Ok(Self { keys }) }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never: there would be no set.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether one of the keys has signed `token`. One that names a key is by that one, or by one without
    /// a name.
    pub(super) fn verify(&self, token: &Token<'_>) -> Result<(), Fault> {
        let mut fault = Fault::NoSuchKey;
        for Key { id, algorithm, key } in &self.keys {
            let is_other = |own: &Option<Box<str>>, wanted: Option<&str>| match (own, wanted) {
                (Some(own), Some(wanted)) => {
                    !own.is_empty() && !wanted.is_empty() && **own != *wanted
                }
                _ => false,
            };
            if is_other(id, token.key_id.as_deref())
                || is_other(algorithm, Some(&token.algorithm_name))
            {
                continue;
            }
            fault = Fault::VerificationFails;
            // An error where the key is of another kind than the algorithm: a public key is no secret.
            let signed = token.signed.as_bytes();
            if let Ok(true) = crypto::verify(token.signature, signed, key, token.algorithm) {
                return Ok(());
            }
        }
        Err(fault)
    }
}

impl Key {
    fn of(value: &Value) -> Result<Self, String> {
        let jwk = Jwk::deserialize(value).map_err(|error| error.to_string())?;
        let key = DecodingKey::from_jwk(&jwk).map_err(|error| error.to_string())?;
        let text = |field: &str| value[field].as_str().map(Into::into);
        Ok(Self { id: text("kid"), algorithm: text("alg"), key })
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = self.keys.iter().map(|key| key.id.as_deref().unwrap_or_default());
        f.debug_list().entries(ids).finish()
    }
}
