//! The kernels of the matrix, and where each comes from.

use std::{collections::BTreeSet, fmt, str::FromStr};

use crate::apt::Suites;

/// A kernel of the matrix: the newest of its line that Debian has.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kernel {
    /// 5.10, of Debian 11: the oldest that capture works on.
    V5_10,
    /// 6.1, of Debian 12.
    V6_1,
    /// 6.12, of Debian 13.
    V6_12,
    /// The newest in Debian's unstable suite.
    Latest,
}

impl Kernel {
    pub(crate) const ALL: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::Latest];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Latest => "latest",
        }
    }

    /// Debian's suites that hold it: the release and its security updates.
    pub(crate) fn suites(self) -> Suites {
        Suites::of(match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::Latest => "unstable",
        })
    }

    /// How its machine mounts cgroups. Distributions of the time of 5.10 booted the hybrid
    /// layout; one kernel of the matrix does so as well.
    pub(crate) fn cgroups(self) -> &'static str {
        match self {
            Self::V5_10 => "hybrid",
            _ => "unified",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What `--kernel` chooses: each once, the oldest first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Kernels(pub(crate) Vec<Kernel>);

impl FromStr for Kernels {
    type Err = String;

    /// `all`, or names separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self(Kernel::ALL.to_vec()));
        }
        let of = |name: &str| {
            let found = Kernel::ALL.into_iter().find(|kernel| kernel.name() == name);
            found.ok_or_else(|| {
                let names = Kernel::ALL.map(Kernel::name).join(", ");
                format!("no kernel `{name}` in the matrix (hint: {names}, or all)")
            })
        };
        let chosen = text.split(',').map(of).collect::<Result<BTreeSet<_>, _>>()?;
        Ok(Self(chosen.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_chosen_by_name_or_all_at_once() {
        let chosen = |text: &str| text.parse::<Kernels>().map(|Kernels(kernels)| kernels);
        assert_eq!(chosen("all"), Ok(Kernel::ALL.to_vec()));
        assert_eq!(chosen("latest,6.1,latest"), Ok(vec![Kernel::V6_1, Kernel::Latest]));
        assert!(chosen("6.2").unwrap_err().contains("hint: 5.10, 6.1, 6.12, latest"));
    }
}
