//! What the mesh looks like right now: workloads, services and who they are.
//!
//! Enters: the objects a source read ([`crate::config`]). Leaves: an immutable
//! [`Snapshot`], swapped whole. Types here carry the rules of the names they hold and
//! know no sockets, no eBPF and no TLS.

mod mtls;
mod principal;
mod root_namespace;
mod service;
mod snapshot;
mod store;
mod workload;

pub use mtls::{MutualTls, MutualTlsMode, PortMutualTls};
pub use principal::{InvalidPrincipal, Principal, TrustDomain};
pub use root_namespace::{InvalidNamespace, RootNamespace};
pub use service::{AppProtocol, Endpoint, Service, ServicePort};
pub use snapshot::{Destination, Snapshot, SnapshotBuilder};
pub use store::SnapshotStore;
pub use workload::{
    DATAPLANE_MODE, HBONE_PORT, Owner, PodUid, Policed, REDIRECTION, REDIRECTION_ENABLED, Workload,
};
