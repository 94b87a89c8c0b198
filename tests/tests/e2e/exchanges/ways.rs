//! The ways that an exchange can take, between pods of one lab.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use sluice_tests::{Agent, Mesh, Pod, PodOptions, Port, Service};

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// From a pod outside the mesh to another one.
    Direct,
    /// From a pod to another on its node.
    SameNode,
    /// From a pod to one on another node.
    Across,
    /// From a pod outside the mesh into it.
    Into,
    /// From a pod to one outside the mesh.
    Out,
    /// From a pod to one on another node, at a port of which no Service says anything.
    Undeclared,
}

impl Way {
    /// Those through the mesh.
    pub(super) const MESH: [Self; 5] =
        [Self::SameNode, Self::Across, Self::Into, Self::Out, Self::Undeclared];

    /// Whether a Service says that what is spoken is HTTP.
    pub(super) fn is_declared(self) -> bool {
        self != Self::Undeclared
    }

    /// What it is called in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::SameNode => "same node",
            Self::Across => "across nodes",
            Self::Into => "into the mesh",
            Self::Out => "out of the mesh",
            Self::Undeclared => "undeclared",
        }
    }
}

/// Where servers listen for the first row; every row has a port of its own, so that no connection
/// that was kept for one is used for another.
const PORTS: u16 = 10_000;
/// The same of ports that nothing is said of.
const UNDECLARED: u16 = 20_000;
/// The address of the Service in front of the pod outside the mesh.
const PLAIN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 3));

/// Clients and servers, in the mesh and outside it.
pub(super) struct Ground {
    mesh: Mesh,
    /// A server outside the mesh, on the other node.
    plain: Pod,
    _agents: [Agent; 2],
}

impl Ground {
    /// With two ports for so many rows: one that is declared to be HTTP, and one that nothing is said of.
    pub(super) async fn lay(rows: usize) -> anyhow::Result<Self> {
        let mesh = Mesh::new()?;
        let outside = PodOptions { meshed: false, ..PodOptions::default() };
        let plain = mesh.b.pod_with("plain", outside)?;
        mesh.config.pod(&plain)?;
        let names: Vec<_> = (0..rows).map(|row| format!("http-{row}")).collect();
        let ports = || {
            let ports = names.iter().zip(PORTS..);
            ports.map(|(name, port)| Port { name, port, target: port }).collect::<Vec<_>>()
        };
        for (server, ip) in [
            (&mesh.near, mesh.service_ips(&mesh.near)[0]),
            (&mesh.far, mesh.service_ips(&mesh.far)[0]),
            (&plain, PLAIN),
        ] {
            mesh.config.service(&Service {
                name: server.name(),
                namespace: server.namespace(),
                ips: vec![ip],
                ports: ports(),
                endpoints: vec![server],
            })?;
        }
        let _agents = mesh.start_agents(&[]).await?;
        Ok(Self { mesh, plain, _agents })
    }

    /// The client of a way, where it dials for a row, and the server.
    pub(super) fn ends(&self, way: Way, row: usize) -> (&Pod, SocketAddr, &Pod, u16) {
        let Mesh { client, near, far, outsider, .. } = &self.mesh;
        let (from, ip, server) = match way {
            Way::Direct => (outsider, self.plain.ip(), &self.plain),
            Way::SameNode => (client, self.mesh.service_ips(near)[0], near),
            Way::Across => (client, self.mesh.service_ips(far)[0], far),
            Way::Into => (outsider, far.ip(), far),
            Way::Out => (client, PLAIN, &self.plain),
            Way::Undeclared => (client, far.ip(), far),
        };
        let [declared, undeclared] = self.ports(row);
        let port = if way.is_declared() { declared } else { undeclared };
        (from, SocketAddr::new(ip, port), server, port)
    }

    /// Where servers listen for a row: where it is declared, and where not.
    pub(super) fn ports(&self, row: usize) -> [u16; 2] {
        let row = u16::try_from(row).expect("as many rows as a group of ports has room for");
        [PORTS, UNDECLARED].map(|first| first + row)
    }

    /// Every pod in which servers are asked.
    pub(super) fn servers(&self) -> [&Pod; 3] {
        [&self.mesh.near, &self.mesh.far, &self.plain]
    }

    /// For what tests write down; it goes with all of this.
    pub(super) fn directory(&self) -> &Path {
        self.mesh.lab.directory()
    }
}
