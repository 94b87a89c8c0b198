//! What is wrong with a configuration, where, and what to do about it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::yaml::Position;

/// Problems shown of one load; whoever has more fixes these first.
const SHOWN: usize = 20;

/// Why a configuration is not in force.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The directory itself cannot be read.
    #[error("cannot read the configuration directory `{}`: {cause} (hint: {hint})", .dir.display())]
    Directory {
        /// The directory asked for.
        dir: PathBuf,
        /// What the kernel said, in words.
        cause: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The kernel reports no changes, so that a later one would go unnoticed.
    #[error(
        "cannot watch the configuration directory `{}`: {cause} (hint: raise \
         fs.inotify.max_user_instances or fs.inotify.max_user_watches)", .dir.display()
    )]
    Watch {
        /// The directory asked for.
        dir: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// There is no API server to ask.
    #[error(
        "cannot tell which API server to watch: {cause} (hint: set KUBECONFIG, or run in a \
         cluster with a service account; --config-dir reads files instead)"
    )]
    Cluster {
        /// What was tried and what came of it.
        cause: String,
    },
    /// Something is said that cannot be obeyed; in the order of files and lines, or of names.
    #[error("{}", listed(.0))]
    Invalid(Vec<Problem>),
}

/// One thing that is wrong in one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    place: Place,
    what: String,
    hint: Option<String>,
}

/// Where something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A place in a file; without a position it is the file as a whole.
    File(Arc<Path>, Option<Position>),
    /// An object of the API server, as `Pod shop/order`.
    Object(Arc<str>),
}

impl Place {
    pub(super) fn new(file: &Arc<Path>, position: Option<Position>) -> Self {
        Self::File(file.clone(), position)
    }

    pub(super) fn object(name: &str) -> Self {
        Self::Object(name.into())
    }
}

impl Problem {
    pub(super) fn new(place: Place, what: impl Into<String>) -> Self {
        Self { place, what: what.into(), hint: None }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Where, what, and what to do about it.
    pub(super) fn parts(&self) -> (&Place, &str, Option<&str>) {
        (&self.place, &self.what, self.hint.as_deref())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file, Some(Position { line, column })) => {
                write!(f, "{}:{line}:{column}", file.display())
            }
            Self::File(file, None) => write!(f, "{}", file.display()),
            Self::Object(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

fn listed(problems: &[Problem]) -> String {
    let mut lines: Vec<_> = problems.iter().take(SHOWN).map(Problem::to_string).collect();
    if let Some(more @ 1..) = problems.len().checked_sub(SHOWN) {
        lines.push(format!("… and {more} more"));
    }
    match lines.as_slice() {
        [line] => line.clone(),
        lines => format!("{} problems\n  {}", problems.len(), lines.join("\n  ")),
    }
}

/// Of `known`, the name that `unknown` most probably was meant to be.
pub(super) fn nearest<'a>(
    unknown: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wanted = unknown.to_lowercase();
    let tolerance = 1 + unknown.len() / 5;
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&wanted, &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= tolerance)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// What to write instead of `unknown`: the nearest of `names`, or else which there are of the `kind`.
pub(super) fn meant_or_all(unknown: &str, kind: &str, names: &[&str]) -> String {
    match nearest(unknown, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the {kind} are {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_finds_its_name_and_a_different_word_does_not() {
        let known = ["podIP", "podIPs", "hostIP", "phase"];
        assert_eq!(nearest("podIp", known), Some("podIP"));
        assert_eq!(nearest("podips", known), Some("podIPs"));
        assert_eq!(nearest("phsae", known), Some("phase"));
        assert_eq!(nearest("restartPolicy", known), None);
    }

    #[test]
    fn more_problems_than_fit_are_counted() {
        let file: Arc<Path> = Path::new("a.yaml").into();
        let problem = |line| {
            let position = Position { line, column: 1 };
            Problem::new(Place::new(&file, Some(position)), "wrong")
        };
        let text = ConfigError::Invalid((1..=25).map(problem).collect()).to_string();
        assert!(text.starts_with("25 problems\n  a.yaml:1:1: wrong\n"), "{text}");
        assert!(text.ends_with("a.yaml:20:1: wrong\n  … and 5 more"), "{text}");
    }
}
