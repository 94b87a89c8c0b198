//! What is wrong with a request's token, in the words of Envoy.

use std::fmt;

use http::StatusCode;

/// What is wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is none, where one has to be.
    Missing,
    /// There are more than anybody has a use for.
    TooMany,
    /// Its `nbf` is in the future.
    NotYetValid,
    /// Its `exp` has passed.
    Expired,
    /// It has not three parts.
    BadFormat,
    /// Its first part is no Base64url.
    HeaderBadBase64,
    /// Its first part is no JSON object.
    HeaderBadJson,
    /// It has no `alg`.
    HeaderBadAlg,
    /// Its `alg` is `none`, or nothing that can be verified.
    UnsupportedAlg,
    /// Its `kid` is no text.
    HeaderBadKid,
    /// Its second part is no Base64url.
    PayloadBadBase64,
    /// Its second part is no JSON object.
    PayloadBadJson,
    /// A claim that has to be a text, a number or a list of texts is none.
    PayloadBadClaim(&'static str),
    /// A time is before 1970, or further away than anybody counts.
    PayloadTimeOutOfRange(&'static str),
    /// Its third part is no Base64url.
    SignatureBadBase64,
    /// No rule is about its issuer.
    UnknownIssuer,
    /// It is for somebody else.
    AudienceNotAllowed,
    /// Its signature is by none of the keys.
    VerificationFails,
    /// No key has its `kid`, or is for its `alg`.
    NoSuchKey,
    /// The issuer's keys are not known, and could not be fetched.
    KeysMissing,
}

impl Fault {
    /// What the client is answered.
    pub fn status(self) -> StatusCode {
        match self {
            Self::AudienceNotAllowed => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    /// Whether another rule may still be about the token.
    pub(super) fn is_of_another(self) -> bool {
        matches!(self, Self::Missing | Self::UnknownIssuer)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "Jwt is missing",
            Self::TooMany => "Found multiple Jwt tokens",
            Self::NotYetValid => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::BadFormat => {
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
            }
            Self::HeaderBadBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderBadJson => "Jwt header is an invalid JSON",
            Self::HeaderBadAlg => "Jwt header [alg] field is required and must be a string",
            Self::UnsupportedAlg => "Jwt header [alg] is not supported",
            Self::HeaderBadKid => "Jwt header [kid] field is not a string",
            Self::PayloadBadBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadBadJson => "Jwt payload is an invalid JSON",
            Self::PayloadBadClaim(claim) => {
                return match *claim {
                    "aud" => f.write_str("Jwt payload [aud] field is not a string or string list"),
                    "iat" | "nbf" | "exp" => {
                        write!(f, "Jwt payload [{claim}] field is not an integer")
                    }
                    claim => write!(f, "Jwt payload [{claim}] field is not a string"),
                };
            }
            Self::PayloadTimeOutOfRange(claim) => {
                return write!(f, "Jwt payload [{claim}] field is not a positive 64 bit integer");
            }
            Self::SignatureBadBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::AudienceNotAllowed => "Audiences in Jwt are not allowed",
            Self::VerificationFails => "Jwt verification fails",
            Self::NoSuchKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::KeysMissing => "Jwks remote fetch is failed",
        })
    }
}
