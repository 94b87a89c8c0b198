//! What was found on a node, line by line, and what follows from it.

use std::fmt;

use serde::Serialize;

use crate::capture::error::CaptureError;

/// Everything that was probed on a node.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    findings: Vec<Finding>,
    #[serde(skip)]
    lacks_rights: bool,
}

/// One thing that was probed.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What it belongs to, as in `rights`.
    pub area: &'static str,
    /// What was probed.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What was found; with a hint where something is missing.
    pub detail: String,
}

/// How one thing is on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As capture wants it.
    Ok,
    /// Capture works another way, or does without.
    FallsBack,
    /// Capture cannot work.
    Missing,
    /// Could not be probed, because of something else that is missing.
    Unknown,
}

impl Report {
    /// What was found, in the order of probing.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether capture can work here.
    ///
    /// # Errors
    /// When it cannot, with how much is missing.
    pub fn verdict(&self) -> anyhow::Result<()> {
        let count = |state| self.findings.iter().filter(|finding| finding.state == state).count();
        let missing = match count(State::Missing) {
            1 => "1 thing that capture needs is missing".to_owned(),
            many => format!("{many} things that capture needs are missing"),
        };
        match (count(State::Missing), count(State::Unknown)) {
            (0, 0) => Ok(()),
            (_, 0) => anyhow::bail!("{missing} (hint: each ✘ says how to get it)"),
            (_, unknown) => anyhow::bail!(
                "{missing}, and {unknown} could not be probed (hint: each ✘ says how to get it)"
            ),
        }
    }

    /// Starts to write about an area.
    pub(super) fn area(&mut self, area: &'static str) -> Area<'_> {
        Area { report: self, area }
    }

    /// All rights are probed. From here on, where one is missing, a refusal says nothing of the
    /// kernel.
    pub(super) fn rights_are_known(&mut self) {
        self.lacks_rights = self.findings.iter().any(|finding| finding.state == State::Missing);
    }
}

/// Writes findings of one area.
pub(super) struct Area<'a> {
    report: &'a mut Report,
    area: &'static str,
}

impl Area<'_> {
    pub(super) fn ok(&mut self, name: &str, detail: impl Into<String>) {
        self.found(name, State::Ok, detail.into());
    }

    pub(super) fn falls_back(&mut self, name: &str, detail: impl Into<String>) {
        self.found(name, State::FallsBack, detail.into());
    }

    /// A need of capture that nothing can be said of, for something else that is missing.
    pub(super) fn unknown(&mut self, name: &str, detail: impl Into<String>) {
        self.found(name, State::Unknown, detail.into());
    }

    /// A need of capture, and whether it is met. `hint` says how to meet it, for errors without
    /// a hint of their own.
    pub(super) fn need<T>(
        &mut self,
        name: &str,
        result: Result<T, CaptureError>,
        detail: impl FnOnce(&T) -> String,
        hint: &str,
    ) -> Option<T> {
        match &result {
            Ok(found) => self.ok(name, detail(found)),
            Err(CaptureError::Ebpf { step, cause } | CaptureError::Kernel { step, cause })
                if self.report.lacks_rights =>
            {
                self.unknown(name, format!("could not {step} without the rights above: {cause}"));
            }
            Err(error) => self.found(name, State::Missing, hinted(error, hint)),
        }
        result.ok()
    }

    fn found(&mut self, name: &str, state: State, detail: String) {
        let name = name.to_owned();
        self.report.findings.push(Finding { area: self.area, name, state, detail });
    }
}

/// The words of `error` as the agent would say them, but with a hint that leads on from here.
fn hinted(error: &CaptureError, hint: &str) -> String {
    match error {
        CaptureError::Ebpf { step, cause } | CaptureError::Kernel { step, cause } => {
            format!("could not {step}: {cause} (hint: {hint})")
        }
        error => error.to_string(),
    }
}

impl State {
    fn sign(self) -> char {
        match self {
            Self::Ok => '✔',
            Self::FallsBack => '▲',
            Self::Missing => '✘',
            Self::Unknown => '?',
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        let mut area = "";
        for Finding { area: of, name, state, detail } in &self.findings {
            if *of != area {
                let gap = if area.is_empty() { "" } else { "\n" };
                writeln!(f, "{gap}{of}")?;
                area = of;
            }
            writeln!(f, "  {} {name:<width$}  {detail}", state.sign())?;
        }
        if self.verdict().is_ok() {
            writeln!(f, "\nCapture can work on this node.")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(report: &mut Report, result: Result<(), CaptureError>) {
        report.area("rights").need("root", result, |()| "yes".into(), "nothing helps");
    }

    #[test]
    fn capture_works_where_everything_is_there_or_has_a_fallback() {
        let mut report = Report::default();
        need(&mut report, Ok(()));
        report.area("kernel").falls_back("BTF", "none");
        assert!(report.verdict().is_ok());
        assert_eq!(
            report.to_string(),
            "rights\n  ✔ root  yes\n\nkernel\n  ▲ BTF   none\n\nCapture can work on this node.\n"
        );
    }

    #[test]
    fn what_is_missing_is_counted_and_shown_with_its_hint() {
        let mut report = Report::default();
        need(&mut report, Err(CaptureError::NotRoot));
        assert_eq!(
            report.to_string(),
            "rights\n  ✘ root  capture needs root (hint: run as root, e.g. with sudo)\n"
        );
        assert_eq!(
            report.verdict().unwrap_err().to_string(),
            "1 thing that capture needs is missing (hint: each ✘ says how to get it)"
        );
        report.area("network").unknown("IPv6", "not probed");
        need(&mut report, Err(CaptureError::NotRoot));
        assert_eq!(
            report.verdict().unwrap_err().to_string(),
            "2 things that capture needs are missing, and 1 could not be probed (hint: each ✘ \
             says how to get it)"
        );
    }

    #[test]
    fn a_refused_step_gets_the_hint_that_fits_and_never_leads_back_here() {
        let mut report = Report::default();
        let error = CaptureError::Ebpf { step: "load it".into(), cause: "no".into() };
        assert!(error.to_string().contains("sluice check"));
        need(&mut report, Err(error));
        assert_eq!(report.findings()[0].detail, "could not load it: no (hint: nothing helps)");
    }

    #[test]
    fn without_rights_a_refusal_is_no_verdict_on_the_kernel() {
        let refused = || CaptureError::Kernel { step: "do it".into(), cause: "EPERM".into() };
        let mut report = Report::default();
        report.rights_are_known();
        need(&mut report, Err(refused()));
        report.rights_are_known();
        need(&mut report, Err(refused()));
        let path = "/tmp".into();
        need(&mut report, Err(CaptureError::NotBpffs { path }));
        let states: Vec<_> = report.findings().iter().map(|finding| finding.state).collect();
        assert_eq!(states, [State::Missing, State::Unknown, State::Missing]);
    }

    #[test]
    fn a_report_is_json_that_names_states_in_words() {
        let mut report = Report::default();
        report.area("kernel").falls_back("BTF", "none");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"findings": [
                {"area": "kernel", "name": "BTF", "state": "falls_back", "detail": "none"}
            ]})
        );
    }
}
