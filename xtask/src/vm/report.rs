//! What the machines say of their tests, line by line, and the table made of it.
//!
//! The init program (`tests/src/bin/vm-init`) begins its own lines with [`SIGN`]; between
//! them is what the tests' program prints.

use std::{collections::BTreeMap, fmt::Write};

use super::kernel::Kernel;

/// What the init program's own lines begin with.
const SIGN: &str = "@@ ";
/// What a test prints of something that its kernel does not have.
const LACKS: &str = "not possible here: ";

/// How a test ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
}

/// What became of the tests on one kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// As `uname -r` says.
    pub(crate) release: String,
    /// By subject, then by test.
    subjects: BTreeMap<String, BTreeMap<String, Outcome>>,
    /// What tests found the kernel to lack.
    pub(crate) lacks: Vec<String>,
    /// What the machine said last of all; `None` when it never got that far.
    pub(crate) verdict: Option<String>,
    /// How long it took, in seconds.
    pub(crate) seconds: u64,
    /// Whether it has come to where libtest tells of successes once more.
    repeating: bool,
}

impl Report {
    /// Takes in a line of the machine's output, and says whether it is of use to a reader.
    pub(crate) fn line(&mut self, line: &str) -> bool {
        self.take(line);
        match line {
            "successes:" => self.repeating = true,
            "failures:" => self.repeating = false,
            _ if line.starts_with("test result: ") => {
                self.repeating = false;
                return !line.contains(" 0 passed; 0 failed; ");
            }
            _ => {}
        }
        let is_noise = line.is_empty() || line.starts_with("running ") || self.repeating;
        !is_noise || line.contains(LACKS)
    }

    fn take(&mut self, line: &str) {
        if let Some(said) = line.strip_prefix(SIGN) {
            match said.split_once(' ') {
                Some(("kernel", release)) => self.release = release.to_owned(),
                Some(("verdict", verdict)) => self.verdict = Some(verdict.to_owned()),
                _ => {}
            }
        } else if let Some((subject, name, outcome)) = test(line) {
            let tests = self.subjects.entry(subject.to_owned()).or_default();
            tests.insert(name.to_owned(), outcome);
        } else if let Some((_, lack)) = line.split_once(LACKS)
            && !self.lacks.iter().any(|known| known == lack)
        {
            self.lacks.push(lack.to_owned());
        }
    }

    /// Whether every test passed, and there were some.
    pub(crate) fn passed(&self) -> bool {
        self.verdict.as_deref() == Some("passed") && self.count(Outcome::Passed) > 0
    }

    fn count(&self, outcome: Outcome) -> usize {
        let all = self.subjects.values().flat_map(BTreeMap::values);
        all.filter(|found| **found == outcome).count()
    }

    /// One line about one subject: how many passed, and how many did not.
    fn cell(&self, subject: &str) -> String {
        let Some(tests) = self.subjects.get(subject) else { return "–".to_owned() };
        let failed = tests.values().filter(|outcome| **outcome == Outcome::Failed).count();
        match failed {
            0 => format!("✔ {}", tests.len()),
            _ => format!("✘ {failed} of {}", tests.len()),
        }
    }
}

/// `test SUBJECT::NAME ... ok`, as libtest prints it.
fn test(line: &str) -> Option<(&str, &str, Outcome)> {
    let (path, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let (subject, name) = path.split_once("::")?;
    let outcome = match result.split_whitespace().next()? {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        _ => return None,
    };
    Some((subject, name, outcome))
}

/// What all kernels of a run did.
pub(crate) struct Matrix<'a>(pub(crate) &'a [(Kernel, Report)]);

impl Matrix<'_> {
    /// A row for each subject, for the terminal.
    pub(crate) fn table(&self) -> String {
        let mut rows = vec![self.row("", |kernel, _| kernel.name().to_owned())];
        for subject in self.subjects() {
            rows.push(self.row(subject, |_, report| report.cell(subject)));
        }
        rows.push(self.row("time", |_, report| format!("{} s", report.seconds)));
        rows.push(self.row("verdict", |_, report| {
            report.verdict.clone().unwrap_or_else(|| "no end".to_owned())
        }));
        rows.join("\n")
    }

    fn row(&self, title: &str, cell: impl Fn(Kernel, &Report) -> String) -> String {
        let mut row = format!("{title:<14}");
        for (kernel, report) in self.0 {
            let _ = write!(row, "{:<14}", cell(*kernel, report));
        }
        row.trim_end().to_owned()
    }

    /// The same for `docs/kernels.md`: a row for each test.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("| Kernel |");
        let line = |text: &mut String, cell: &dyn Fn(&Report) -> String| {
            for (_, report) in self.0 {
                let _ = write!(text, " {} |", cell(report));
            }
            text.push('\n');
        };
        line(&mut text, &|report| report.release.trim_end_matches("-amd64").to_owned());
        text.push_str("|---|");
        text.push_str(&"---|".repeat(self.0.len()));
        text.push('\n');
        for subject in self.subjects() {
            let _ = write!(text, "| **{subject}** |");
            line(&mut text, &|report| report.cell(subject));
            for test in self.tests(subject) {
                let _ = write!(text, "| {} |", test.replace('_', " "));
                line(&mut text, &|report| {
                    let outcome = report.subjects.get(subject).and_then(|tests| tests.get(test));
                    match outcome {
                        Some(Outcome::Passed) => "✔",
                        Some(Outcome::Failed) => "✘",
                        None => "–",
                    }
                    .to_owned()
                });
            }
        }
        text.push_str("\nWhat a kernel lacks, as its tests found it:\n\n");
        for (kernel, report) in self.0 {
            let lacks = if report.lacks.is_empty() {
                "nothing".to_owned()
            } else {
                report.lacks.join("; ")
            };
            let _ = writeln!(text, "- **{kernel}** ({}): {lacks}", report.release);
        }
        text
    }

    fn subjects(&self) -> Vec<&str> {
        let mut names: Vec<_> = self
            .0
            .iter()
            .flat_map(|(_, report)| report.subjects.keys())
            .map(String::as_str)
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn tests(&self, subject: &str) -> Vec<&str> {
        let subjects = self.0.iter().filter_map(|(_, report)| report.subjects.get(subject));
        let mut names: Vec<_> = subjects.flat_map(BTreeMap::keys).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "@@ kernel 6.1.0-50-cloud-amd64\n\
        test capture::loopback_is_left_alone ... ok\ntest capture::datagrams_are_left_alone ... FAILED\n\
        successes:\n---- capture::some_test stdout ----\nnot possible here: MPTCP is off\n\
        successes:\n    capture::loopback_is_left_alone\n\
        test result: FAILED. 1 passed; 1 failed\n@@ verdict failed\n";

    #[test]
    fn the_output_of_a_machine_becomes_a_report() {
        let mut report = Report::default();
        let shown: Vec<_> = OUTPUT.lines().filter(|line| report.line(line)).collect();
        assert!(!shown.contains(&"    capture::loopback_is_left_alone"), "{shown:#?}");
        assert!(shown.contains(&"not possible here: MPTCP is off"), "{shown:#?}");
        assert_eq!(report.release, "6.1.0-50-cloud-amd64");
        assert_eq!((report.count(Outcome::Passed), report.count(Outcome::Failed)), (1, 1));
        assert_eq!(report.lacks, ["MPTCP is off"]);
        assert!(!report.passed());
        let matrix = [(Kernel::V6_1, report)];
        let table = Matrix(&matrix).table();
        assert!(table.contains("capture       ✘ 1 of 2"), "{table}");
        let markdown = Matrix(&matrix).markdown();
        assert!(markdown.contains("| loopback is left alone | ✔ |"), "{markdown}");
    }

    #[test]
    fn a_machine_that_ran_no_test_or_never_ended_has_not_passed() {
        let mut report = Report::default();
        report.line("@@ verdict passed");
        assert!(!report.passed());
        let mut report = Report::default();
        report.line("test capture::loopback_is_left_alone ... ok");
        assert!(!report.passed());
        report.line("@@ verdict passed");
        assert!(report.passed());
    }
}
