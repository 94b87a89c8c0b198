//! What is told about files.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use serde::Serialize;

use super::read::Read;
use crate::config::{
    error::{Place, Problem},
    template::has_template,
    yaml::Position,
};

/// What there is to say about files.
#[derive(Debug, Serialize)]
pub struct Report {
    /// In the order of files and lines.
    pub findings: Vec<Finding>,
    /// Whatever could not be looked at.
    pub notes: Vec<String>,
    /// How many files were read.
    pub files: usize,
    /// How many objects were read, by kind.
    pub read: BTreeMap<String, usize>,
    /// How many were looked at for the pods that they make.
    pub templates: BTreeMap<String, usize>,
    /// How many are of meshes and not obeyed.
    pub not_obeyed: BTreeMap<String, usize>,
    /// How many are nobody's here.
    pub passed_over: BTreeMap<String, usize>,
}

/// Something to say about a place.
#[derive(Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file, `stdin` for standard input.
    pub file: String,
    /// The line, from 1; `None` where it is the file as a whole.
    pub line: Option<u64>,
    /// The column, from 1.
    pub column: Option<u64>,
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot be obeyed.
    Error,
    /// It can be, and is probably not meant.
    Warning,
}

impl Report {
    pub(super) fn new(
        files: usize,
        read: &Read<'_>,
        problems: Vec<Problem>,
        warnings: Vec<Problem>,
    ) -> Self {
        let problems = problems.iter().map(|problem| Finding::of(problem, Severity::Error));
        let warnings = warnings.iter().map(|problem| Finding::of(problem, Severity::Warning));
        let mut findings: Vec<_> = problems.chain(warnings).collect();
        findings.sort();
        findings.dedup();
        let mut report = Self {
            findings,
            notes: Vec::new(),
            files,
            read: read.manifests.counts().filter(|(_, count)| *count > 0).collect(),
            templates: BTreeMap::new(),
            not_obeyed: BTreeMap::new(),
            passed_over: BTreeMap::new(),
        };
        for foreign in &read.manifests.foreign {
            let kind = foreign.kind();
            let counts = match () {
                () if foreign.is_of_meshes() => &mut report.not_obeyed,
                () if has_template(kind) => &mut report.templates,
                () => &mut report.passed_over,
            };
            *counts.entry(kind.to_owned()).or_default() += 1;
        }
        let policies = ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"];
        if read.runners.is_empty() && policies.iter().any(|kind| report.read.contains_key(*kind)) {
            let note = "no pods were read, so that nobody can tell whom policies select (hint: give what \
                        makes the pods, such as Deployments, with another -f)";
            report.notes.push(note.to_owned());
        }
        report
    }

    /// How many findings are of that severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

impl Finding {
    fn of(problem: &Problem, severity: Severity) -> Self {
        let (place, what, hint) = problem.parts();
        let (file, position) = match place {
            Place::File(file, position) => (file.display().to_string(), *position),
            Place::Object(name) => (name.to_string(), None),
        };
        let (line, column) = match position {
            Some(Position { line, column }) => (Some(line), Some(column)),
            None => (None, None),
        };
        let (what, hint) = (what.to_owned(), hint.map(str::to_owned));
        Self { file, line, column, severity, what, hint }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

impl fmt::Display for Finding {
    /// `a.yaml:3:5: error: … (hint: …)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, severity, what, hint } = self;
        f.write_str(file)?;
        if let (Some(line), Some(column)) = (line, column) {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {severity}: {what}")?;
        match hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        let counts = [
            ("read", &self.read),
            ("looked at for their pods", &self.templates),
            ("not obeyed", &self.not_obeyed),
            ("passed over", &self.passed_over),
        ];
        for (what, counts) in counts.into_iter().filter(|(_, counts)| !counts.is_empty()) {
            let counts = counts.iter().map(|(kind, count)| format!("{count} {kind}"));
            writeln!(f, "{what}: {}", counts.collect::<Vec<_>>().join(", "))?;
        }
        let mut sum = String::new();
        for (severity, word) in [(Severity::Error, "error"), (Severity::Warning, "warning")] {
            let count = self.count(severity);
            let s = if count == 1 { "" } else { "s" };
            write!(sum, "{count} {word}{s}, ")?;
        }
        let s = if self.files == 1 { "" } else { "s" };
        writeln!(f, "{sum}{} file{s}", self.files)
    }
}
