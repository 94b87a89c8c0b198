//! Certificates from the built-in CA, believed or not in real handshakes.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use rcgen::{ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, client::WantsClientCert};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    sync::{mpsc, watch},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    BoxFuture, Certificate, CertificateSource, IdentityError, IdentityStore, Roots, SelfSignedCa,
    peer_principal, tls::Issued, verify::ExpectServer,
};
use crate::mesh::{Principal, TrustDomain};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn principal(account: &str) -> Principal {
    Principal::new(TrustDomain::default(), "shop", account).unwrap()
}

fn ca(dir: &TempDir) -> SelfSignedCa {
    SelfSignedCa::open(dir.path(), TrustDomain::default(), DAY).unwrap()
}

fn store(source: impl CertificateSource) -> Arc<IdentityStore> {
    IdentityStore::new(Arc::new(source), TrustDomain::default())
}

/// What a test certificate says; the default is what the CA issues.
struct Draft {
    names: Vec<SanType>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    valid: (time::Duration, time::Duration),
}

impl Draft {
    fn naming(uris: &[&str]) -> Self {
        let uri = |uri: &&str| SanType::URI((*uri).try_into().unwrap());
        Self {
            names: uris.iter().map(uri).collect(),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            valid: (-time::Duration::HOUR, time::Duration::HOUR),
        }
    }

    fn sign(self, ca: &SelfSignedCa) -> Certificate {
        let now = OffsetDateTime::now_utc();
        let valid = (now + self.valid.0, now + self.valid.1);
        let key = KeyPair::generate().unwrap();
        let root = ca.root();
        Certificate {
            chain: vec![root.sign(&key, self.names, self.usages, valid).unwrap()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            roots: vec![root.certificate().clone()],
        }
    }

    /// What whoever holds this certificate would connect to `order` with.
    fn client(self, ca: &SelfSignedCa) -> Arc<ClientConfig> {
        let Certificate { chain, key, roots } = self.sign(ca);
        let config = trusting(roots).with_client_auth_cert(chain, key).unwrap();
        with_alpn(config)
    }
}

/// A client that accepts nobody but `order`, and has yet to get a certificate.
fn trusting(
    certificates: Vec<CertificateDer<'static>>,
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    for root in certificates {
        roots.add(root).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = ExpectServer {
        expected: principal("order"),
        trust_domain: TrustDomain::default(),
        roots: roots.into(),
        provider: provider.clone(),
    };
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
}

fn with_alpn(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// The root of the CA in `dir`.
fn root(dir: &TempDir) -> Vec<CertificateDer<'static>> {
    Draft::naming(&[]).sign(&ca(dir)).roots
}

/// A handshake and one byte each way; who the server says the client is.
async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (Result<(), IdentityError>, Result<Principal, IdentityError>) {
    let (near, far) = duplex(64 << 10);
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let client = async {
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        stream.write_u8(1).await?;
        stream.flush().await?;
        assert_eq!(stream.read_u8().await?, 2);
        std::io::Result::Ok(())
    };
    let server = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        let peer = peer_principal(stream.get_ref().1.peer_certificates());
        assert_eq!(stream.read_u8().await?, 1);
        stream.write_u8(2).await?;
        stream.flush().await?;
        std::io::Result::Ok(peer)
    };
    let (client, server) = tokio::join!(client, server);
    (
        client.map_err(|error| IdentityError::from(&error)),
        server.map_err(|error| IdentityError::from(&error)).and_then(|peer| peer),
    )
}

/// Why `order` refuses a client with this certificate, signed by `ca`.
async fn refusal(trusted: &TempDir, client: Arc<ClientConfig>) -> IdentityError {
    let server = store(ca(trusted)).server_config(&principal("order")).await.unwrap();
    let (client, server) = handshake(client, server).await;
    assert!(
        matches!(client, Err(IdentityError::RefusedByPeer(_))),
        "the client learnt only {client:?}"
    );
    server.unwrap_err()
}

#[tokio::test]
async fn two_workloads_of_one_mesh_believe_each_other() {
    let dir = TempDir::new().unwrap();
    let store = store(ca(&dir));
    let (frontend, order) = (principal("frontend"), principal("order"));
    let client = store.client_config(&frontend, &order).await.unwrap();
    let server = store.server_config(&order).await.unwrap();
    let (client, server) = handshake(client, server).await;
    client.unwrap();
    assert_eq!(server.unwrap(), frontend);
}

#[tokio::test]
async fn a_server_that_is_another_workload_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = store(ca(&dir));
    let (frontend, order, user) = (principal("frontend"), principal("order"), principal("user"));
    let client = store.client_config(&frontend, &order).await.unwrap();
    let server = store.server_config(&user).await.unwrap();
    let (client, server) = handshake(client, server).await;
    let error = client.unwrap_err();
    assert!(
        matches!(&error, IdentityError::WrongPeer { expected, actual }
            if *expected == order && *actual == user),
        "{error}"
    );
    assert!(matches!(server, Err(IdentityError::RefusedByPeer(_))));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let dir = TempDir::new().unwrap();
    let anonymous = with_alpn(trusting(root(&dir)).with_no_client_auth());
    let error = refusal(&dir, anonymous).await;
    assert!(matches!(error, IdentityError::NoCertificate), "{error}");
}

#[tokio::test]
async fn a_client_of_another_ca_is_refused() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let certificate = Draft::naming(&["spiffe://cluster.local/ns/shop/sa/frontend"]);
    let Certificate { chain, key, .. } = certificate.sign(&ca(&other));
    // It trusts the server, so that the server's verdict is the one that counts.
    let client = with_alpn(trusting(root(&dir)).with_client_auth_cert(chain, key).unwrap());
    let error = refusal(&dir, client).await;
    assert!(matches!(error, IdentityError::UnknownIssuer), "{error}");
}

#[tokio::test]
async fn a_client_whose_certificate_is_not_valid_now_is_refused_with_the_date() {
    let dir = TempDir::new().unwrap();
    let frontend = ["spiffe://cluster.local/ns/shop/sa/frontend"];
    let expired = Draft {
        valid: (-time::Duration::HOUR, -time::Duration::MINUTE),
        ..Draft::naming(&frontend)
    };
    let error = refusal(&dir, expired.client(&ca(&dir))).await;
    assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
    let early =
        Draft { valid: (time::Duration::HOUR, time::Duration::DAY), ..Draft::naming(&frontend) };
    let error = refusal(&dir, early.client(&ca(&dir))).await;
    assert!(matches!(error, IdentityError::NotYetValid { .. }), "{error}");
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused_even_with_the_right_ca() {
    let dir = TempDir::new().unwrap();
    let foreign = Draft::naming(&["spiffe://elsewhere/ns/shop/sa/frontend"]);
    let error = refusal(&dir, foreign.client(&ca(&dir))).await;
    assert!(matches!(error, IdentityError::WrongTrustDomain { .. }), "{error}");
}

#[tokio::test]
async fn a_certificate_for_servers_only_is_no_client_certificate() {
    let dir = TempDir::new().unwrap();
    let server_only = Draft {
        usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
        ..Draft::naming(&["spiffe://cluster.local/ns/shop/sa/frontend"])
    };
    let error = refusal(&dir, server_only.client(&ca(&dir))).await;
    assert!(matches!(error, IdentityError::WrongPurpose), "{error}");
}

#[tokio::test]
async fn a_certificate_that_names_no_or_two_identities_is_refused() {
    let dir = TempDir::new().unwrap();
    let two = Draft::naming(&[
        "spiffe://cluster.local/ns/shop/sa/frontend",
        "spiffe://cluster.local/ns/shop/sa/order",
    ]);
    let error = refusal(&dir, two.client(&ca(&dir))).await;
    assert!(matches!(error, IdentityError::NotOneIdentity(2)), "{error}");
    let dns = Draft {
        names: vec![SanType::DnsName("frontend.shop".try_into().unwrap())],
        ..Draft::naming(&[])
    };
    let error = refusal(&dir, dns.client(&ca(&dir))).await;
    assert!(matches!(error, IdentityError::NotOneIdentity(0)), "{error}");
}

#[test]
fn the_principal_of_a_certificate_is_its_one_workload_uri() {
    let dir = TempDir::new().unwrap();
    let ca = ca(&dir);
    let read = |uris: &[&str]| peer_principal(Some(&Draft::naming(uris).sign(&ca).chain));
    let order = "spiffe://cluster.local/ns/shop/sa/order";
    assert_eq!(read(&[order]).unwrap(), principal("order"));
    for uri in ["spiffe://cluster.local/ns/shop/sa/order\0", "https://example.com/", "spiffe://x"] {
        assert!(matches!(read(&[uri]), Err(IdentityError::NotWorkload(_))), "{uri:?}");
    }
    assert!(matches!(read(&[order, order]), Err(IdentityError::NotOneIdentity(2))));
    assert!(matches!(peer_principal(None), Err(IdentityError::NoCertificate)));
    assert!(matches!(peer_principal(Some(&[])), Err(IdentityError::NoCertificate)));
    let garbage = [vec![0x30, 0x82, 0xff].into()];
    assert!(matches!(peer_principal(Some(&garbage)), Err(IdentityError::Malformed(_))));
}

#[tokio::test]
async fn peers_are_verified_against_the_new_root_and_the_old_one() {
    let (old, new) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (frontend, order) = (principal("frontend"), principal("order"));
    let mut both = ca(&new).issue(&order).await.unwrap();
    both.roots.extend(root(&old));
    let server = Issued::new(&order, TrustDomain::default(), both).unwrap().server;
    for dir in [&old, &new] {
        let mut certificate = ca(dir).issue(&frontend).await.unwrap();
        certificate.roots = root(&new);
        let client = Issued::new(&frontend, TrustDomain::default(), certificate).unwrap();
        let (client, server) = handshake(client.client(&order).unwrap(), server.clone()).await;
        client.unwrap();
        assert_eq!(server.unwrap(), frontend);
    }
}

/// The built-in CA, and roots beside its own.
struct Rooted {
    ca: SelfSignedCa,
    roots: watch::Receiver<Roots>,
}

impl CertificateSource for Rooted {
    fn issue<'a>(
        &'a self,
        principal: &'a Principal,
    ) -> BoxFuture<'a, Result<Certificate, IdentityError>> {
        self.ca.issue(principal)
    }

    fn roots(&self) -> Option<watch::Receiver<Roots>> {
        Some(self.roots.clone())
    }
}

#[tokio::test]
async fn a_root_that_is_announced_is_trusted_without_a_new_certificate() {
    let (old, new) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (frontend, order) = (principal("frontend"), principal("order"));
    let (announce, roots) = watch::channel(Roots::default());
    let store = store(Rooted { ca: ca(&old), roots });
    let serial = |store: &IdentityStore| store.certificates()[0].serial.clone();
    let newcomer = {
        let mut certificate = ca(&new).issue(&frontend).await.unwrap();
        certificate.roots = root(&old);
        Issued::new(&frontend, TrustDomain::default(), certificate).unwrap()
    };
    let newcomer = newcomer.client(&order).unwrap();

    let before = store.server_config(&order).await.unwrap();
    assert!(handshake(newcomer.clone(), before.clone()).await.1.is_err());
    let first = serial(&store);
    announce.send_replace(Arc::new(root(&new)));
    let after = loop {
        let config = store.server_config(&order).await.unwrap();
        if !Arc::ptr_eq(&config, &before) {
            break config;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(handshake(newcomer, after).await.1.unwrap(), frontend);
    assert_eq!(serial(&store), first);
    assert_eq!(store.requests(), (1, 0));
}

/// The built-in CA, which fails while told to.
struct Source {
    ca: SelfSignedCa,
    down: Arc<AtomicBool>,
    attempts: mpsc::UnboundedSender<()>,
}

impl CertificateSource for Source {
    fn issue<'a>(
        &'a self,
        principal: &'a Principal,
    ) -> BoxFuture<'a, Result<Certificate, IdentityError>> {
        self.attempts.send(()).unwrap();
        if self.down.load(Ordering::Relaxed) {
            let principal = principal.clone();
            let cause = "the source is down".into();
            return Box::pin(async { Err(IdentityError::NotIssued { principal, cause }) });
        }
        self.ca.issue(principal)
    }
}

struct Bench {
    store: Arc<IdentityStore>,
    down: Arc<AtomicBool>,
    attempts: mpsc::UnboundedReceiver<()>,
    _dir: TempDir,
}

fn bench() -> Bench {
    living(DAY)
}

/// A bench whose certificates live so long.
fn living(lifetime: Duration) -> Bench {
    let dir = TempDir::new().unwrap();
    let ca = SelfSignedCa::open(dir.path(), TrustDomain::default(), lifetime).unwrap();
    let down = Arc::new(AtomicBool::new(false));
    let (sender, attempts) = mpsc::unbounded_channel();
    let store = store(Source { ca, down: down.clone(), attempts: sender });
    Bench { store, down, attempts, _dir: dir }
}

impl Bench {
    /// Waits until the source was asked, and the store has got the answer. Where the clock
    /// is paused it leaps to the moment.
    async fn attempt(&mut self) {
        self.attempts.recv().await.unwrap();
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn requests_that_come_together_get_one_certificate() {
    let mut bench = bench();
    let requests = (0..50).map(|_| {
        let store = bench.store.clone();
        tokio::spawn(async move { store.server_config(&principal("order")).await.unwrap() })
    });
    let mut configs = Vec::new();
    for request in requests.collect::<Vec<_>>() {
        configs.push(request.await.unwrap());
    }
    assert!(configs.windows(2).all(|pair| Arc::ptr_eq(&pair[0], &pair[1])));
    bench.attempt().await;
    assert!(bench.attempts.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_and_the_configurations_swapped() {
    let mut bench = bench();
    let (order, user) = (principal("order"), principal("user"));
    let server = bench.store.server_config(&order).await.unwrap();
    let client = bench.store.client_config(&order, &user).await.unwrap();
    assert!(Arc::ptr_eq(&client, &bench.store.client_config(&order, &user).await.unwrap()));
    assert!(!Arc::ptr_eq(&client, &bench.store.client_config(&order, &order).await.unwrap()));
    let serial = bench.store.certificates()[0].serial.clone();
    bench.attempt().await;
    bench.attempt().await;
    assert!(!Arc::ptr_eq(&server, &bench.store.server_config(&order).await.unwrap()));
    assert!(!Arc::ptr_eq(&client, &bench.store.client_config(&order, &user).await.unwrap()));
    assert_ne!(serial, bench.store.certificates()[0].serial);
}

#[test]
fn what_was_issued_together_is_not_renewed_together() {
    let dir = TempDir::new().unwrap();
    let (ca, who) = (ca(&dir), principal("order"));
    let mut shares: Vec<_> = (0..20)
        .map(|_| {
            let valid = (time::Duration::ZERO, time::Duration::DAY);
            let draft = Draft { valid, ..Draft::naming(&[&who.to_string()]) };
            let now = SystemTime::now();
            let issued = Issued::new(&who, TrustDomain::default(), draft.sign(&ca)).unwrap();
            issued.renewal().duration_since(now).unwrap().as_secs_f64() / DAY.as_secs_f64()
        })
        .collect();
    shares.sort_by(f64::total_cmp);
    let (first, last) = (shares[0], shares[shares.len() - 1]);
    assert!(first > 0.44 && last < 0.56, "{shares:?}");
    assert!(last - first > 0.01, "{shares:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_keeps_the_certificate_says_why_and_is_tried_again() {
    let mut bench = bench();
    let order = principal("order");
    let server = bench.store.server_config(&order).await.unwrap();
    bench.attempt().await;
    bench.down.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        bench.attempt().await;
        assert!(Arc::ptr_eq(&server, &bench.store.server_config(&order).await.unwrap()));
        let error = bench.store.certificates()[0].error.clone().unwrap();
        assert!(error.contains("the source is down"), "{error}");
    }
    bench.down.store(false, Ordering::Relaxed);
    bench.attempt().await;
    assert!(!Arc::ptr_eq(&server, &bench.store.server_config(&order).await.unwrap()));
    assert_eq!(bench.store.certificates()[0].error, None);
}

#[tokio::test(start_paused = true)]
async fn a_first_certificate_that_fails_is_an_error_at_once_and_tried_again() {
    let mut bench = bench();
    bench.down.store(true, Ordering::Relaxed);
    let order = principal("order");
    let error = bench.store.server_config(&order).await.unwrap_err();
    assert!(error.to_string().contains("the source is down"), "{error}");
    bench.attempt().await;
    bench.down.store(false, Ordering::Relaxed);
    bench.attempt().await;
    bench.store.server_config(&order).await.unwrap();
}

/// A source that never answers for `order`, and for others as the built-in CA does.
struct Hanging(SelfSignedCa);

impl CertificateSource for Hanging {
    fn issue<'a>(
        &'a self,
        principal: &'a Principal,
    ) -> BoxFuture<'a, Result<Certificate, IdentityError>> {
        if *principal == self::principal("order") {
            return Box::pin(std::future::pending());
        }
        self.0.issue(principal)
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_with_one_holds_up_no_other_and_nobody_for_long() {
    let dir = TempDir::new().unwrap();
    let store = store(Hanging(ca(&dir)));
    let (order, user) = (principal("order"), principal("user"));
    let mut answered = store.subscribe();
    store.ask_for(&HashSet::from([order.clone(), user.clone()]));
    assert!(store.missing(&user).is_some(), "it was only just asked for");
    answered.changed().await.unwrap();
    assert!(store.missing(&user).is_none());
    let why = store.missing(&order).unwrap().to_string();
    assert!(why.contains("there is no answer yet"), "{why}");

    // Nor does a connection wait for the source's own time limit.
    let began = tokio::time::Instant::now();
    let why = store.valid(&order).await.unwrap_err().to_string();
    assert!(why.contains("there is no answer yet"), "{why}");
    assert_eq!(began.elapsed(), Duration::from_secs(10), "by a clock that only waits move");
    store.valid(&user).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_principal_is_renewed_no_more() {
    let mut bench = bench();
    let (order, user) = (principal("order"), principal("user"));
    bench.store.server_config(&order).await.unwrap();
    bench.store.server_config(&user).await.unwrap();
    bench.store.retain(&HashSet::from([user.clone()]));
    let held: Vec<_> = bench.store.certificates().into_iter().map(|c| c.principal).collect();
    assert_eq!(held, [user]);
    bench.store.retain(&HashSet::new());
    bench.attempt().await;
    bench.attempt().await;
    // With nothing left to renew, a day passes without the source being asked.
    tokio::time::timeout(DAY, bench.attempts.recv()).await.unwrap_err();
}

#[tokio::test]
async fn a_certificate_that_expired_before_it_could_be_renewed_is_not_handed_out() {
    let mut bench = living(Duration::from_secs(2));
    let order = principal("order");
    bench.store.server_config(&order).await.unwrap();
    bench.attempt().await;
    bench.down.store(true, Ordering::Relaxed);
    let error = loop {
        // Real time must pass; each failed renewal is a chance to look.
        bench.attempt().await;
        if let Err(error) = bench.store.server_config(&order).await {
            break error.to_string();
        }
    };
    assert!(error.contains("expired") && error.contains("the source is down"), "{error}");
}

#[tokio::test]
async fn a_certificate_that_is_expired_when_issued_is_an_error() {
    let bench = living(Duration::ZERO);
    let error = bench.store.server_config(&principal("order")).await.unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");
}

#[tokio::test]
async fn the_built_in_ca_signs_for_its_own_trust_domain_only() {
    let dir = TempDir::new().unwrap();
    let foreign = "spiffe://elsewhere/ns/shop/sa/order".parse().unwrap();
    assert!(ca(&dir).issue(&foreign).await.is_err());
}

#[test]
fn agents_that_start_at_once_share_one_ca() {
    let dir = TempDir::new().unwrap();
    let roots: Vec<_> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..8).map(|_| scope.spawn(|| root(&dir))).collect();
        starting.into_iter().map(|agent| agent.join().unwrap()).collect()
    });
    assert!(roots.windows(2).all(|pair| pair[0] == pair[1]));
    let mode = fs::metadata(dir.path().join("ca-key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_ca_key_that_others_may_read_is_refused_with_the_command_that_mends_it() {
    let dir = TempDir::new().unwrap();
    ca(&dir);
    let key = dir.path().join("ca-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = SelfSignedCa::open(dir.path(), TrustDomain::default(), DAY).unwrap_err();
    assert!(error.to_string().contains(&format!("chmod 600 {}", key.display())), "{error}");
}

#[test]
fn a_ca_that_does_not_fit_is_refused() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    ca(&dir);
    let open = |domain: &str| SelfSignedCa::open(dir.path(), domain.parse().unwrap(), DAY);
    let error = open("elsewhere").unwrap_err();
    assert!(error.to_string().contains("trust domain `cluster.local`"), "{error}");

    ca(&other);
    let (ours, theirs) = (dir.path().join("ca-cert.pem"), other.path().join("ca-cert.pem"));
    fs::copy(theirs, &ours).unwrap();
    let error = open("cluster.local").unwrap_err();
    assert!(error.to_string().contains("another key"), "{error}");

    fs::remove_file(dir.path().join("ca-key.pem")).unwrap();
    let error = open("cluster.local").unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
}
