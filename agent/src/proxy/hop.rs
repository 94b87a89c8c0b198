//! Where a connection or request goes next, and how it gets there.

use std::{net::SocketAddr, sync::Arc};

use super::{LocalPod, Proxy};
use crate::mesh::{AppProtocol, Destination, Endpoint, Principal, Service, Snapshot, Workload};

/// One chosen endpoint.
#[derive(Clone)]
pub struct Hop {
    /// Pod address and port, or whatever address outside the mesh was dialled.
    pub address: SocketAddr,
    /// The pod there, where the mesh knows it.
    pub workload: Option<Arc<Workload>>,
    /// The Service that was dialled, or that the dialled pod address serves.
    pub service: Option<Arc<Service>>,
    /// How to get there.
    pub way: Way,
}

/// How an endpoint is reached.
#[derive(Clone)]
pub enum Way {
    /// An enrolled pod of this node: handed over in this process.
    SameNode(Arc<LocalPod>),
    /// A captured pod: through HBONE, to exactly this identity.
    Tunnel(Principal),
    /// Not in the mesh, or not captured yet and not STRICT, or with mutual TLS disabled: plaintext,
    /// from the pod's own address.
    Plain,
}

impl Way {
    /// Who must be at the other end of a connection on this way; `None` in plaintext.
    pub(super) fn peer(&self) -> Option<&Principal> {
        match self {
            Way::Tunnel(peer) => Some(peer),
            Way::SameNode(_) | Way::Plain => None,
        }
    }
}

/// The dialled Service port has no ready endpoint.
#[derive(Debug, thiserror::Error)]
#[error(
    "{service}:{port} has no ready endpoint (hint: `kubectl get endpointslices` for {service})"
)]
pub struct NoEndpoint {
    service: String,
    port: u16,
}

impl Hop {
    /// Picks an endpoint for `destination`, which is what the `address` means that `client`
    /// dialled.
    pub fn choose(
        proxy: &Proxy,
        client: &LocalPod,
        address: SocketAddr,
        destination: &Destination,
    ) -> Result<Self, NoEndpoint> {
        let (service, endpoint) = match destination {
            Destination::Service(service, port) => {
                let picked = proxy.affinity.pick(&client.uid, service, port, address.ip());
                let endpoint = picked.cloned().ok_or_else(|| NoEndpoint {
                    service: service.id.to_string(),
                    port: port.port,
                })?;
                (Some(service.clone()), endpoint)
            }
            Destination::Workload(workload, serving) => (
                serving.as_ref().map(|(service, _)| service.clone()),
                Endpoint { address, workload: Some(workload.clone()) },
            ),
            Destination::Unknown => (None, Endpoint { address, workload: None }),
        };
        let Endpoint { address, workload } = endpoint;
        let way = match &workload {
            Some(workload) if workload.meshed => proxy.way(client, address, workload),
            _ => Way::Plain,
        };
        Ok(Self { address, workload, service, way })
    }
}

impl Proxy {
    /// How `client` reaches `server`, of the mesh, at its `address`.
    fn way(&self, client: &LocalPod, address: SocketAddr, server: &Workload) -> Way {
        // An address may have gone from one pod to the next before the snapshot says so; a tunnel
        // finds out by the identity.
        let here = self.pods.of(server, address.ip());
        let captured = here.is_some() || server.captured;
        match (here, server.mtls.on(address.port()).mode) {
            (Some(server_here), _) if self.hands_over(client, server) => Way::SameNode(server_here),
            (_, mode) if mode.is_dialled_in_plaintext(captured) => Way::Plain,
            _ => Way::Tunnel(server.principal.clone()),
        }
    }

    /// Whether what `client` sends to `server`, both enrolled here, is handed over.
    fn hands_over(&self, client: &LocalPod, server: &Workload) -> bool {
        self.same_node.hands_over(&self.snapshots.load(), client, server)
    }
}

/// What the Service behind `destination`, which `address` is, declares its port to speak. Of a pod
/// that was dialled by its own address, what all its Services say.
pub(super) fn declared(
    snapshot: &Snapshot,
    address: SocketAddr,
    destination: &Destination,
) -> AppProtocol {
    match destination {
        Destination::Service(_, port) => port.protocol,
        Destination::Workload(..) => snapshot.spoken_at(address),
        Destination::Unknown => AppProtocol::Unknown,
    }
}

/// The Service that `destination` is, or that the dialled pod address serves.
pub(super) fn service_of(destination: &Destination) -> Option<Arc<Service>> {
    match destination {
        Destination::Service(service, _) | Destination::Workload(_, Some((service, _))) => {
            Some(service.clone())
        }
        Destination::Workload(_, None) | Destination::Unknown => None,
    }
}
