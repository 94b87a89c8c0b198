//! Two nodes with pods and servers in them, and whoever carries what the pods send.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use sluice_tests::{Lab, MeshConfig, Pod, Port, Service};
use tokio::task::JoinSet;

use crate::{
    carrier::{Carrier, Place},
    column::{Carriers, Way},
    dialler::Dialler,
    server::{self, Spoken},
    sink::Sink,
};

/// Clients, and servers across. All loads but one use the first of each; an agent lets a pod have no
/// more connections than are left for all others, so many idle ones take many pods.
pub(crate) const PAIRS: usize = 8;

/// A port of a Service, which names what is spoken.
fn ports() -> Vec<Port<'static>> {
    let port = |name, spoken: Spoken, opaque| {
        let target = spoken.port(opaque);
        Port { name, port: target, target }
    };
    vec![
        port("http", Spoken::Http, false),
        port("tcp-http", Spoken::Http, true),
        port("grpc", Spoken::Grpc, false),
        port("tcp-grpc", Spoken::Grpc, true),
    ]
}

/// Fields are dropped in order: servers, carriers, pods, the lab.
pub(crate) struct World {
    _servers: JoinSet<()>,
    carrier: Carrier,
    sink: Sink,
    clients: Vec<Arc<Pod>>,
    near: Pod,
    far: Vec<Pod>,
    lab: Lab,
}

impl World {
    /// With agents of this build, or of another one's `program`, if there are to be any.
    pub(crate) async fn make(carriers: Carriers, program: Option<&Path>) -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let client = |number| a.pod(&format!("client-{number}")).map(Arc::new);
        let clients = (0..PAIRS).map(client).collect::<anyhow::Result<Vec<_>>>()?;
        let near = a.pod("near")?;
        let far = (0..PAIRS).map(|number| b.pod(&format!("far-{number}")));
        let far = far.collect::<anyhow::Result<Vec<_>>>()?;
        let mesh = lab.mesh()?;
        clients.iter().try_for_each(|pod| mesh.pod(pod))?;
        declare(&mesh, &near, near_service())?;
        far.iter().enumerate().try_for_each(|(at, pod)| declare(&mesh, pod, far_service(at)))?;
        let sink = Sink::start(&lab)?;
        let mut servers = JoinSet::new();
        far.iter().chain([&near]).try_for_each(|pod| server::start(&mut servers, pod))?;
        let place = Place { mesh: &mesh, client: &clients[0], server: &far[0], sink: &sink };
        let carrier = Carrier::start(carriers, program, place, [a, b]).await?;
        Ok(Self { _servers: servers, carrier, sink, clients, near, far, lab })
    }

    /// From a client to its server, this way; `ahead` says how many sockets are made at once.
    pub(crate) fn dialler(&self, way: Way, spoken: Spoken, pair: usize, ahead: usize) -> Dialler {
        let service = if way.is_near() { near_service() } else { far_service(pair) };
        let to = match way.carriers() {
            Carriers::Nobody => SocketAddr::new(self.server(way, pair).ip(), spoken.port(false)),
            Carriers::Agents { .. } => SocketAddr::new(service, spoken.port(way.is_opaque())),
            Carriers::Envoys => crate::envoy::outbound(spoken),
        };
        Dialler::new(&self.clients[pair], to, ahead)
    }

    fn server(&self, way: Way, pair: usize) -> &Pod {
        if way.is_near() { &self.near } else { &self.far[pair] }
    }

    pub(crate) fn carriers(&self) -> &Carrier {
        &self.carrier
    }

    pub(crate) fn sink(&self) -> &Sink {
        &self.sink
    }

    /// The lab's name, which its namespaces' names begin with.
    pub(crate) fn lab(&self) -> &str {
        self.lab.name()
    }
}

fn declare(mesh: &MeshConfig, pod: &Pod, ip: IpAddr) -> anyhow::Result<()> {
    mesh.pod(pod)?;
    mesh.service(&Service {
        name: pod.name(),
        namespace: pod.namespace(),
        ips: vec![ip],
        ports: ports(),
        endpoints: vec![pod],
    })
}

fn near_service() -> IpAddr {
    IpAddr::from([10, 96, 0, 1])
}

fn far_service(pair: usize) -> IpAddr {
    IpAddr::from([10, 96, 1, u8::try_from(pair).expect("there are few pairs")])
}
