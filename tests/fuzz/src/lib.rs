//! The agent's parsers alone, with whatever a fuzzer finds: `cargo xtask fuzz`.
//!
//! They are compiled from the agent's own files: with counters in it, all of the agent would take
//! minutes to build. What is right is said beside the parsers, in `oracle.rs`, where the agent's own
//! tests have it from too.

#![forbid(unsafe_code)]
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the agent uses what parsers alone do not"
)]

#[path = "../../../agent/src/http"]
mod http {
    pub(crate) mod h1 {
        mod chunked;
        mod framing;
        mod head;
        mod known;
        pub(crate) mod oracle;
    }
    mod message;
    pub(crate) mod oracle;
    mod sniff;
    mod target;

    pub(crate) use message::Fields;
    pub(crate) use sniff::{Protocol, Sniff, sniff};
}

#[path = "../../../agent/src/telemetry"]
mod telemetry {
    mod context;
    pub(crate) mod oracle;
}

/// What is fuzzed. It panics where something is wrong.
pub type Target = fn(&[u8]);

/// All of it, by name.
pub const TARGETS: [(&str, Target); 6] = [
    ("request", http::h1::oracle::request),
    ("response", http::h1::oracle::response),
    ("chunked", chunked),
    ("sniff", http::oracle::verdict_stays),
    ("target", target),
    ("context", telemetry::oracle::context),
];

/// A body in pieces that are as long as its first byte says.
fn chunked(bytes: &[u8]) {
    let Some((length, body)) = bytes.split_first() else { return };
    http::h1::oracle::chunked(&body.chunks(usize::from(*length).max(1)).collect::<Vec<_>>());
}

/// A method and a target behind a blank.
fn target(bytes: &[u8]) {
    let Some(blank) = bytes.iter().position(|byte| *byte == b' ') else { return };
    http::oracle::target_is_right(&bytes[..blank], &bytes[blank + 1..]);
}
