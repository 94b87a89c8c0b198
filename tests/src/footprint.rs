//! What an agent holds of the kernel, to compare before and after.

use std::{collections::BTreeMap, fs};

use anyhow::Context;
use serde_json::Value;

use crate::{Agent, Node, bpftool, eventually};

/// Open files by kind, pins, programs, links and map entries of a node's agent, by name.
///
/// Not the entries of the listeners' map, which the kernel does not show of a map of sockets:
/// they go with the sockets, which are among the open files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Footprint(BTreeMap<String, usize>);

/// What names of open files begin with.
const OPEN: &str = "open ";
/// The maps that have an entry for each pod, address or dial.
const MAPS: [&str; 3] = ["PODS", "POD_IPS", "DIALS"];

impl Footprint {
    /// Looks at it now.
    ///
    /// # Errors
    /// When the agent is gone, or a tool that looks fails.
    pub fn of(node: &Node, agent: &Agent) -> anyhow::Result<Self> {
        let mut counts = open_files(agent)?;
        let mut count = |what: &str, number: usize| counts.insert(what.to_owned(), number);
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
    /// fewer of any kind.
    ///
    /// # Errors
    /// When it does not in time, with what it holds.
    pub async fn is_back(&self, node: &Node, agent: &Agent) -> anyhow::Result<()> {
        let same = || async {
            // First what is found quickest.
            let files = open_files(agent)?;
            let more =
                |(what, now): (&String, &usize)| *now > self.0.get(what).copied().unwrap_or(0);
            if files.iter().any(more) {
                return Ok(None);
            }
            let now = Self::of(node, agent)?;
            Ok((now.but_files() == self.but_files()).then_some(()))
        };
        eventually("the agent holds what it held before", same).await.with_context(|| {
            let now = Self::of(node, agent);
            format!("before: {:?}\nnow:    {:?}", self.0, now.map(|Self(now)| now))
        })
    }

    fn but_files(&self) -> BTreeMap<&str, usize> {
        let all = self.0.iter().map(|(what, count)| (what.as_str(), *count));
        all.filter(|(what, _)| !what.starts_with(OPEN)).collect()
    }
}

/// What an agent has open, by kind: `open socket`, `open anon_inode:[eventpoll]`, and so on.
fn open_files(agent: &Agent) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for file in fs::read_dir(format!("/proc/{}/fd", agent.process().id()))? {
        // One that is closed meanwhile is none.
        let Ok(target) = fs::read_link(file?.path()) else { continue };
        let target = target.to_string_lossy();
        // `socket:[NUMBER]` is one of many; `anon_inode:[eventpoll]` says what it is.
        let kind = match target.split_once(":[") {
            Some((kind, rest)) if rest.starts_with(|first: char| first.is_ascii_digit()) => kind,
            _ => &target,
        };
        *counts.entry(format!("{OPEN}{kind}")).or_default() += 1;
    }
    Ok(counts)
}
