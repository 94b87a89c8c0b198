//! What this replica signs and serves with at a time.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{KeyPair, PublicKeyData};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::server::ServerName;
use crate::{
    identity::{self, PROVIDER, Root},
    mesh::Principal,
};

/// A root that signs, and the server's own certificate, signed by it.
pub(super) struct Authority {
    root: Root,
    serving: Arc<CertifiedKey>,
    /// When the server's certificate is due for renewal.
    renewal: SystemTime,
    expires: SystemTime,
}

impl Authority {
    /// Signs a certificate for the server of `names`, with a new key.
    pub(super) fn new(
        root: Root,
        names: &[ServerName],
        lifetime: Duration,
    ) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let names = names.iter().map(ServerName::to_san).collect::<Result<_, _>>()?;
        let leaf = root.sign_server(&key, names, lifetime)?;
        let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let serving = Arc::new(CertifiedKey::from_der(vec![leaf], key, &PROVIDER)?);
        let (_, parsed) = x509_parser::parse_x509_certificate(root.certificate())?;
        let expires = identity::system_time(parsed.validity().not_after);
        Ok(Self { root, serving, renewal: SystemTime::now() + lifetime / 2, expires })
    }

    /// Whether it is to go on signing as long as `root` does.
    pub(super) fn serves(&self, root: &Root, now: SystemTime) -> bool {
        self.root.certificate() == root.certificate() && now < self.renewal
    }

    /// PEM of a certificate of `principal`, and of the root that signed it.
    pub(super) fn sign(
        &self,
        key: &impl PublicKeyData,
        principal: &Principal,
        lifetime: Duration,
    ) -> Result<(CertificateDer<'static>, Vec<String>), rcgen::Error> {
        let leaf = self.root.sign_workload(key, principal, lifetime)?;
        let chain = vec![identity::pem(&leaf), identity::pem(self.root.certificate())];
        Ok((leaf, chain))
    }

    /// What the server proves itself with.
    pub(super) fn serving(&self) -> Arc<CertifiedKey> {
        self.serving.clone()
    }

    /// When the root expires.
    pub(super) fn expires(&self) -> SystemTime {
        self.expires
    }
}
