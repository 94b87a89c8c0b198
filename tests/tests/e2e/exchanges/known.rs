//! What is known to fail.

use std::collections::BTreeMap;

use anyhow::Context;

/// A line is `group/name: way, way`, with a question mark before it where that is not so each time.
const KNOWN: &str = include_str!("known.txt");

/// On which ways a row fails.
#[derive(Debug, Default)]
pub struct Known {
    pub ways: Vec<&'static str>,
    /// Not each time.
    sometimes: bool,
}

impl Known {
    /// Whether a row that failed on these ways failed as it was known to.
    pub fn allows(&self, failed: &[&str]) -> bool {
        failed == self.ways || (self.sometimes && failed.iter().all(|way| self.ways.contains(way)))
    }
}

/// What fails, by row.
pub fn read() -> anyhow::Result<BTreeMap<&'static str, Known>> {
    let lines = KNOWN.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (sometimes, line) = match line.strip_prefix("? ") {
                Some(line) => (true, line),
                None => (false, line),
            };
            let (name, ways) = line.rsplit_once(": ").context("ROW: WAYS")?;
            Ok((name, Known { ways: ways.split(", ").collect(), sometimes }))
        })
        .collect()
}
