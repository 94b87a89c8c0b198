//! What spans and metrics know about one connection.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    limits::Limit,
    mesh::{Principal, Service, Workload},
};

/// On whose behalf the agent reports: the side of the connection the workload is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reporter {
    /// The workload that dialled; spans are of kind CLIENT.
    Source,
    /// The workload that was dialled; spans are of kind SERVER.
    Destination,
}

/// How the hop between the two sides is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SecurityPolicy {
    /// HBONE, or the same checks within one node.
    MutualTls,
    /// Plaintext.
    None,
}

impl SecurityPolicy {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            SecurityPolicy::MutualTls => "mutual_tls",
            SecurityPolicy::None => "none",
        }
    }
}

/// One connection as spans and metrics speak of it. Built once per connection and endpoint,
/// then shared by every request on it.
#[derive(Clone, Debug)]
pub struct Flow {
    /// On whose behalf this is recorded.
    pub reporter: Reporter,
    /// The workload on whose behalf this is recorded; spans carry its Resource.
    pub local: Arc<Workload>,
    /// The pod at the other end, where the mesh knows it.
    pub remote: Option<Arc<Workload>>,
    /// The Service that was dialled.
    pub service: Option<Arc<Service>>,
    /// Who the client is, where it has proved it.
    pub source_principal: Option<Principal>,
    /// Who the server is, where it has proved it.
    pub destination_principal: Option<Principal>,
    /// How the hop is protected.
    pub security: SecurityPolicy,
    /// Whether both ends are on this node.
    pub same_node: bool,
    /// The client application's address.
    pub client: SocketAddr,
    /// What was dialled.
    pub server: SocketAddr,
    /// The other end of this hop: the endpoint for a source, the client for a destination.
    pub peer: SocketAddr,
}

impl Flow {
    /// The pod that dialled, where it is known.
    pub(super) fn source(&self) -> Option<&Arc<Workload>> {
        match self.reporter {
            Reporter::Source => Some(&self.local),
            Reporter::Destination => self.remote.as_ref(),
        }
    }

    /// The pod that was dialled, where it is known.
    pub(super) fn destination(&self) -> Option<&Arc<Workload>> {
        match self.reporter {
            Reporter::Source => self.remote.as_ref(),
            Reporter::Destination => Some(&self.local),
        }
    }
}

/// Why a connection or request did not end as its two ends wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The next hop refused or could not be reached.
    ConnectFailure,
    /// No mutually trusted identity on the next hop.
    TlsFailure,
    /// The next hop did not answer in time.
    Timeout,
    /// The server's side broke off.
    ResetRemote,
    /// The client's side went away.
    ResetLocal,
    /// Policy said no.
    AuthzDenied,
    /// Its token is not good.
    JwtDenied,
    /// An external authorizer said no.
    ExtAuthzDenied,
    /// One was to be asked, and could not be.
    ExtAuthzError,
    /// It came in plaintext, which the workload does not accept.
    MutualTlsRequired,
    /// A pod of the mesh that has no valid certificate is neither let in nor out.
    CertificateMissing,
    /// The Service has no ready endpoint.
    NoHealthyUpstream,
    /// The agent ended before the connection did.
    DrainTimeout,
    /// The pod left the mesh before the connection ended.
    PodLeft,
    /// A pod or client has as many connections as are left for all others.
    ConnectionLimit,
    /// As many bytes wait for a pod's readers as are left for all others.
    BufferLimit,
    /// As many handshakes with a pod are in progress as are left for all others.
    HandshakeLimit,
    /// What the client sent is not HTTP as its RFCs have it.
    MalformedRequest,
    /// What the server sent is not.
    MalformedResponse,
}

impl From<Limit> for Failure {
    fn from(limit: Limit) -> Self {
        match limit {
            Limit::Connections | Limit::Descriptors => Failure::ConnectionLimit,
            Limit::Buffered => Failure::BufferLimit,
            Limit::Handshakes => Failure::HandshakeLimit,
        }
    }
}

impl Failure {
    /// The value of `error.type`, and of a connection's close reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Failure::ConnectFailure => "connect_failure",
            Failure::TlsFailure => "tls_failure",
            Failure::Timeout => "timeout",
            Failure::ResetRemote => "reset_remote",
            Failure::ResetLocal => "reset_local",
            Failure::AuthzDenied => "authz_denied",
            Failure::JwtDenied => "jwt_denied",
            // As Envoy has it in `response_code_details`.
            Failure::ExtAuthzDenied => "ext_authz_denied",
            Failure::ExtAuthzError => "ext_authz_error",
            Failure::MutualTlsRequired => "mutual_tls_required",
            Failure::CertificateMissing => "certificate_missing",
            Failure::NoHealthyUpstream => "no_healthy_upstream",
            Failure::DrainTimeout => "drain_timeout",
            Failure::PodLeft => "pod_left",
            Failure::ConnectionLimit => "connection_limit",
            Failure::BufferLimit => "buffer_limit",
            Failure::HandshakeLimit => "handshake_limit",
            Failure::MalformedRequest => "malformed_request",
            Failure::MalformedResponse => "malformed_response",
        }
    }

    /// Istio's `response_flags`: Envoy's letters, which dashboards explain, except that a denied
    /// connection is ztunnel's `DENY`; Envoy has no flag for RBAC, and a denied request has none.
    pub(super) fn response_flags(self) -> &'static str {
        match self {
            // A server that does not accept in time is one that cannot be reached: `UT` is a request's.
            Failure::ConnectFailure | Failure::TlsFailure | Failure::Timeout => "UF",
            Failure::ResetRemote => "UC",
            Failure::ResetLocal => "DC",
            Failure::AuthzDenied
            | Failure::JwtDenied
            | Failure::MutualTlsRequired
            | Failure::CertificateMissing => "DENY",
            // Envoy's for both.
            Failure::ExtAuthzDenied | Failure::ExtAuthzError => "UAEX",
            Failure::NoHealthyUpstream => "UH",
            Failure::DrainTimeout => "DT",
            Failure::PodLeft => "LR",
            // Protocol errors of Envoy's downstream and upstream.
            Failure::MalformedRequest => "DPE",
            Failure::MalformedResponse => "UPE",
            // Envoy's overload manager.
            Failure::ConnectionLimit | Failure::BufferLimit | Failure::HandshakeLimit => "OM",
        }
    }
}
