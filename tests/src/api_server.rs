//! As much of the Kubernetes API server as a CA needs, inside the test: HTTPS, optimistic
//! concurrency, token reviews.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Barrier, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::{lab::Lab, pod::Pod};

const PORT: u16 = 6443;
/// What whoever asks must show; other tokens are for reviews only.
const CREDENTIAL: &str = "the-credential-of-sluice-ca";

/// A service-account token that the API server knows, as a TokenReview tells of it.
#[derive(Clone, Debug)]
pub struct Token {
    /// Whom it is bound to.
    pub audience: String,
    /// `namespace/name` of the service account.
    pub account: String,
    /// The pod it is bound to.
    pub pod: Option<String>,
    /// The node that pod runs on.
    pub node: Option<String>,
    /// Whether its time is over.
    pub expired: bool,
}

/// The server, at the lab's router. What it holds goes with it.
#[derive(Debug)]
pub struct ApiServer {
    kubeconfig: PathBuf,
    state: Arc<Shared>,
    _server: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// By path, e.g. `/api/v1/namespaces/x/secrets/y`.
    objects: BTreeMap<String, Value>,
    pods: Vec<Value>,
    tokens: BTreeMap<String, Token>,
    version: u64,
    conflicts: usize,
    gate: Option<(String, usize, Arc<Barrier>)>,
}

impl ApiServer {
    /// Starts it.
    ///
    /// # Errors
    /// When the lab has one already.
    pub fn start(lab: &Lab) -> anyhow::Result<Self> {
        let [ip, _] = lab.fabric_ips();
        let (tls, certificate) = tls(ip)?;
        let directory = lab.directory();
        let authority = directory.join("api-server.pem");
        fs::write(&authority, certificate)?;
        let kubeconfig = directory.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "ca"}}],
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://{}", SocketAddr::new(ip, PORT)),
                "certificate-authority": authority,
            }}],
            "users": [{"name": "ca", "user": {"token": CREDENTIAL}}],
        });
        fs::write(&kubeconfig, config.to_string())?;

        let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT);
        let listener = lab.fabric().run(|| std::net::TcpListener::bind(address))?;
        let listener = listener.context("the API server cannot listen")?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let state = Arc::new(Shared { state: Mutex::default(), changes: watch::Sender::new(0) });
        let mut server = JoinSet::new();
        server.spawn(serve(listener, tls, state.clone()));
        Ok(Self { kubeconfig, state, _server: server })
    }

    /// What `KUBECONFIG` must say.
    pub fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    /// Makes a token and returns its text, a JWT that says of itself what the reviews say.
    pub fn token(&self, name: &str, token: Token) -> String {
        let text = jwt(name, &token);
        self.state.lock().tokens.insert(text.clone(), token);
        text
    }

    /// Binds a pod to its node.
    pub fn pod(&self, pod: &Pod) {
        self.state.lock().pods.push(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()},
            "spec": {
                "nodeName": pod.node(),
                "serviceAccountName": pod.service_account(),
                "containers": [],
            },
            "status": {"phase": "Running"},
        }));
    }

    /// What is stored at `path` now.
    pub fn object(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    /// Removes what is stored at `path`.
    pub fn remove(&self, path: &str) {
        self.state.lock().objects.remove(path);
    }

    /// Reads what is stored at `path`, for as long as anybody wants to.
    pub(crate) fn reader(&self, path: &'static str) -> impl Fn() -> Option<Value> + use<> {
        let shared = self.state.clone();
        move || shared.lock().objects.get(path).cloned()
    }

    /// Counts up with each object written.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.state.changes.subscribe()
    }

    /// Writes that came too late.
    pub fn conflicts(&self) -> usize {
        self.state.lock().conflicts
    }

    /// Lets the first `count` who read `path` know what is there only when all of them have
    /// asked, so that all of them learn the same.
    pub fn gate(&self, path: &str, count: usize) {
        let gate = (path.to_owned(), count, Arc::new(Barrier::new(count)));
        self.state.lock().gate = Some(gate);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn respond(&self, request: Request<Incoming>) -> (StatusCode, Value) {
        let authorized = request.headers().get(header::AUTHORIZATION);
        if authorized.is_none_or(|value| value != &format!("Bearer {CREDENTIAL}")) {
            return failure(StatusCode::UNAUTHORIZED, "Unauthorized");
        }
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else {
            return failure(StatusCode::BAD_REQUEST, "BadRequest");
        };
        let body = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
        let path = head.uri.path();
        match (&head.method, path) {
            (&Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews") => {
                (StatusCode::CREATED, self.review(body))
            }
            (&Method::GET, "/api/v1/pods") => {
                let query = head.uri.query().unwrap_or_default().replace("%3D", "=");
                let node = query.split('&').find_map(|part| {
                    part.trim_start_matches('&').strip_prefix("fieldSelector=spec.nodeName=")
                });
                let state = self.lock();
                let on_node = |pod: &&Value| pod["spec"]["nodeName"].as_str() == node;
                let pods: Vec<_> = state.pods.iter().filter(on_node).cloned().collect();
                let list = json!({
                    "apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": pods,
                });
                (StatusCode::OK, list)
            }
            (&Method::GET, _) => {
                let object = self.lock().objects.get(path).cloned();
                self.pass_gate(path).await;
                match object {
                    Some(object) => (StatusCode::OK, object),
                    None => failure(StatusCode::NOT_FOUND, "NotFound"),
                }
            }
            (&Method::POST, _) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                self.write(format!("{path}/{name}"), body, StatusCode::CREATED)
            }
            (&Method::PUT, _) => self.write(path.to_owned(), body, StatusCode::OK),
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    async fn pass_gate(&self, path: &str) {
        let barrier = {
            let mut state = self.lock();
            match &mut state.gate {
                Some((gated, left, barrier)) if gated == path && *left > 0 => {
                    *left -= 1;
                    Some(barrier.clone())
                }
                _ => None,
            }
        };
        if let Some(barrier) = barrier {
            barrier.wait().await;
        }
    }

    /// Stores an object on top of the version it was made from.
    fn write(&self, path: String, mut object: Value, done: StatusCode) -> (StatusCode, Value) {
        let mut state = self.lock();
        let stored = state.objects.get(&path).map(|stored| &stored["metadata"]["resourceVersion"]);
        let made_from = &object["metadata"]["resourceVersion"];
        if done == StatusCode::CREATED && stored.is_some() {
            state.conflicts += 1;
            return failure(StatusCode::CONFLICT, "AlreadyExists");
        }
        if done == StatusCode::OK && stored != Some(made_from) {
            state.conflicts += 1;
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.objects.insert(path, object.clone());
        self.changes.send_replace(state.version);
        (done, object)
    }

    fn review(&self, mut review: Value) -> Value {
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        let wanted = review["spec"]["audiences"][0].as_str().unwrap_or_default().to_owned();
        let rejected = |why: String| json!({"authenticated": false, "error": why});
        let status = match self.lock().tokens.get(token) {
            None => rejected("invalid bearer token".into()),
            Some(token) if token.expired => rejected("token has expired".into()),
            Some(token) if token.audience != wanted => rejected(format!(
                "token audiences [\"{}\"] is invalid for the target audiences [\"{wanted}\"]",
                token.audience
            )),
            Some(token) => {
                let mut extra = BTreeMap::new();
                for (name, value) in [("pod-name", &token.pod), ("node-name", &token.node)] {
                    if let Some(value) = value {
                        extra.insert(format!("authentication.kubernetes.io/{name}"), [value]);
                    }
                }
                json!({
                    "authenticated": true,
                    "audiences": [wanted],
                    "user": {
                        "username": format!(
                            "system:serviceaccount:{}", token.account.replace('/', ":")
                        ),
                        "extra": extra,
                    },
                })
            }
        };
        review["status"] = status;
        review
    }
}

/// The text of a token, whose signature is nobody's.
pub fn jwt(name: &str, token: &Token) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let expires = if token.expired { now } else { now + Duration::from_secs(3600) };
    let claims = json!({
        "jti": name,
        "sub": format!("system:serviceaccount:{}", token.account.replace('/', ":")),
        "aud": [token.audience],
        "exp": expires.as_secs(),
    });
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(json!({"alg": "RS256"})), part(claims), part(json!(name)))
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, shared) = (tls.clone(), shared.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request| {
                let shared = shared.clone();
                async move {
                    let (status, body) = shared.respond(request).await;
                    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
                    *response.status_mut() = status;
                    let json = header::HeaderValue::from_static("application/json");
                    response.headers_mut().insert(header::CONTENT_TYPE, json);
                    Ok::<_, Infallible>(response)
                }
            });
            // A client that goes is no matter.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn failure(status: StatusCode, reason: &str) -> (StatusCode, Value) {
    let body = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "reason": reason, "message": reason, "code": status.as_u16(),
    });
    (status, body)
}

/// TLS for `ip`, and the certificate that it is to be trusted by.
fn tls(ip: IpAddr) -> anyhow::Result<(TlsAcceptor, String)> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress(ip)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    Ok((TlsAcceptor::from(Arc::new(config)), certificate.pem()))
}
