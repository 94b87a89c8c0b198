//! A claim and what shows that it holds.

use std::fmt;

/// One line of the demo's result.
pub(crate) struct Claim {
    what: &'static str,
    /// What was seen; or, when the claim does not hold, what was seen instead.
    seen: Result<String, String>,
}

impl Claim {
    /// `seen` when all `conditions` hold, else what does not.
    pub(crate) fn new(
        what: &'static str,
        seen: String,
        conditions: impl IntoIterator<Item = (bool, String)>,
    ) -> Self {
        let broken = conditions.into_iter().filter(|(holds, _)| !holds).map(|(_, why)| why);
        let broken = broken.collect::<Vec<_>>().join("; ");
        Self { what, seen: if broken.is_empty() { Ok(seen) } else { Err(broken) } }
    }

    pub(crate) fn holds(&self) -> bool {
        self.seen.is_ok()
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.seen {
            Ok(seen) => write!(f, "✔ {}: {seen}", self.what),
            Err(instead) => write!(f, "✘ {}: {instead}", self.what),
        }
    }
}
