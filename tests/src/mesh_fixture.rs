//! A small mesh that most tests can start from, and ways to talk through it.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

use crate::{
    Agent, AgentOptions, Lab, MeshConfig, Node, OtlpReceiver, Pod, PodOptions, Port, Protocol,
    Service,
};

/// How long anything may take that should take no time. Much, since a virtual machine without
/// hardware support is ten times slower, and shares its processor with whatever else is built.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How soon a state is looked at again that reports no changes.
const AGAIN: Duration = Duration::from_millis(20);

/// Two nodes and a router. Node `a` has the pods `client`, `near` and `outsider`, node `b` has
/// `far`; all but the outsider belong to the mesh. In front of `near` and `far` is a service
/// each, of the same name: port [`Self::TCP`] is declared opaque, [`Self::HTTP`] HTTP.
///
/// No agent runs until [`Self::start_agents`], or [`Self::start_agent`] for one node alone.
#[derive(Debug)]
pub struct Mesh {
    /// Receives the spans of agents started here.
    pub receiver: OtlpReceiver,
    /// On node `a`, in the mesh.
    pub client: Pod,
    /// On node `a`, in the mesh, behind a service.
    pub near: Pod,
    /// On node `b`, in the mesh, behind a service.
    pub far: Pod,
    /// On node `a`, known to the mesh and not part of it.
    pub outsider: Pod,
    /// The first node.
    pub a: Node,
    /// The second node.
    pub b: Node,
    /// What the agents read.
    pub config: MeshConfig,
    /// What all of it stands on.
    pub lab: Lab,
}

impl Mesh {
    /// The services' port that is declared to be opaque; the pods listen on [`Self::TCP_TARGET`].
    pub const TCP: u16 = 70;
    /// Where the pods behind the services listen for [`Self::TCP`].
    pub const TCP_TARGET: u16 = 7000;
    /// The services' port that is declared to speak HTTP; see [`Self::HTTP_TARGET`].
    pub const HTTP: u16 = 80;
    /// Where the pods behind the services listen for [`Self::HTTP`].
    pub const HTTP_TARGET: u16 = 8080;

    /// Makes nodes and pods, and declares all of them.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn new() -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let mesh = Self {
            receiver: OtlpReceiver::start(&lab)?,
            client: a.pod("client")?,
            near: a.pod("near")?,
            far: b.pod("far")?,
            outsider: a
                .pod_with("outsider", PodOptions { meshed: false, ..PodOptions::default() })?,
            a,
            b,
            config: lab.mesh()?,
            lab,
        };
        for pod in [&mesh.client, &mesh.near, &mesh.far, &mesh.outsider] {
            mesh.config.pod(pod)?;
        }
        for server in [&mesh.near, &mesh.far] {
            mesh.config.service(&mesh.service(server))?;
        }
        Ok(mesh)
    }

    /// The service in front of `near` or `far`.
    pub fn service<'a>(&self, server: &'a Pod) -> Service<'a> {
        Service {
            name: server.name(),
            namespace: server.namespace(),
            ips: self.service_ips(server).to_vec(),
            ports: vec![
                Port { name: "tcp", port: Self::TCP, target: Self::TCP_TARGET },
                Port { name: "http", port: Self::HTTP, target: Self::HTTP_TARGET },
            ],
            endpoints: vec![server],
        }
    }

    /// The addresses of the service in front of `near` or `far`, IPv4 first.
    pub fn service_ips(&self, server: &Pod) -> [IpAddr; 2] {
        let number = if server.name() == self.near.name() { 1 } else { 2 };
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into());
        [IpAddr::from([10, 96, 0, number]), v6.into()]
    }

    /// Starts an agent on both nodes and waits until they are ready.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn start_agents(&self, flags: &[&str]) -> anyhow::Result<[Agent; 2]> {
        let (a, b) = (self.start_agent(&self.a, flags), self.start_agent(&self.b, flags));
        Ok(<[Agent; 2]>::from(tokio::try_join!(a, b)?))
    }

    /// Starts an agent on one node and waits until it is ready.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn start_agent(&self, node: &Node, flags: &[&str]) -> anyhow::Result<Agent> {
        Agent::start(node, &self.config, self.agent_options(flags)).await
    }

    /// The options agents are started with here: spans leave quickly, and `flags`.
    pub fn agent_options(&self, flags: &[&str]) -> AgentOptions<'_> {
        AgentOptions {
            otlp: Some((&self.receiver, Protocol::Grpc)),
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            environment: vec![("OTEL_BSP_SCHEDULE_DELAY".to_owned(), "100".to_owned())],
            ..AgentOptions::default()
        }
    }
}

/// One connection, held at both ends.
#[derive(Debug)]
pub struct Talk {
    /// The end that connected.
    pub client: TcpStream,
    /// The end that accepted.
    pub server: TcpStream,
}

impl Talk {
    /// Connects from `client` to `to`, accepts at `listener`, and sends bytes both ways.
    ///
    /// # Errors
    /// When any of it fails or takes longer than [`PATIENCE`].
    pub async fn start(
        client: &Pod,
        to: SocketAddr,
        listener: &TcpListener,
    ) -> anyhow::Result<Self> {
        let what = || format!("{} cannot talk to {to}", client.name());
        let connected = timeout(PATIENCE, client.connect(to)).await.with_context(what)?;
        let client = connected.context("connect").with_context(what)?;
        Self::over(client, listener).await.with_context(what)
    }

    /// Accepts at `listener` what `client` connected, and sends bytes both ways.
    ///
    /// # Errors
    /// When any of it fails or takes longer than [`PATIENCE`].
    pub async fn over(client: TcpStream, listener: &TcpListener) -> anyhow::Result<Self> {
        let accepted = timeout(PATIENCE, listener.accept()).await.context("accept")?;
        let (server, _) = accepted.context("accept")?;
        let mut talk = Self { client, server };
        talk.exchange().await?;
        Ok(talk)
    }

    /// Sends bytes both ways.
    ///
    /// # Errors
    /// When they do not arrive within [`PATIENCE`].
    pub async fn exchange(&mut self) -> anyhow::Result<()> {
        pass(&mut self.client, &mut self.server, "from the client").await?;
        pass(&mut self.server, &mut self.client, "from the server").await
    }

    /// Whom the server's application sees.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn seen_client(&self) -> io::Result<SocketAddr> {
        self.server.peer_addr().map(canonical)
    }

    /// Whom the client's application sees.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn seen_server(&self) -> io::Result<SocketAddr> {
        self.client.peer_addr().map(canonical)
    }
}

async fn pass(from: &mut TcpStream, to: &mut TcpStream, text: &str) -> anyhow::Result<()> {
    let mut received = vec![0; text.len()];
    let pass = async {
        from.write_all(text.as_bytes()).await?;
        to.read_exact(&mut received).await
    };
    let what = || format!("the bytes `{text}`");
    timeout(PATIENCE, pass).await.with_context(what)?.with_context(what)?;
    ensure!(received == text.as_bytes(), "received {received:?} instead of `{text}`");
    Ok(())
}

/// IPv4 over a dual-stack socket, as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Makes sure that `client` gets through to nobody at `to`: its connection is refused or reset
/// or stays unanswered for `at_least`, and the server at `listener` sees none at all. Returns
/// what the client was told, if it was told anything.
///
/// # Errors
/// When the client is answered, or the server sees a connection.
pub async fn refused(
    client: &Pod,
    to: SocketAddr,
    listener: &TcpListener,
    at_least: Duration,
) -> anyhow::Result<Option<io::Error>> {
    let asked = async {
        let mut stream = client.connect(to).await?;
        stream.write_all(b"let me in").await?;
        stream.read_u8().await
    };
    tokio::select! {
        answer = timeout(at_least, asked) => match answer {
            Ok(Ok(_)) => bail!("{} was answered at {to}", client.name()),
            Ok(Err(error)) => {
                let seen = timeout(Duration::from_millis(100), listener.accept()).await;
                ensure!(seen.is_err(), "a server saw a connection: {seen:?}");
                Ok(Some(error))
            }
            Err(_) => Ok(None),
        },
        seen = listener.accept() => bail!("a server saw a connection: {seen:?}"),
    }
}

/// How many of capture's `event` the agent of a node has counted.
///
/// # Errors
/// When no agent answers.
pub fn capture_events(node: &Node, event: &str) -> anyhow::Result<u64> {
    Agent::counter(node, &format!("sluice_capture_events_total{{event=\"{event}\"}}"))
}

/// Whether the node's agent has captured the pod.
///
/// # Errors
/// When no agent answers.
pub fn is_captured(node: &Node, pod: &Pod) -> anyhow::Result<bool> {
    let status = Agent::status(node)?;
    let pods = status["pods"].as_array().into_iter().flatten();
    let name = format!("{}/{}", pod.namespace(), pod.name());
    let mut ours = pods.filter(|pod| pod["name"] == name.as_str());
    Ok(ours.any(|pod| pod["error"].is_null()))
}

/// Waits until the node's agent has captured the pod, or has let it go.
///
/// # Errors
/// When that is not so within [`PATIENCE`].
pub async fn wait_until_captured(node: &Node, pod: &Pod, wanted: bool) -> anyhow::Result<()> {
    let what = format!("{} is captured: {wanted}", pod.name());
    eventually(&what, || async { Ok((is_captured(node, pod)? == wanted).then_some(())) }).await
}

/// Looks again and again until `look` finds something; for states that nothing reports.
///
/// # Errors
/// When that is not so within [`PATIENCE`], or `look` fails.
pub async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(AGAIN).await;
    }
}
