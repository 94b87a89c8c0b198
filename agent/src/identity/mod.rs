//! SPIFFE certificates: where they come from, their renewal, and the TLS made of them.
//!
//! Enters: a [`CertificateSource`] and the principals of this node's pods. Leaves: TLS
//! configurations that prove who the pod is and accept nobody but the peer that was meant,
//! and [`peer_principal`], who a peer proved to be. Knows no sockets and no policy.

mod ca;
mod certificate;
mod error;
pub mod istio;
mod renewal;
mod root;
mod store;
mod tls;
mod verify;

#[cfg(test)]
mod tests;

use std::{future::Future, pin::Pin, sync::Arc};

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

pub use ca::SelfSignedCa;
pub use certificate::{Certificate, peer_principal};
pub use error::IdentityError;
pub use store::{CertificateStatus, IdentityStore};

pub(crate) use certificate::{pem, system_time};
pub(crate) use root::{Root, RootOptions};
pub(crate) use tls::PROVIDER;

use crate::mesh::Principal;

/// A future behind a pointer, so that a trait with an asynchronous method can be an object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Certificates of roots.
pub type Roots = Arc<Vec<CertificateDer<'static>>>;

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

    /// Roots to trust beside those that come with a certificate, as they change; `None` where
    /// there are no others. A root that is about to sign is here before it signs.
    fn roots(&self) -> Option<watch::Receiver<Roots>> {
        None
    }
}
