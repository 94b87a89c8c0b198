//! What the kernel says about BPF objects, by bpftool.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::node::Node;

/// Runs a command of bpftool that lists things.
///
/// # Errors
/// When it fails.
pub fn list(arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    // What goes while it lists is an entry that says so, and the list a failure.
    let (listed, _) = run(arguments)?;
    Ok(listed.as_array().cloned().unwrap_or_default())
}

/// Runs a command of bpftool that shows one thing.
///
/// # Errors
/// When it fails.
pub fn show(arguments: &[&str]) -> anyhow::Result<Value> {
    // It says what is wrong in JSON, too.
    let (shown, success) = run(arguments)?;
    ensure!(success, "bpftool {}: {shown}", arguments.join(" "));
    Ok(shown)
}

/// What bpftool says, and whether it succeeded.
fn run(arguments: &[&str]) -> anyhow::Result<(Value, bool)> {
    let mut bpftool = Command::new("bpftool");
    let output = bpftool.arg("--json").args(arguments).output().context("could not run bpftool")?;
    let said = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("bpftool {} said nothing of use", arguments.join(" ")))?;
    Ok((said, output.status.success()))
}

/// Writes an element of a pinned map of a node's agent.
///
/// # Errors
/// When there is no such map, or the kernel refuses.
pub fn update(node: &Node, map: &str, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
    let pin = pin(node, "maps", map)?;
    let bytes = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>();
    let mut bpftool = Command::new("bpftool");
    bpftool.args(["map", "update", "pinned"]).arg(pin);
    bpftool.arg("key").args(bytes(key)).arg("value").args(bytes(value));
    let output = bpftool.output().context("could not run bpftool")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What is pinned in one of the directories of a node's agent: `maps`, `links`, `pods`.
///
/// # Errors
/// When the directory cannot be read.
pub fn pins(node: &Node, kind: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut pins = Vec::new();
    for version in fs::read_dir(node.bpffs())? {
        for pin in fs::read_dir(version?.path().join(kind))? {
            pins.push(pin?.path());
        }
    }
    pins.sort();
    Ok(pins)
}

/// The pin called `name` in one of these directories.
///
/// # Errors
/// When there is none.
pub fn pin(node: &Node, kind: &str, name: &str) -> anyhow::Result<PathBuf> {
    let mut pins = pins(node, kind)?.into_iter();
    pins.find(|pin| pin.ends_with(name)).with_context(|| format!("nothing is pinned as {name}"))
}

/// The ids of the maps a node's agent pinned; whatever program uses one is its.
///
/// # Errors
/// When nothing is pinned.
pub fn pinned_maps(node: &Node) -> anyhow::Result<Vec<Value>> {
    let mut ids = Vec::new();
    for path in pins(node, "maps")? {
        ids.push(show(&["map", "show", "pinned", &path.to_string_lossy()])?["id"].clone());
    }
    ensure!(!ids.is_empty(), "nothing is pinned");
    Ok(ids)
}
