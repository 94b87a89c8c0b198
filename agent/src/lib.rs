//! Sluice: one node agent for a sidecarless service mesh.
//!
//! The rooms, in the order a request walks through them:
//!
//! - [`capture`]: eBPF and netlink; turns a pod's `connect()` into an accepted socket.
//! - [`proxy`]: decides per connection who, where and how; owns no protocol.
//! - [`http`]: HTTP/1.1 and HTTP/2, request by request.
//! - [`tunnel`]: HBONE between nodes.
//! - [`workers`]: the threads that carry traffic, of which each pod has one.
//! - [`limits`]: budgets of connections, handshakes and memory, and each pod's part of them.
//! - [`identity`]: SPIFFE certificates and the TLS configurations made of them.
//! - [`mesh`]: the immutable [`mesh::Snapshot`] everything above reads.
//! - [`policy`]: who may ask what of a workload.
//! - [`explain`]: what would become of a connection or a request, and why.
//! - [`config`]: the sources that write a `Snapshot`.
//! - [`nri`]: news of pods from the container runtime, before their containers start.
//! - [`telemetry`]: spans and metrics on their way off the node.
//! - [`admin`]: health, statistics and status for people and probes.
//! - `listen`: places for whoever connects to the agent's servers or the CA's.
//! - [`node`]: puts the rooms together; start-up, enrolment, shutdown.
//! - `log`: how much reaches the log, whatever strangers do.
//! - [`essential`]: what the agent ends without.
//! - [`ca`]: the CA of a cluster, a program of its own.
//! - [`cli`]: flags and commands.

#![forbid(unsafe_code)]

pub mod admin;
pub mod ca;
pub mod capture;
mod causes;
pub mod cli;
pub mod config;
pub mod essential;
pub mod explain;
pub mod http;
pub mod identity;
pub mod jwt;
pub mod limits;
mod listen;
mod log;
pub mod mesh;
pub mod node;
pub mod nri;
pub mod policy;
pub mod proxy;
mod signals;
pub mod telemetry;
pub mod tunnel;
pub mod workers;
