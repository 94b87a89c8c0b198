//! SPIFFE certificates: where they come from, their renewal, and the TLS made of them.
//!
//! Enters: a [`CertificateSource`] and the principals of this node's pods. Leaves: TLS
//! configurations that prove who the pod is and accept nobody but the peer that was meant,
//! and [`peer_principal`], who a peer proved to be. Knows no sockets and no policy.

mod ca;
mod certificate;
mod error;
mod store;
mod tls;
mod verify;

#[cfg(test)]
mod tests;

use std::{future::Future, pin::Pin};

pub use ca::SelfSignedCa;
pub use certificate::{Certificate, peer_principal};
pub use error::IdentityError;
pub use store::{CertificateStatus, IdentityStore};

use crate::mesh::Principal;

/// A future behind a pointer, so that a trait with an asynchronous method can be an object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whoever signs certificates: the built-in CA, or one elsewhere.
pub trait CertificateSource: Send + Sync + 'static {
    /// A new key with a certificate for `principal`.
    ///
    /// # Errors
    /// When the source cannot be reached or will not sign for `principal`. The
    /// [`IdentityStore`] asks again after a while.
    fn issue<'a>(
        &'a self,
        principal: &'a Principal,
    ) -> BoxFuture<'a, Result<Certificate, IdentityError>>;
}
