//! What an agent holds of the kernel, to compare before and after.

use std::{collections::BTreeMap, fs};

use anyhow::Context;
use serde_json::Value;

use crate::{Agent, Node, bpftool, eventually};

/// Open files, pins, programs, links and map entries of a node's agent, by name.
///
/// Not the entries of the listeners' map, which the kernel does not show of a map of sockets:
/// they go with the sockets, which are among the open files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Footprint(BTreeMap<String, usize>);

/// The maps that have an entry for each pod, address or dial.
const MAPS: [&str; 3] = ["PODS", "POD_IPS", "DIALS"];

impl Footprint {
    /// Looks at it now.
    ///
    /// # Errors
    /// When the agent is gone, or a tool that looks fails.
    pub fn of(node: &Node, agent: &Agent) -> anyhow::Result<Self> {
        let mut counts = BTreeMap::new();
        let mut count = |what: &str, number: usize| counts.insert(what.to_owned(), number);
        let process = agent.process().id();
        count("open files", fs::read_dir(format!("/proc/{process}/fd"))?.count());
        for kind in ["maps", "links", "pods"] {
            count(&format!("pinned {kind}"), bpftool::pins(node, kind)?.len());
        }
        for path in bpftool::pins(node, "maps")? {
            let name = path.file_name().context("a pin has a name")?.to_string_lossy();
            if MAPS.contains(&&*name) {
                let dump = bpftool::list(&["map", "dump", "pinned", &path.to_string_lossy()])?;
                count(&format!("entries of {name}"), dump.len());
            }
        }
        let maps = bpftool::pinned_maps(node)?;
        let mut programs = bpftool::list(&["prog", "show"])?;
        programs.retain(|program| {
            let mut uses = program["map_ids"].as_array().into_iter().flatten();
            uses.any(|map| maps.contains(map))
        });
        count("programs", programs.len());
        let ids: Vec<&Value> = programs.iter().map(|program| &program["id"]).collect();
        let links = bpftool::list(&["link", "show"])?;
        count("links", links.iter().filter(|link| ids.contains(&&link["prog_id"])).count());
        Ok(Self(counts))
    }

    /// Waits until the agent holds exactly this again, but for open files, of which it may hold
    /// fewer.
    ///
    /// # Errors
    /// When it does not in time, with what it holds.
    pub async fn is_back(&self, node: &Node, agent: &Agent) -> anyhow::Result<()> {
        let same = || async {
            let Self(now) = Self::of(node, agent)?;
            let is_back = self.0.iter().all(|(what, before)| match what.as_str() {
                "open files" => now[what] <= *before,
                _ => now[what] == *before,
            });
            Ok(is_back.then_some(()))
        };
        eventually("the agent holds what it held before", same).await.with_context(|| {
            let now = Self::of(node, agent);
            format!("before: {:?}\nnow:    {:?}", self.0, now.map(|Self(now)| now))
        })
    }
}
