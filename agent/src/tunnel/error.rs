//! Why there is no tunnel.

use std::{future::Future, io, sync::Arc, time::Duration};

use http::StatusCode;

use crate::identity::IdentityError;

/// Why there is no tunnel, or no longer. The caller names the address.
///
/// Cheap to clone: several streams may have waited for one connection.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each field is a part of the message above it")]
pub enum TunnelError {
    /// No TCP connection.
    #[error("could not connect: {source} (hint: does an agent run on the peer's node?)")]
    Dial { source: Arc<io::Error> },
    /// One of the two sides did not accept the other.
    #[error(transparent)]
    Tls { source: IdentityError },
    /// A step that never ended.
    #[error("{step} took longer than {limit:?} (hint: is the peer's agent alive?)")]
    Timeout { step: &'static str, limit: Duration },
    /// The peer's agent answered, with no.
    #[error("the peer's agent refused the connection with status {status} (hint: see its log)")]
    Refused { status: StatusCode },
    /// The connection that carried the tunnel ended.
    #[error("the HTTP/2 connection broke: {cause}")]
    Broken { cause: Arc<str> },
}

impl TunnelError {
    pub(super) fn broken(cause: impl ToString) -> Self {
        TunnelError::Broken { cause: cause.to_string().into() }
    }

    /// For an error out of TLS.
    pub(super) fn tls(error: &io::Error) -> Self {
        TunnelError::Tls { source: error.into() }
    }
}

impl From<&h2::Error> for TunnelError {
    /// In TLS 1.3 a client learns only after its own handshake that the server refused its
    /// certificate, so this can be a verdict on an identity as well. Of the TLS error, h2
    /// keeps the kind and the words.
    fn from(error: &h2::Error) -> Self {
        match error.get_io() {
            Some(error) if error.kind() == io::ErrorKind::InvalidData => TunnelError::tls(error),
            _ => TunnelError::broken(error),
        }
    }
}

/// Runs one step of a connection's start, for no longer than `limit`.
pub(super) async fn within<T>(
    step: &'static str,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, TunnelError> {
    tokio::time::timeout(limit, work).await.map_err(|_| TunnelError::Timeout { step, limit })
}
