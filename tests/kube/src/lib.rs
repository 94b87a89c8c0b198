//! The bed: a Kubernetes cluster of two nodes and a control plane on this machine.
//!
//! Enters: the programs of Kubernetes and archives of images. Leaves: a cluster, reached through
//! [`Bed`], and a [`Tenant`] of it for each test. Every process of it lives in one pid, mount and network namespace, in which each node
//! has others of its own; when the first process dies, all of it dies. Mounts, links, firewall
//! rules, named namespaces and BPF pins exist only inside, so what the machine itself has of a
//! bed is one folder and one cgroup, both with fixed names: these are its record, and there can
//! be one bed at a time.

#![forbid(unsafe_code)]

mod bed;
mod cgroup;
mod component;
mod control;
mod load;
mod mesh;
mod node;
mod objects;
mod pki;
mod place;
mod policy_engine;
mod pose;
mod programs;
mod tenant;
mod wire;
mod workload;

pub use bed::{Bed, Paused};
pub use cgroup::{Group, join};
pub use control::run as run_control;
pub use load::Load;
pub use mesh::{Changed, Mesh, RELEASE, SYSTEM, Usage, text};
pub use node::run as run_node;
pub use place::{CONTROL, NODES, NodeName, image};
pub use policy_engine::PolicyEngine;
pub use pose::{Pose, health_asked_by};
pub use programs::Attached;
pub use tenant::{PATIENCE, Tenant};
pub use wire::{Wire, holds};
pub use workload::Workload;
