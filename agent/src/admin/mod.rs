//! What people, probes and scrapers ask the agent.
//!
//! Enters: plain HTTP on three addresses. Leaves: health (15021), metrics (15020) and status
//! (15000, loopback only). It reads what other rooms publish and changes nothing.

mod readiness;
mod recent_log;
mod server;
mod status;

pub use readiness::Readiness;
pub use recent_log::RecentLog;
pub use server::{AdminError, json, openmetrics, serve, text};
pub use status::{Certificate, Configuration, Outsider, Pod, Status, Watch, ask, fetch};
