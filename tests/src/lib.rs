//! Nodes and pods made of network namespaces, and what a test needs around them.
//!
//! A [`Lab`] has [`Node`]s, joined by a router, and each node has [`Pod`]s: a network namespace
//! and a cgroup each, IPv4 and IPv6. On a node an [`Agent`] runs; what it knows of the mesh is
//! [`MeshConfig`]; what it tells of the traffic arrives at an [`OtlpReceiver`]. Nothing touches
//! the machine's own network, and whatever a killed run leaves behind, the next lab removes.
//! Used by the end-to-end tests and the demo; needs root.

mod agent;
mod api_server;
mod ask;
mod bpffs;
pub mod bpftool;
mod ca_fixture;
mod cgroup;
mod cgroup_layout;
mod cgroup_program;
pub mod cgroup_tree;
mod firewall;
mod footprint;
mod hbone_client;
mod host_pod;
mod http_fixture;
mod kube_api;
mod kube_objects;
mod lab;
mod link;
mod mesh;
mod mesh_fixture;
mod netlink;
mod netns;
mod netns_state;
mod node;
mod otlp;
mod output;
mod pod;
mod process;
mod programs;
mod record;
mod socket_option;
mod sockets;
mod span;
mod tcpdump;
mod token_issuer;
mod trace_tree;
mod tunnel_fixture;

pub use agent::{Agent, AgentOptions};
pub use api_server::{ApiServer, Token, jwt};
pub use ask::{Answer, ask};
pub use ca_fixture::{Ca, CaConnection, Cluster, agent_token, ask_ca, expect_refusal, idle_at};
pub use cgroup::Cgroup;
pub use cgroup_layout::CgroupLayout;
pub use cgroup_program::{Attachment, CgroupProgram, OnConnect};
pub use firewall::firewall_rules;
pub use footprint::Footprint;
pub use hbone_client::{HBONE, HboneClient, HboneSessions, TestCa, TestCertificate};
pub use host_pod::{HostPod, HostProcess};
pub use http_fixture::{Line, Shop, accept, ports};
pub use kube_api::{KubeApi, KubeKind};
pub use kube_objects::KubePod;
pub use lab::Lab;
pub use mesh::{MeshConfig, Port, Service};
pub use mesh_fixture::{
    Mesh, PATIENCE, Talk, capture_events, eventually, is_captured, refused, wait_until_captured,
};
pub use netns::Netns;
pub use netns_state::NetnsState;
pub use node::Node;
pub use otlp::{OtlpReceiver, Protocol};
pub use output::Output;
pub use pod::{Pod, PodOptions};
pub use process::{Finished, Process};
pub use programs::{PublicProgram, agent_program, sample_program};
pub use record::Registry;
pub use socket_option::{fast_open_connect, fast_open_listener};
pub use sockets::serve as serve_sockets;
pub use span::{Kind, Span};
pub use tcpdump::{Recording, Tcpdump};
pub use token_issuer::{KeyServer, TokenIssuer};
pub use trace_tree::trace_tree;
pub use tunnel_fixture::{OPAQUE, TunnelLab, within};
