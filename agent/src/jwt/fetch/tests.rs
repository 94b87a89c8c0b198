use std::{convert::Infallible, sync::atomic::AtomicUsize, sync::atomic::Ordering::Relaxed};

use http_body_util::Full;
use hyper::service::service_fn;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::jwt::testing::Issuer;

const PATIENCE: Duration = Duration::from_secs(20);

/// Knows one Service.
struct Service(SocketAddr);

impl Resolve for Service {
    fn service(&self, host: &str, port: u16) -> Option<Vec<SocketAddr>> {
        (host == "keys.shop.svc" && port == 80).then(|| vec![self.0])
    }
}

/// A server of keys, in plaintext and by TLS.
struct Server {
    plain: SocketAddr,
    tls: SocketAddr,
    client: Client,
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

fn answer(request: &Request<Incoming>, jwks: &str, plain: SocketAddr) -> Response<Full<Bytes>> {
    let response = Response::builder();
    let found = |to: String| response_to(302, &to);
    let text = match request.uri().path() {
        "/keys" => jwks.to_owned(),
        "/issuer/.well-known/openid-configuration" => {
            json!({"jwks_uri": format!("http://{plain}/keys")}).to_string()
        }
        "/mute/.well-known/openid-configuration" => "{}".into(),
        "/near" => return found("/keys".into()),
        "/far" => return found(format!("http://{plain}/keys")),
        "/round" => return found("/round".into()),
        "/nothing" => "[]".into(),
        "/large" => " ".repeat(LONGEST_ANSWER + 1),
        _ => return response_to(404, ""),
    };
    response.body(Full::from(text)).unwrap()
}

fn response_to(status: u16, location: &str) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status).header(header::LOCATION, location);
    response.body(Full::default()).unwrap()
}

impl Server {
    async fn start(jwks: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into());
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listen = || TcpListener::bind("127.0.0.1:0");
        let (plain, tls) = (listen().await.unwrap(), listen().await.unwrap());
        let [plain_at, tls_at] = [&plain, &tls].map(|listener| listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for (listener, acceptor) in [(plain, None), (tls, Some(acceptor))] {
            let (jwks, asked) = (jwks.to_owned(), asked.clone());
            tasks.spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let serve = service_fn(|request: Request<Incoming>| {
                        asked.fetch_add(1, Relaxed);
                        let answer = answer(&request, &jwks, plain_at);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let server = hyper::server::conn::http1::Builder::new();
                    match &acceptor {
                        None => drop(server.serve_connection(TokioIo::new(stream), serve).await),
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                drop(server.serve_connection(TokioIo::new(stream), serve).await);
                            }
                        }
                    }
                }
            });
        }
        let client = Client {
            resolve: Arc::new(Service(plain_at)),
            roots: Some(roots),
            allows_loopback: true,
        };
        Self { plain: plain_at, tls: tls_at, client, asked, _tasks: tasks }
    }

    async fn keys(&self, uri: &str, discovers: bool) -> Result<usize, String> {
        let uri = uri
            .replace("PLAIN", &self.plain.to_string())
            .replace("TLS", &format!("localhost:{}", self.tls.port()));
        let source = RemoteSource { uri: uri.into(), discovers, timeout: PATIENCE };
        self.client.keys(&source).await.map(|keys| keys.len())
    }
}

#[tokio::test]
async fn keys_are_fetched_by_url_by_service_and_by_issuer() {
    let server = Server::start(&Issuer::new("k").jwks()).await;
    for uri in ["http://PLAIN/keys", "https://TLS/keys", "http://keys.shop.svc/keys"] {
        assert_eq!(server.keys(uri, false).await, Ok(1), "{uri}");
    }
    for uri in ["http://PLAIN/near", "http://PLAIN/far", "https://TLS/near"] {
        assert_eq!(server.keys(uri, false).await, Ok(1), "{uri}");
    }
    for issuer in ["http://PLAIN/issuer", "https://TLS/issuer/"] {
        assert_eq!(server.keys(issuer, true).await, Ok(1), "{issuer}");
    }
}

#[tokio::test]
async fn what_is_no_key_set_is_told_with_the_reason() {
    let server = Server::start(&Issuer::new("k").jwks()).await;
    for (uri, discovers, expected) in [
        ("http://PLAIN/none", false, "the answer is 404 Not Found"),
        ("http://PLAIN/nothing", false, "has no JSON Web Key Set: no JSON object: "),
        ("http://PLAIN/large", false, "length limit exceeded"),
        ("http://PLAIN/round", false, "it leads on more than 5 times"),
        ("https://TLS/far", false, "out of TLS"),
        ("http://PLAIN/mute", true, "the issuer does not say where its keys are (jwks_uri)"),
        ("somebody@example", true, "could not fetch somebody@example/.well-known"),
        ("ftp://PLAIN/keys", false, "it is no URL of HTTP"),
        ("http://no-such-host.invalid/keys", false, "no address of no-such-host.invalid"),
    ] {
        let error = server.keys(uri, discovers).await.unwrap_err();
        assert!(error.contains(expected), "{uri}: {error}");
    }
    let stranger = Client { roots: Some(RootCertStore::empty()), ..server.client };
    let uri = format!("https://localhost:{}/keys", server.tls.port());
    let source = RemoteSource { uri: uri.into(), discovers: false, timeout: PATIENCE };
    let error = stranger.keys(&source).await.map(drop).unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_waited_for_no_longer_than_it_may_take() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::start("").await;
    let uri = format!("http://{}/keys", silent.local_addr().unwrap()).into();
    let timeout = Duration::from_millis(10);
    let source = RemoteSource { uri, discovers: false, timeout };
    let error = server.client.keys(&source).await.map(drop).unwrap_err();
    assert!(error.ends_with("no answer in 10ms"), "{error}");
}

#[tokio::test]
async fn this_nodes_own_servers_and_those_of_clouds_are_not_asked() {
    let server = Server::start("").await;
    let client = Client { allows_loopback: false, ..server.client };
    for host in [
        "127.0.0.1",
        "[::1]",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "100.100.100.200",
        "224.0.0.1",
    ] {
        let uri = format!("http://{host}:{}/keys", server.plain.port()).into();
        let source = RemoteSource { uri, discovers: false, timeout: PATIENCE };
        let error = client.keys(&source).await.map(drop).unwrap_err();
        assert!(error.ends_with(" is not for keys"), "{host}: {error}");
    }
    assert_eq!(server.asked.load(Relaxed), 0);
}
