//! Which configuration is in force.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use sluice_tests::{Agent, Node, PATIENCE};

/// What the agent of `node` says of its configuration.
pub(crate) fn configuration(node: &Node) -> anyhow::Result<Value> {
    Ok(Agent::status(node)?["configuration"].clone())
}

/// The number of the snapshot that is in force.
pub(crate) fn version(node: &Node) -> anyhow::Result<u64> {
    configuration(node)?["version"].as_u64().context("the configuration has a version")
}

/// How long it takes until what `change` does is in force. It is asked for all the time, which costs the
/// agent more than the change.
pub(crate) fn time_of(node: &Node, change: impl FnOnce()) -> anyhow::Result<Duration> {
    let wanted = version(node)? + 1;
    let began = Instant::now();
    change();
    while version(node)? < wanted {
        ensure!(began.elapsed() < PATIENCE, "a change is not in force");
    }
    Ok(began.elapsed())
}
