//! Two nodes under policies, and ways to ask there.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use sluice_tests::{
    Agent, AgentOptions, Lab, Line, MeshConfig, Node, OtlpReceiver, PATIENCE, Pod, PodOptions,
    Protocol, Service, Talk, eventually, ports, refused,
};
use tokio::{task::JoinSet, time::timeout};
use tonic::transport::{Endpoint, Server, server::TcpIncoming};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
    server::health_reporter,
};

/// How long a client that gets no answer goes on waiting for one; those here get theirs at once.
pub(super) const SILENCE: Duration = Duration::from_secs(20);

/// Node `a` with clients and the server `near`, node `b` with `far`; both servers are of the app
/// `go-app`, behind a Service each with all [`ports`].
pub(super) struct Town {
    pub(super) agents: Vec<Agent>,
    pub(super) receiver: OtlpReceiver,
    pub(super) frontend: Pod,
    /// Of the namespace `istio-system`.
    pub(super) monitor: Pod,
    /// Somebody else of the mesh.
    pub(super) other: Pod,
    /// Somebody who is not of the mesh.
    pub(super) outsider: Pod,
    pub(super) near: Pod,
    pub(super) far: Pod,
    pub(super) a: Node,
    pub(super) b: Node,
    pub(super) config: MeshConfig,
    pub(super) _lab: Lab,
}

impl Town {
    /// With `policies` in force.
    pub(super) async fn under(policies: &str) -> anyhow::Result<Self> {
        Self::with_flags(policies, &[]).await
    }

    pub(super) async fn with_flags(policies: &str, flags: &[&str]) -> anyhow::Result<Self> {
        Self::without_agents(policies)?.start(flags).await
    }

    /// Until [`Self::start`].
    pub(super) fn without_agents(policies: &str) -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let app = || PodOptions { app: Some("go-app".into()), ..PodOptions::default() };
        let monitors = PodOptions { namespace: "istio-system".into(), ..PodOptions::default() };
        let outside = PodOptions { meshed: false, ..PodOptions::default() };
        let town = Self {
            agents: Vec::new(),
            receiver: OtlpReceiver::start(&lab)?,
            frontend: a.pod("frontend")?,
            monitor: a.pod_with("prometheus", monitors)?,
            other: a.pod("other")?,
            outsider: a.pod_with("outsider", outside)?,
            near: a.pod_with("near", app())?,
            far: b.pod_with("far", app())?,
            a,
            b,
            config: lab.mesh()?,
            _lab: lab,
        };
        let Self { frontend, monitor, other, outsider, near, far, config, .. } = &town;
        for pod in [frontend, monitor, other, outsider, near, far] {
            config.pod(pod)?;
        }
        for (server, last) in [(near, 1), (far, 2)] {
            let ips = vec![[10, 96, 0, last].into()];
            let (ports, endpoints) = (ports::ALL.to_vec(), vec![server]);
            let (name, namespace) = (server.name(), server.namespace());
            config.service(&Service { name, namespace, ips, ports, endpoints })?;
        }
        config.write("policies", policies)?;
        Ok(town)
    }

    pub(super) async fn start(self, flags: &[&str]) -> anyhow::Result<Self> {
        self.start_in(flags, &[]).await
    }

    /// The same with more in the environment of the agents.
    pub(super) async fn start_in(
        mut self,
        flags: &[&str],
        more: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let delay = ("OTEL_BSP_SCHEDULE_DELAY".to_owned(), "20".to_owned());
        let environment: Vec<_> = more.iter().cloned().chain([delay]).collect();
        let options = || AgentOptions {
            otlp: Some((&self.receiver, Protocol::Grpc)),
            flags: flags.iter().map(ToString::to_string).collect(),
            environment: environment.clone(),
            ..AgentOptions::default()
        };
        let a = Agent::start(&self.a, &self.config, options());
        let b = Agent::start(&self.b, &self.config, options());
        let (a, b) = tokio::try_join!(a, b)?;
        self.agents = vec![a, b];
        Ok(self)
    }

    pub(super) fn servers(&self) -> [&Pod; 2] {
        [&self.near, &self.far]
    }

    /// Puts other policies in force, on both nodes.
    pub(super) async fn change(&self, policies: &str) -> anyhow::Result<()> {
        let version = |node: &Node| -> anyhow::Result<Option<u64>> {
            Ok(Agent::status(node)?["configuration"]["version"].as_u64())
        };
        let nodes = [&self.a, &self.b];
        let before = [version(nodes[0])?, version(nodes[1])?];
        self.config.write("policies", policies)?;
        for (node, before) in nodes.into_iter().zip(before) {
            let is_newer = || async { Ok((version(node)? > before).then_some(())) };
            eventually("the policies are in force", is_newer).await?;
        }
        Ok(())
    }
}

/// The Service's address in front of a server.
pub(super) fn service(server: &Pod, port: sluice_tests::Port<'_>) -> SocketAddr {
    let last = if server.name() == "near" { 1 } else { 2 };
    SocketAddr::from(([10, 96, 0, last], port.port))
}

/// A policy of the namespace `default`.
pub(super) fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{namespace: default, name: {name}}}\nspec: {spec}\n"
    )
}

/// Answers HTTP of both versions with the target that it was asked for.
pub(super) fn serve(pod: &Pod, port: u16) -> anyhow::Result<JoinSet<()>> {
    let listener = pod.listen(port)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(async |request: Request<Incoming>| {
                let target = request.uri().path_and_query().map(ToString::to_string);
                let body = Full::new(Bytes::from(target.unwrap_or_default()));
                Ok::<_, Infallible>(Response::new(body))
            });
            connections.spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    Ok(tasks)
}

pub(super) async fn connect(client: &Pod, to: SocketAddr) -> anyhow::Result<Line> {
    let connected = timeout(PATIENCE, client.connect(to)).await?;
    Ok(Line::new(connected.with_context(|| format!("{} to {to}", client.name()))?))
}

/// Status and body of what is answered to the head of a request.
pub(super) async fn ask(client: &Pod, to: SocketAddr, head: &str) -> anyhow::Result<(u16, String)> {
    let mut line = connect(client, to).await?;
    ask_on(&mut line, head).await.with_context(|| format!("{} to {to}: {head}", client.name()))
}

pub(super) async fn ask_on(line: &mut Line, head: &str) -> anyhow::Result<(u16, String)> {
    line.say(format!("{head}\r\n\r\n")).await?;
    let head = line.hear("\r\n\r\n").await?.to_ascii_lowercase();
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let length = head.split_once("content-length: ").context("no length")?.1;
    let length = length.split("\r\n").next().unwrap_or_default().parse()?;
    let body = line.exactly(length).await?;
    Ok((status, String::from_utf8(body)?))
}

/// The same over HTTP/2.
pub(super) async fn ask_http2(
    client: &Pod,
    to: SocketAddr,
    method: &str,
    path: &str,
) -> anyhow::Result<(u16, String)> {
    let stream = TokioIo::new(connect(client, to).await?.into_stream());
    let handshake = http2::handshake(TokioExecutor::new(), stream);
    let (mut sender, connection) = timeout(PATIENCE, handshake).await??;
    let driving = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(format!("http://go-app{path}"));
    let request = request.version(Version::HTTP_2).body(Full::<Bytes>::default())?;
    let response = timeout(PATIENCE, sender.send_request(request)).await??;
    let status = response.status().as_u16();
    let body = timeout(PATIENCE, response.into_body().collect()).await??.to_bytes();
    driving.abort();
    Ok((status, String::from_utf8(body.to_vec())?))
}

/// What a server of gRPC's health service answers.
pub(super) async fn check_health(
    client: &Pod,
    to: SocketAddr,
) -> anyhow::Result<Result<(), tonic::Status>> {
    check_health_as(client, to, None).await
}

/// The same with a token.
pub(super) async fn check_health_as(
    client: &Pod,
    to: SocketAddr,
    token: Option<&str>,
) -> anyhow::Result<Result<(), tonic::Status>> {
    let mut stream = Some(TokioIo::new(connect(client, to).await?.into_stream()));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| io::Error::other("one connection is enough")) }
    });
    let endpoint = Endpoint::from_static("http://go-app:90").timeout(PATIENCE);
    let mut client = HealthClient::new(endpoint.connect_with_connector(connector).await?);
    let mut request = tonic::Request::new(HealthCheckRequest { service: "order".into() });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    }
    let asked = client.check(request).await;
    Ok(asked.map(drop))
}

pub(super) async fn serve_health(pod: &Pod, port: u16) -> anyhow::Result<JoinSet<()>> {
    let (reporter, service) = health_reporter();
    reporter.set_service_status("order", ServingStatus::Serving).await;
    let incoming = TcpIncoming::from(pod.listen(port)?);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let server = Server::builder().add_service(service).serve_with_incoming(incoming);
        server.await.expect("the gRPC server serves until it is dropped");
    });
    Ok(tasks)
}

/// The client is reset, and the server sees no connection.
pub(super) async fn is_reset(
    client: &Pod,
    server: &Pod,
    to: SocketAddr,
    target: u16,
) -> anyhow::Result<()> {
    let listener = server.listen(target)?;
    let told = refused(client, to, &listener, SILENCE).await?;
    let kind = told.map(|error| error.kind());
    ensure!(kind == Some(io::ErrorKind::ConnectionReset), "{} to {to}: {kind:?}", client.name());
    Ok(())
}

/// Bytes pass both ways.
pub(super) async fn talk(
    client: &Pod,
    server: &Pod,
    to: SocketAddr,
    target: u16,
) -> anyhow::Result<Talk> {
    Talk::start(client, to, &server.listen(target)?).await
}
