//! The end-to-end tests, a subject a module, in one program: while some wait, others run, whatever
//! their subject.

mod annotation;
mod bad_input;
mod bugreport;
mod ca;
mod capture;
mod cgroups;
mod check;
mod coexistence;
mod dials;
mod enrolment;
mod evasion;
mod grpc;
mod host_network;
mod http;
mod identity;
mod kube_source;
mod lab;
mod leaks;
mod lifecycle;
mod load;
mod network_policy;
mod observing;
mod otlp;
mod peer_authentication;
mod probes;
mod rotel;
mod same_ports;
mod server_first;
mod service_addresses;
mod sockets;
mod spans;
mod strangers;
mod takeover;
mod tunnel;
mod upgrade;
