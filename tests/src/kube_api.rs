//! A stand-in for a Kubernetes API server: lists and watches over real HTTP, and what can happen
//! to them.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    io,
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{lab::Lab, mesh_fixture::PATIENCE, netns::Netns};

/// Where API servers listen.
const PORT: u16 = 6443;
/// How soon a port that is still taken is asked for again.
const AGAIN: Duration = Duration::from_millis(10);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A kind of objects.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[expect(missing_docs, reason = "each is the kind of that name")]
pub enum KubeKind {
    Namespace,
    Pod,
    Service,
    EndpointSlice,
    PeerAuthentication,
    NetworkPolicy,
    AuthorizationPolicy,
    RequestAuthentication,
    ConfigMap,
}

/// An API server at the lab's router. It answers from [`Self::start`] to [`Self::stop`], and
/// remembers its objects in between.
#[derive(Debug)]
pub struct KubeApi {
    netns: Netns,
    kubeconfig: PathBuf,
    cluster: Arc<Cluster>,
    serving: Option<JoinSet<()>>,
}

#[derive(Debug)]
struct Cluster {
    state: Mutex<State>,
    /// Wakes watches with each version.
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    /// By kind, namespace and name.
    objects: BTreeMap<(KubeKind, String, String), Value>,
    /// Every change, as watches tell it, with its version.
    history: Vec<(u64, KubeKind, Value)>,
    /// Watches cannot go on from before this version.
    forgotten: u64,
    version: u64,
    streams_lists: bool,
    /// Kinds that the server does not have.
    not_installed: Vec<KubeKind>,
    /// Nobody may change anything.
    refuses_patches: bool,
    /// Groups of kinds that it has beside those of [`KubeKind`].
    more_groups: Vec<&'static str>,
    /// Paths and queries asked for.
    asked: Vec<String>,
}

impl KubeKind {
    const ALL: [Self; 9] = [
        Self::Namespace,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::PeerAuthentication,
        Self::NetworkPolicy,
        Self::AuthorizationPolicy,
        Self::RequestAuthentication,
        Self::ConfigMap,
    ];

    fn path(self) -> &'static str {
        match self {
            Self::Namespace => "/api/v1/namespaces",
            Self::Pod => "/api/v1/pods",
            Self::Service => "/api/v1/services",
            Self::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
            Self::PeerAuthentication => "/apis/security.istio.io/v1/peerauthentications",
            Self::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
            Self::AuthorizationPolicy => "/apis/security.istio.io/v1/authorizationpolicies",
            Self::RequestAuthentication => "/apis/security.istio.io/v1/requestauthentications",
            // Only those of the root namespace are asked for.
            Self::ConfigMap => "/api/v1/namespaces/istio-system/configmaps",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::ConfigMap => "ConfigMap",
        }
    }

    fn version(self) -> &'static str {
        match self {
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::PeerAuthentication | Self::AuthorizationPolicy | Self::RequestAuthentication => {
                "security.istio.io/v1"
            }
            Self::NetworkPolicy => "networking.k8s.io/v1",
            _ => "v1",
        }
    }
}

impl KubeApi {
    /// Makes one without objects that does not answer yet.
    ///
    /// # Errors
    /// When the kubeconfig cannot be written.
    pub fn new(lab: &Lab) -> anyhow::Result<Self> {
        let kubeconfig = lab.directory().join("kubeconfig.yaml");
        let server = SocketAddr::new(lab.fabric_ips()[0], PORT);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             clusters: [{{name: lab, cluster: {{server: \"http://{server}\"}}}}]\n\
             users: [{{name: agent, user: {{}}}}]\n\
             contexts: [{{name: lab, context: {{cluster: lab, user: agent}}}}]\n"
        );
        std::fs::write(&kubeconfig, text).context("could not write the kubeconfig")?;
        let state = State {
            objects: BTreeMap::new(),
            history: Vec::new(),
            forgotten: 0,
            version: 1,
            streams_lists: true,
            not_installed: Vec::new(),
            refuses_patches: false,
            more_groups: Vec::new(),
            asked: Vec::new(),
        };
        let cluster = Cluster { state: Mutex::new(state), version: watch::Sender::new(1) };
        let netns = lab.fabric().clone();
        Ok(Self { netns, kubeconfig, cluster: Arc::new(cluster), serving: None })
    }

    /// How agents find it.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone()
    }

    /// Begins to answer.
    ///
    /// # Errors
    /// When somebody else listens there.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let listener = self.listen()?;
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, self.cluster.clone()));
        self.serving = Some(serving);
        Ok(())
    }

    /// A listener that was just dropped lives on for a moment in processes that another test is
    /// starting: between fork and exec they have a copy of everything.
    fn listen(&self) -> anyhow::Result<TcpListener> {
        let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT).into();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let socket = self.netns.run(|| Socket::new(Domain::IPV6, Type::STREAM, None))??;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            match socket.bind(&address).and_then(|()| socket.listen(64)) {
                Ok(()) => return Ok(TcpListener::from_std(socket.into())?),
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline =>
                {
                    thread::sleep(AGAIN);
                }
                Err(error) => return Err(error).context("could not listen as an API server"),
            }
        }
    }

    /// Goes away, with every connection, in the middle of whatever was being said.
    pub async fn stop(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            serving.shutdown().await;
        }
    }

    /// Breaks every connection and goes on.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn disconnect(&mut self) -> anyhow::Result<()> {
        self.stop().await;
        self.start()
    }

    /// Creates or replaces an object.
    pub fn apply(&self, kind: KubeKind, mut object: Value) {
        let mut state = self.cluster.state();
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_owned();
        let key = (kind, text("namespace"), text("name"));
        state.version += 1;
        object["apiVersion"] = kind.version().into();
        object["kind"] = kind.name().into();
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let new = state.objects.insert(key, object.clone()).is_none();
        let event = if new { "ADDED" } else { "MODIFIED" };
        self.cluster.happened(&mut state, kind, event, object);
    }

    /// Deletes an object, if it is there.
    pub fn delete(&self, kind: KubeKind, namespace: &str, name: &str) {
        let mut state = self.cluster.state();
        let key = (kind, namespace.to_owned(), name.to_owned());
        if let Some(mut object) = state.objects.remove(&key) {
            state.version += 1;
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            self.cluster.happened(&mut state, kind, "DELETED", object);
        }
    }

    /// Forgets every change so far: watches have to list again.
    pub fn forget(&self) {
        let mut state = self.cluster.state();
        state.history.clear();
        state.version += 1;
        state.forgotten = state.version;
    }

    /// Refuses to stream lists, as servers before Kubernetes 1.32 do.
    pub fn refuse_streamed_lists(&self) {
        self.cluster.state().streams_lists = false;
    }

    /// Takes a kind away that need not be there, as before its definition is installed.
    pub fn uninstall(&self, kind: KubeKind) {
        self.cluster.state().not_installed.push(kind);
    }

    /// Installs every kind that was taken away.
    pub fn install_all(&self) {
        self.cluster.state().not_installed.clear();
    }

    /// Lets nobody change anything, or lets everybody again.
    pub fn refuse_patches(&self, refuse: bool) {
        self.cluster.state().refuses_patches = refuse;
    }

    /// An object as it is now.
    pub fn object(&self, kind: KubeKind, namespace: &str, name: &str) -> Option<Value> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        self.cluster.state().objects.get(&key).cloned()
    }

    /// Has a group of kinds of which nobody lists any here.
    pub fn install_group(&self, group: &'static str) {
        self.cluster.state().more_groups.push(group);
    }

    /// The requests so far that contain `text`.
    pub fn asked(&self, text: &str) -> usize {
        self.cluster.state().asked.iter().filter(|asked| asked.contains(text)).count()
    }
}

impl Cluster {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a pod by a merge patch, where it is the one that is meant.
    fn patch(&self, path: &str, patch: &Value) -> Response<Body> {
        let mut state = self.state();
        if state.refuses_patches {
            return failure(403, "Forbidden");
        }
        let parts: Vec<_> = path.split('/').collect();
        let ["", "api", "v1", "namespaces", namespace, "pods", name] = parts[..] else {
            return failure(404, "NotFound");
        };
        let key = (KubeKind::Pod, namespace.to_owned(), name.to_owned());
        let Some(mut object) = state.objects.get(&key).cloned() else {
            return failure(404, "NotFound");
        };
        let uid = &patch["metadata"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return failure(409, "Conflict");
        }
        merge(&mut object, patch);
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.objects.insert(key, object.clone());
        self.happened(&mut state, KubeKind::Pod, "MODIFIED", object.clone());
        Response::new(Full::from(object.to_string()).boxed_unsync())
    }

    fn happened(&self, state: &mut State, kind: KubeKind, event: &str, object: Value) {
        let version = state.version;
        state.history.push((version, kind, json!({"type": event, "object": object})));
        self.version.send_replace(version);
    }
}

async fn serve(listener: TcpListener, cluster: Arc<Cluster>) {
    // Connections end with this task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let cluster = cluster.clone();
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let cluster = cluster.clone();
                async move { Ok::<_, Infallible>(respond(request, &cluster).await) }
            });
            // A connection that breaks is its client's matter.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn respond(request: Request<Incoming>, cluster: &Arc<Cluster>) -> Response<Body> {
    if request.method() != Method::PATCH {
        return answer(&request, cluster);
    }
    let path = request.uri().path().to_owned();
    let Ok(body) = request.into_body().collect().await else { return failure(400, "BadRequest") };
    let Ok(patch) = serde_json::from_slice(&body.to_bytes()) else {
        return failure(400, "BadRequest");
    };
    cluster.state().asked.push(format!("PATCH {path}"));
    cluster.patch(&path, &patch)
}

fn answer(request: &Request<Incoming>, cluster: &Arc<Cluster>) -> Response<Body> {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let query: BTreeMap<&str, &str> =
        query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let mut state = cluster.state();
    state.asked.push(request.uri().to_string());
    if path == "/apis" {
        return groups(&state);
    }
    let kind = KubeKind::ALL.into_iter().find(|kind| kind.path() == path);
    let Some(kind) = kind.filter(|kind| !state.not_installed.contains(kind)) else {
        return failure(404, "NotFound");
    };
    if !query.contains_key("watch") {
        return list(&state, kind, &query);
    }
    let streamed = query.contains_key("sendInitialEvents");
    if streamed && !state.streams_lists {
        return failure(422, "Invalid");
    }
    let mut first = VecDeque::new();
    let mut seen = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
    if streamed {
        seen = state.version;
        let objects = state.objects.iter().filter(|((of, ..), _)| *of == kind);
        first.extend(objects.map(|(_, object)| json!({"type": "ADDED", "object": object})));
        first.push_back(json!({"type": "BOOKMARK", "object": {
            "apiVersion": kind.version(), "kind": kind.name(),
            "metadata": {"resourceVersion": seen.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"}}}}));
    } else if seen < state.forgotten {
        first.push_back(json!({"type": "ERROR", "object": status(410, "Expired")}));
    }
    let following = Following { cluster: cluster.clone(), kind, seen, first };
    let events = stream::unfold(following, |mut following| async {
        let event = following.next().await;
        let line = Bytes::from(format!("{event}\n"));
        Some((Ok(Frame::data(line)), following))
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(events.boxed())))
}

/// A watch under way.
struct Following {
    cluster: Arc<Cluster>,
    kind: KubeKind,
    seen: u64,
    first: VecDeque<Value>,
}

impl Following {
    async fn next(&mut self) -> Value {
        let mut versions = self.cluster.version.subscribe();
        loop {
            if let Some(event) = self.first.pop_front() {
                return event;
            }
            versions.mark_unchanged();
            let next = {
                let state = self.cluster.state();
                let first = state.history.partition_point(|(version, ..)| *version <= self.seen);
                state.history[first..].iter().find(|(_, kind, _)| *kind == self.kind).cloned()
            };
            if let Some((version, _, event)) = next {
                self.seen = version;
                return event;
            }
            // The sender lives in the cluster that `self` holds.
            let _ = versions.changed().await;
        }
    }
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (field, value) in patch {
        if value.is_null() {
            into.as_object_mut().expect("it was made one").remove(field);
        } else {
            merge(&mut into[field], value);
        }
    }
}

/// The groups of kinds that the server has.
fn groups(state: &State) -> Response<Body> {
    let installed = KubeKind::ALL.into_iter().filter(|kind| !state.not_installed.contains(kind));
    let installed = installed.filter_map(|kind| Some(kind.version().split_once('/')?.0));
    let named = installed.chain(state.more_groups.iter().copied()).map(|group| {
        let version = json!({"groupVersion": format!("{group}/v1"), "version": "v1"});
        json!({"name": group, "versions": [version], "preferredVersion": version})
    });
    let list = json!({
        "apiVersion": "v1", "kind": "APIGroupList", "groups": named.collect::<Vec<_>>(),
    });
    Response::new(Full::from(list.to_string()).boxed_unsync())
}

/// One page of a list.
fn list(state: &State, kind: KubeKind, query: &BTreeMap<&str, &str>) -> Response<Body> {
    let number = |name: &str| query.get(name).and_then(|text| text.parse::<usize>().ok());
    let (skip, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX));
    let all: Vec<_> = state
        .objects
        .iter()
        .filter(|((of, ..), _)| *of == kind)
        .map(|(_, object)| object)
        .collect();
    let page: Vec<_> = all.iter().skip(skip).take(limit).collect();
    let next = skip + page.len();
    let rest = if next < all.len() { next.to_string() } else { String::new() };
    let list = json!({
        "apiVersion": kind.version(), "kind": format!("{}List", kind.name()),
        "metadata": {"resourceVersion": state.version.to_string(), "continue": rest},
        "items": page,
    });
    Response::new(Full::from(list.to_string()).boxed_unsync())
}

fn failure(code: u16, reason: &str) -> Response<Body> {
    let mut response = Response::new(Full::from(status(code, reason).to_string()).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).expect("a status of HTTP");
    response
}

fn status(code: u16, reason: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code})
}
