//! Why a request gets no certificate.

use tonic::{Code, Status};

use super::{caller::Caller, name::NamespacedName};
use crate::mesh::{Principal, TrustDomain};

/// Why a request gets no certificate. The caller is told the same words as the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the request carries no bearer token")]
    NoToken,
    #[error("the API server does not accept the token for audience `{audience}`: {cause}")]
    Token { audience: String, cause: String },
    /// Without asking the API server.
    #[error("the token is none for audience `{audience}`: {cause}")]
    Implausible { audience: String, cause: String },
    #[error("the token is `{0}`'s, which is no service account")]
    NotServiceAccount(String),
    #[error(
        "the token of {0} is bound to no pod (hint: mount it as a projected volume of the pod)"
    )]
    NoPod(NamespacedName),
    #[error("{caller} asked for {asked}, and may ask for its own identity only")]
    OtherIdentity { caller: Caller, asked: Principal },
    #[error(
        "the token of {0} does not say on which node it is (hint: Kubernetes says so since 1.30)"
    )]
    NoNode(Caller),
    #[error("{caller} asked for {asked}, of which no pod of the mesh runs on its node")]
    NotOnNode { caller: Caller, asked: Principal },
    #[error("this CA signs for trust domain `{own}` only, not for {asked}")]
    TrustDomain { own: TrustDomain, asked: Principal },
    #[error("the request cannot be used: {0}")]
    Request(String),
    /// Not the caller's fault: the same request may succeed later.
    #[error("the API server could not be asked: {0}")]
    Api(String),
    /// Not the caller's fault alone.
    #[error("too many requests wait for the API server (hint: try again)")]
    Busy,
    /// Not the caller's fault either.
    #[error("not signed: {0}")]
    Signing(String),
}

impl Refusal {
    /// Every reason, as metrics name it.
    pub(super) const REASONS: [&str; 13] = [
        "no_token",
        "token",
        "not_service_account",
        "no_pod",
        "other_identity",
        "no_node",
        "not_on_node",
        "trust_domain",
        "request",
        "api_unavailable",
        "signing",
        "implausible_token",
        "busy",
    ];

    /// Its place among [`Self::REASONS`].
    pub(super) fn reason(&self) -> usize {
        match self {
            Self::NoToken => 0,
            Self::Token { .. } => 1,
            Self::NotServiceAccount(_) => 2,
            Self::NoPod(_) => 3,
            Self::OtherIdentity { .. } => 4,
            Self::NoNode(_) => 5,
            Self::NotOnNode { .. } => 6,
            Self::TrustDomain { .. } => 7,
            Self::Request(_) => 8,
            Self::Api(_) => 9,
            Self::Signing(_) => 10,
            Self::Implausible { .. } => 11,
            Self::Busy => 12,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoToken
            | Self::Token { .. }
            | Self::Implausible { .. }
            | Self::NotServiceAccount(_)
            | Self::NoPod(_) => Code::Unauthenticated,
            Self::OtherIdentity { .. }
            | Self::NoNode(_)
            | Self::NotOnNode { .. }
            | Self::TrustDomain { .. } => Code::PermissionDenied,
            Self::Request(_) => Code::InvalidArgument,
            Self::Api(_) | Self::Busy => Code::Unavailable,
            Self::Signing(_) => Code::Internal,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Status::new(refusal.code(), refusal.to_string())
    }
}
