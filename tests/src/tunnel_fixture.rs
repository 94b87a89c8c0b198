//! Two nodes with opaque services, between whose pods anything can be sent.

use std::{future::Future, net::SocketAddr, time::Duration};

use anyhow::Context;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    agent::{Agent, AgentOptions},
    lab::Lab,
    mesh::{MeshConfig, Port, Service},
    mesh_fixture::PATIENCE,
    node::Node,
    otlp::{OtlpReceiver, Protocol},
    pod::{Pod, PodOptions},
};

/// The ports of every pod in a [`TunnelLab`] that are declared opaque.
pub const OPAQUE: [u16; 2] = [9000, 9001];

/// Two nodes: `client` and `near` on one, `far` on the other, and on each a pod that is not in
/// the mesh. No agent runs yet.
#[derive(Debug)]
pub struct TunnelLab {
    /// Receives the spans of both agents.
    pub receiver: OtlpReceiver,
    /// On node `a`.
    pub client: Pod,
    /// On node `a`.
    pub near: Pod,
    /// On node `b`.
    pub far: Pod,
    /// On node `a`, not in the mesh.
    pub outsider: Pod,
    /// On node `b`, not in the mesh.
    pub far_outsider: Pod,
    /// The client's node.
    pub a: Node,
    /// The other node.
    pub b: Node,
    /// What agents know, unless they are told otherwise.
    pub mesh: MeshConfig,
    /// What all of it stands on.
    pub lab: Lab,
}

impl TunnelLab {
    /// Makes and declares it.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses.
    pub fn new() -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let outside = || PodOptions { meshed: false, ..PodOptions::default() };
        let this = Self {
            receiver: OtlpReceiver::start(&lab)?,
            client: a.pod("client")?,
            near: a.pod("near")?,
            far: b.pod("far")?,
            outsider: a.pod_with("outsider", outside())?,
            far_outsider: b.pod_with("far-outsider", outside())?,
            a,
            b,
            mesh: lab.mesh()?,
            lab,
        };
        for pod in [&this.client, &this.near, &this.far, &this.outsider, &this.far_outsider] {
            this.mesh.pod(pod)?;
        }
        for (number, pod) in [(1, &this.near), (2, &this.far)] {
            let ports = OPAQUE.iter().zip(["tcp-one", "tcp-two"]);
            this.mesh.service(&Service {
                name: pod.name(),
                namespace: pod.namespace(),
                ips: vec![[10, 96, 0, number].into()],
                ports: ports.map(|(&port, name)| Port { name, port, target: port }).collect(),
                endpoints: vec![pod],
            })?;
        }
        Ok(this)
    }

    /// Starts an agent on each node with `flags`, the client's first.
    ///
    /// # Errors
    /// When one does not become ready.
    pub async fn start_agents(&self, flags: &[&str]) -> anyhow::Result<[Agent; 2]> {
        let a = self.start_agent(&self.a, &self.mesh, flags);
        let b = self.start_agent(&self.b, &self.mesh, flags);
        Ok(<[Agent; 2]>::from(tokio::try_join!(a, b)?))
    }

    /// Starts the agent of one node, which knows `mesh`.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_agent(
        &self,
        node: &Node,
        mesh: &MeshConfig,
        flags: &[&str],
    ) -> anyhow::Result<Agent> {
        let options = AgentOptions {
            otlp: Some((&self.receiver, Protocol::Grpc)),
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            // Tests wait for spans.
            environment: vec![("OTEL_BSP_SCHEDULE_DELAY".into(), "100".into())],
            ..AgentOptions::default()
        };
        Agent::start(node, mesh, options).await
    }

    /// Connects from the client and accepts at the other end.
    ///
    /// # Errors
    /// When either fails.
    pub async fn join(
        &self,
        server: &Pod,
        listener: &TcpListener,
    ) -> anyhow::Result<(TcpStream, TcpStream)> {
        let to = SocketAddr::new(server.ip(), listener.local_addr()?.port());
        let both = async { tokio::try_join!(self.client.connect(to), listener.accept()) };
        let (near, (far, _)) = within(PATIENCE, "connect and accept", both).await??;
        Ok((near, far))
    }
}

/// Awaits `work`, but not for ever.
///
/// # Errors
/// When it takes longer than `limit`.
pub async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = T>,
) -> anyhow::Result<T> {
    timeout(limit, work).await.with_context(|| format!("{what}: not done within {limit:?}"))
}
