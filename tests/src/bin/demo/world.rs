//! The two nodes, what runs on them, and how the mesh knows it.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::Context;
use sluice_tests::{
    Agent, AgentOptions, Lab, MeshConfig, Node, OtlpReceiver, Pod, PodOptions, Port, Process,
    Protocol, Service, sample_program,
};

/// How long a program of the application may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the application's HTTP services listen on.
const HTTP: u16 = 8080;
/// What the echo service listens on.
const ECHO: u16 = 9000;

/// Everything the demo stands on. Fields are dropped in order: processes, pods, nodes.
pub(crate) struct World {
    _processes: Vec<Process>,
    pub(crate) receiver: OtlpReceiver,
    pub(crate) client: Pod,
    pub(crate) frontend: Pod,
    pub(crate) user: Pod,
    /// On the frontend's node.
    pub(crate) order_near: Pod,
    /// On the other node.
    pub(crate) order_far: Pod,
    pub(crate) echo: Pod,
    pub(crate) a: Node,
    pub(crate) b: Node,
    mesh: MeshConfig,
    pub(crate) lab: Lab,
}

impl World {
    pub(crate) async fn make() -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let receiver = OtlpReceiver::start(&lab)?;
        let replica = || PodOptions { app: Some("order-service".into()), ..PodOptions::default() };
        let mut world = Self {
            _processes: Vec::new(),
            receiver,
            client: a.pod("client")?,
            frontend: a.pod("frontend")?,
            user: b.pod("user-service")?,
            order_near: a.pod_with("order-near", replica())?,
            order_far: b.pod_with("order-far", replica())?,
            echo: b.pod("echo")?,
            a,
            b,
            mesh: lab.mesh()?,
            lab,
        };
        world.declare()?;
        world._processes = world.start_application().await?;
        Ok(world)
    }

    /// Writes down pods and services for the agents.
    fn declare(&self) -> anyhow::Result<()> {
        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n  labels: \
                         {istio.io/dataplane-mode: ambient}\n";
        self.mesh.write("namespace-default", namespace)?;
        self.pods().into_iter().try_for_each(|pod| self.mesh.pod(pod))?;
        let http = Port { name: "http", port: HTTP, target: HTTP };
        let tcp = Port { name: "tcp-echo", port: ECHO, target: ECHO };
        let services = [
            ("frontend", self.frontend_ip(), http, vec![&self.frontend]),
            ("user-service", service_ip(2), http, vec![&self.user]),
            ("order-service", service_ip(3), http, vec![&self.order_near, &self.order_far]),
            ("echo", service_ip(4), tcp, vec![&self.echo]),
        ];
        services.into_iter().try_for_each(|(name, ip, port, endpoints)| {
            let (ips, ports) = (vec![ip], vec![port]);
            self.mesh.service(&Service { name, namespace: "default", ips, ports, endpoints })
        })
    }

    async fn start_application(&self) -> anyhow::Result<Vec<Process>> {
        let url = |ip| format!("http://{}", SocketAddr::new(ip, HTTP));
        let (user, order) = (url(service_ip(2)), url(service_ip(3)));
        let programs = [
            (&self.user, vec!["user"]),
            (&self.order_near, vec!["order", "--name", "order-near"]),
            (&self.order_far, vec!["order", "--name", "order-far"]),
            (&self.echo, vec!["echo"]),
            (&self.frontend, vec!["frontend", "--user-url", &user, "--order-url", &order]),
        ];
        let mut processes = Vec::new();
        for (pod, arguments) in programs {
            let process = pod.spawn(arguments[0], self.program(pod, &arguments)?)?;
            let ready = process.output().line(PATIENCE, |line| line.contains("listening on"));
            ready.await.with_context(|| format!("{} does not start", pod.name()))?;
            processes.push(process);
        }
        Ok(processes)
    }

    /// A command of the sample application, which records spans of its own as `pod`'s app.
    pub(crate) fn program(&self, pod: &Pod, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(sample_program()?);
        command.args(arguments);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", self.receiver.endpoint(Protocol::Grpc));
        command.env("OTEL_SERVICE_NAME", pod.app());
        Ok(command)
    }

    pub(crate) async fn start_agents(&self) -> anyhow::Result<[Agent; 2]> {
        // One exports over gRPC, the other over HTTP: both must work.
        let options = |protocol| AgentOptions {
            otlp: Some((&self.receiver, protocol)),
            ..AgentOptions::default()
        };
        let a = Agent::start(&self.a, &self.mesh, options(Protocol::Grpc));
        let b = Agent::start(&self.b, &self.mesh, options(Protocol::Http));
        Ok(<[Agent; 2]>::from(tokio::try_join!(a, b)?))
    }

    pub(crate) fn frontend_ip(&self) -> IpAddr {
        service_ip(1)
    }

    /// Where orders are placed.
    pub(crate) fn order_url(&self) -> String {
        format!("http://{}/order", SocketAddr::new(self.frontend_ip(), HTTP))
    }

    pub(crate) fn echo_service(&self) -> SocketAddr {
        SocketAddr::new(service_ip(4), ECHO)
    }

    pub(crate) fn user_pod(&self) -> SocketAddr {
        SocketAddr::new(self.user.ip(), HTTP)
    }

    pub(crate) fn echo_pod(&self) -> SocketAddr {
        SocketAddr::new(self.echo.ip(), ECHO)
    }

    pub(crate) fn nodes(&self) -> [&Node; 2] {
        [&self.a, &self.b]
    }

    pub(crate) fn pods(&self) -> [&Pod; 6] {
        [&self.client, &self.frontend, &self.user, &self.order_near, &self.order_far, &self.echo]
    }

    /// Which pod is where.
    pub(crate) fn describe(&self) -> String {
        let of = |node: &Node| {
            let pods = self.pods().into_iter().filter(|pod| pod.node() == node.name());
            let pods: Vec<_> = pods.map(Pod::name).collect();
            format!("{} has {}", node.name(), pods.join(", "))
        };
        self.nodes().map(of).join("; ")
    }
}

fn service_ip(number: u8) -> IpAddr {
    IpAddr::from([10, 96, 0, number])
}
