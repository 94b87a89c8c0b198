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

pub use answer::{Answer, Body, json, openmetrics, text};
pub use readiness::Readiness;
pub use recent_log::RecentLog;
pub use server::{AdminError, own_thread, serve};
pub use status::{Certificate, Configuration, Outsider, Pod, Status, Watch, ask, fetch};
