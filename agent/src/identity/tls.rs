//! TLS configurations made of one certificate.

use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::SystemTime,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, kx_group},
    },
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};

use rustls_pki_types::CertificateDer;

use super::{
    Certificate, IdentityError,
    certificate::Facts,
    verify::{ExpectClient, ExpectServer},
};
use crate::mesh::{Principal, TrustDomain};

/// The share of its life after which a certificate is replaced. Drawn, so that what was issued
/// together, when a node or a cluster started, does not come back together for ever.
const RENEWAL: Range<f64> = 0.45..0.55;
/// HBONE is HTTP/2.
const ALPN: &[u8] = b"h2";

/// aws-lc-rs with the post-quantum hybrid first; rustls sends the classic share along, so a
/// peer without it costs no round trip.
pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// One issued certificate and the TLS configurations made of it.
///
/// Session resumption is off on both sides. A resumed session skips the certificates: it
/// would outlive an expired or replaced one, and a client's ticket is found by server name,
/// which is not what identifies a workload. HBONE connections are few and long, so there is
/// little to save.
pub(super) struct Issued {
    pub(super) facts: Facts,
    renewal: SystemTime,
    pub(super) server: Arc<ServerConfig>,
    /// By the peer they accept.
    clients: Mutex<HashMap<Principal, Arc<ClientConfig>>>,
    trust_domain: TrustDomain,
    key: Arc<SingleCertAndKey>,
    /// The roots that came with the certificate.
    own_roots: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
}

impl Issued {
    /// Checks that `certificate` is what was asked for, and makes TLS of it.
    pub(super) fn new(
        who: &Principal,
        trust_domain: TrustDomain,
        certificate: Certificate,
    ) -> Result<Self, IdentityError> {
        let unusable = |cause: &dyn fmt::Display| IdentityError::NotIssued {
            principal: who.clone(),
            cause: cause.to_string(),
        };
        let first = certificate.chain.first().ok_or_else(|| unusable(&"the chain is empty"))?;
        let facts = Facts::of(first).map_err(|error| unusable(&error))?;
        if facts.principal != *who {
            return Err(unusable(&format!("it was issued for {}", facts.principal)));
        }
        let issued_at = SystemTime::now();
        if facts.not_after <= issued_at {
            return Err(unusable(&format!(
                "it expired at {} (hint: is the clock right?)",
                humantime::format_rfc3339_seconds(facts.not_after)
            )));
        }
        let key = CertifiedKey::from_der(certificate.chain, certificate.key, &PROVIDER)
            .map_err(|error| unusable(&error))?;
        let key = Arc::new(SingleCertAndKey::from(key));
        let life = facts.not_after.duration_since(issued_at).unwrap_or_default();
        let renewal = issued_at + life.mul_f64(rand::random_range(RENEWAL));
        Self::build(facts, renewal, trust_domain, key, certificate.roots, &[])
            .map_err(|error| unusable(&error))
    }

    /// The same certificate, for peers of `more` roots beside those that came with it.
    pub(super) fn trusting(&self, more: &[CertificateDer<'static>]) -> Result<Self, IdentityError> {
        let (facts, key, own_roots) =
            (self.facts.clone(), self.key.clone(), self.own_roots.clone());
        let principal = &self.facts.principal;
        Self::build(facts, self.renewal, self.trust_domain.clone(), key, own_roots, more).map_err(
            |error| IdentityError::NotIssued {
                principal: principal.clone(),
                cause: error.to_string(),
            },
        )
    }

    fn build(
        facts: Facts,
        renewal: SystemTime,
        trust_domain: TrustDomain,
        key: Arc<SingleCertAndKey>,
        own_roots: Vec<CertificateDer<'static>>,
        more: &[CertificateDer<'static>],
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let mut roots = RootCertStore::empty();
        for root in &own_roots {
            roots.add(root.clone())?;
        }
        for root in more.iter().filter(|root| !own_roots.contains(root)) {
            roots.add(root.clone())?;
        }
        let roots = Arc::new(roots);

        let clients = ExpectClient::new(trust_domain.clone(), roots.clone(), PROVIDER.clone())?;
        let mut server = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(clients))
            .with_cert_resolver(key.clone());
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            facts,
            renewal,
            server: Arc::new(server),
            clients: Mutex::default(),
            trust_domain,
            key,
            own_roots,
            roots,
        })
    }

    /// When to replace it: about half of its life is left then.
    pub(super) fn renewal(&self) -> SystemTime {
        self.renewal
    }

    /// The configuration that accepts exactly `peer`; the same one each time.
    pub(super) fn client(&self, peer: &Principal) -> Result<Arc<ClientConfig>, IdentityError> {
        // Once a tunnel, and a lock of this certificate's own: a concurrent map is 17 KB each.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = clients.get(peer) {
            return Ok(config.clone());
        }
        let verifier = ExpectServer {
            expected: peer.clone(),
            trust_domain: self.trust_domain.clone(),
            roots: self.roots.clone(),
            provider: PROVIDER.clone(),
        };
        let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| IdentityError::Tls(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(self.key.clone());
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(clients.entry(peer.clone()).or_insert(Arc::new(config)).clone())
    }
}
