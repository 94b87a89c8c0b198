//! The eBPF programs at work on a node, as the kernel tells of them.

use std::collections::BTreeSet;

use anyhow::Context;
use serde_json::Value;

use crate::{Mesh, NodeName, tenant::finish, text};

/// Where an agent's links are pinned, in the second layout.
const PINS: &str = "/sys/fs/bpf/sluice/v2";

/// A program that is attached by one of the agent's links, or by several.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Attached {
    /// Its name.
    pub name: String,
    /// The kernel's digest of its instructions.
    pub tag: String,
    /// The names of the maps that it uses.
    pub maps: BTreeSet<String>,
}

impl Mesh {
    /// The programs at work on `node`: what its pinned links attach.
    ///
    /// # Errors
    /// When nothing is pinned there, or the kernel does not tell.
    pub fn attached(&self, node: NodeName) -> anyhow::Result<BTreeSet<Attached>> {
        let mut found = BTreeSet::new();
        for kind in ["links", "pods"] {
            let folder = format!("{PINS}/{kind}");
            let mut ls = self.bed().node_command(node, "ls")?;
            ls.arg(&folder);
            for pin in finish(ls, "")?.lines() {
                let link =
                    self.bpftool(node, &["link", "show", "pinned", &format!("{folder}/{pin}")])?;
                let program =
                    self.bpftool(node, &["prog", "show", "id", &number(&link, "prog_id")?])?;
                let maps = program["map_ids"].as_array().context("a program without maps")?.iter();
                let map = |id: &Value| {
                    let map = self.bpftool(node, &["map", "show", "id", &id.to_string()])?;
                    Ok(text(&map, "/name")?.to_owned())
                };
                found.insert(Attached {
                    name: text(&program, "/name")?.to_owned(),
                    tag: text(&program, "/tag")?.to_owned(),
                    maps: maps.map(map).collect::<anyhow::Result<_>>()?,
                });
            }
        }
        Ok(found)
    }

    fn bpftool(&self, node: NodeName, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut bpftool = self.bed().node_command(node, "bpftool")?;
        bpftool.arg("--json").args(arguments);
        Ok(serde_json::from_str(&finish(bpftool, "")?)?)
    }
}

fn number(object: &Value, field: &str) -> anyhow::Result<String> {
    let number = object[field].as_u64().with_context(|| format!("no {field} in {object}"))?;
    Ok(number.to_string())
}
