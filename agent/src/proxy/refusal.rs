//! Why a request or a connection is refused.

use std::fmt;

use http::StatusCode;

use super::authorization::Unauthorized;
use crate::{
    http::Answer,
    identity::IdentityError,
    policy::NoPath,
    telemetry::{Failure, Judgement},
};

/// Why the agent answers a request itself.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) failure: Failure,
    pub(super) message: String,
    /// What policy said about it.
    pub(super) judgement: Option<Box<Judgement>>,
    /// What the client is answered, where that is another's to say.
    pub(super) answer: Option<Box<Answer>>,
}

impl Refusal {
    /// The next hop could not be reached or did not answer as HTTP.
    pub(super) fn unavailable(failure: Failure, cause: impl fmt::Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, failure, cause)
    }

    pub(super) fn new(status: StatusCode, failure: Failure, cause: impl fmt::Display) -> Self {
        Self { status, failure, message: cause.to_string(), judgement: None, answer: None }
    }

    /// The agent at the server's side says that policy says no.
    pub(super) fn denied(cause: impl fmt::Display) -> Self {
        Self::new(StatusCode::FORBIDDEN, Failure::AuthzDenied, cause)
    }

    /// A path matters to policy, and the request's is none that could be judged.
    pub(super) fn no_path(why: NoPath) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Failure::MalformedRequest, why)
    }

    /// A pod of this node has no valid certificate.
    pub(super) fn uncertified(missing: IdentityError) -> Self {
        Self::unavailable(Failure::CertificateMissing, missing)
    }
}

impl From<Unauthorized> for Refusal {
    fn from(unauthorized: Unauthorized) -> Self {
        let judgement = unauthorized.judgement.clone();
        Self { judgement, ..Self::denied(unauthorized) }
    }
}
