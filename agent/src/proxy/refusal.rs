//! Why a request or a connection is refused.

use std::fmt;

use http::StatusCode;

use crate::{identity::IdentityError, telemetry::Failure};

/// Why the agent answers a request itself.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) failure: Failure,
    pub(super) message: String,
}

impl Refusal {
    /// The next hop could not be reached or did not answer as HTTP.
    pub(super) fn unavailable(failure: Failure, cause: impl fmt::Display) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, failure, message: cause.to_string() }
    }

    /// A pod of this node has no valid certificate.
    pub(super) fn uncertified(missing: IdentityError) -> Self {
        Self::unavailable(Failure::CertificateMissing, missing)
    }
}
