//! What the mesh looks like right now: workloads, services and who they are.
//!
//! Enters: the objects a source read ([`crate::config`]), as a [`Patch`]. Leaves: an immutable
//! [`Snapshot`] that shares with the one before what the patch does not speak of. Types here carry
//! the rules of the names they hold and know no sockets, no eBPF and no TLS.

mod claimed;
mod mtls;
mod patch;
mod principal;
mod root_namespace;
mod service;
mod snapshot;
mod store;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod workload;

pub use mtls::{MutualTls, MutualTlsMode, PortMutualTls};
pub use patch::Patch;
pub use principal::{InvalidPrincipal, Principal, TrustDomain};
pub use root_namespace::{InvalidNamespace, RootNamespace};
pub use service::{AppProtocol, Endpoint, Endpoints, Service, ServiceId, ServicePort};
pub use snapshot::{Destination, Snapshot};
pub use store::SnapshotStore;
pub use workload::{
    DATAPLANE_MODE, HBONE_PORT, Owner, PodUid, Policed, REDIRECTION, REDIRECTION_ENABLED, Workload,
};
