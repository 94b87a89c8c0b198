//! Two nodes with an agent each, pods inside and outside the mesh, and servers in them.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use sluice_tests::{Agent, AgentOptions, Lab, Node, OtlpReceiver, Pod, PodOptions, Protocol};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::cpu;

/// What answers HTTP requests.
pub(crate) const HTTP: u16 = 8080;
/// What swallows bytes.
pub(crate) const SINK: u16 = 9000;

/// The body of every answer.
pub(crate) const BODY: &str = "ok";

/// The way traffic takes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Way {
    /// Across nodes, both pods outside the mesh.
    Without,
    /// Between two pods of one node, in the mesh.
    SameNode,
    /// Across nodes, in the mesh.
    AcrossNodes,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Without, Self::SameNode, Self::AcrossNodes];

    /// Those that lead through agents.
    pub(crate) const MESHED: [Self; 2] = [Self::SameNode, Self::AcrossNodes];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Without => "no mesh",
            Self::SameNode => "same node",
            Self::AcrossNodes => "across nodes",
        }
    }
}

/// Fields are dropped in order: servers, agents, pods, nodes.
pub(crate) struct World {
    _servers: JoinSet<()>,
    agents: [Agent; 2],
    _receiver: OtlpReceiver,
    client: Pod,
    near: Pod,
    far: Pod,
    client_outside: Pod,
    far_outside: Pod,
    _nodes: [Node; 2],
    _lab: Lab,
}

impl World {
    /// With the agents of this build, or of another one's `program`.
    pub(crate) async fn make(program: Option<&Path>) -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let outside = || PodOptions { meshed: false, ..PodOptions::default() };
        let (client, near, far) = (a.pod("client")?, a.pod("near")?, b.pod("far")?);
        let client_outside = a.pod_with("client-outside", outside())?;
        let far_outside = b.pod_with("far-outside", outside())?;
        let mesh = lab.mesh()?;
        for pod in [&client, &near, &far, &client_outside, &far_outside] {
            mesh.pod(pod)?;
        }
        let receiver = OtlpReceiver::start(&lab)?;
        // As users run it: one trace in a hundred is recorded.
        let options = || AgentOptions {
            program: program.map(Path::to_owned),
            otlp: Some((&receiver, Protocol::Grpc)),
            flags: ["--trace-sampling", "0.01", "--log", "warn"].map(String::from).to_vec(),
            ..AgentOptions::default()
        };
        let first = Agent::start(&a, &mesh, options());
        let second = Agent::start(&b, &mesh, options());
        let agents = <[Agent; 2]>::from(tokio::try_join!(first, second)?);
        let mut servers = JoinSet::new();
        for pod in [&near, &far, &far_outside] {
            servers.spawn(serve(pod.listen(HTTP)?, answer));
            servers.spawn(serve(pod.listen(SINK)?, swallow));
        }
        Ok(Self {
            _servers: servers,
            agents,
            _receiver: receiver,
            client,
            near,
            far,
            client_outside,
            far_outside,
            _nodes: [a, b],
            _lab: lab,
        })
    }

    /// A connection from the client on this way to a server's `port`.
    pub(crate) async fn connect(&self, way: Way, port: u16) -> io::Result<TcpStream> {
        let (client, server) = match way {
            Way::Without => (&self.client_outside, &self.far_outside),
            Way::SameNode => (&self.client, &self.near),
            Way::AcrossNodes => (&self.client, &self.far),
        };
        let stream = client.connect(SocketAddr::new(server.ip(), port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// CPU time both agents have used.
    pub(crate) fn agents_cpu(&self) -> anyhow::Result<Duration> {
        cpu::used(&self.agents.each_ref().map(|agent| agent.process().id()))
    }

    /// What both agents hold in memory, for people.
    pub(crate) fn memory(&self) -> anyhow::Result<String> {
        let [a, b] = self.agents.each_ref().map(|agent| agent.process().resident());
        Ok(format!("{} MiB and {} MiB", a? >> 20, b? >> 20))
    }
}

async fn serve<F>(listener: TcpListener, connection: fn(TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(async move {
            // The client hangs up when its round is over.
            let _ = connection(stream).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Answers each request, which has no body, with the same answer.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{BODY}", BODY.len());
    let mut request = Vec::with_capacity(1024);
    while stream.read_buf(&mut request).await? > 0 {
        if request.ends_with(b"\r\n\r\n") {
            stream.write_all(response.as_bytes()).await?;
            request.clear();
        }
    }
    Ok(())
}

/// Reads to the end, then says how much it was.
async fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0_u64;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.write_all(&total.to_be_bytes()).await,
            read => total += read as u64,
        }
    }
}
