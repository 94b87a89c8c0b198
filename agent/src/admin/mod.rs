//! What people, probes and scrapers ask the agent.
//!
//! Enters: plain HTTP on three addresses. Leaves: health (15021), metrics (15020) and status
//! (15000, loopback only). It reads what other rooms publish and changes nothing. Whoever asks, and
//! however many: a server holds a bounded number of connections and writes its answers in pieces,
//! metrics and status on a thread of their own.

mod answer;
mod readiness;
mod recent_log;
mod server;
mod status;

/// Where the status server explains: what follows is a question, as JSON in URL-safe base64.
pub const EXPLAIN: &str = "/explain/";
/// Where it lists what is in force for pods; as the former.
pub const POLICIES: &str = "/policies/";

pub use answer::{Answer, Body, json, openmetrics, text};
pub use readiness::Readiness;
pub use recent_log::RecentLog;
pub use server::{AdminError, own_thread, serve};
pub use status::{Certificate, Configuration, Issuer, Outsider, Pod, Status, Watch, ask, fetch};
