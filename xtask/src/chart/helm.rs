//! Calls of helm.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Context;

use super::cases::Case;

/// The chart, as helm sees it.
pub(super) struct Helm {
    program: PathBuf,
    chart: PathBuf,
}

impl Helm {
    pub(super) fn new(program: PathBuf, chart: PathBuf) -> Self {
        Self { program, chart }
    }

    /// What helm itself finds wrong.
    pub(super) fn lint(&self) -> anyhow::Result<Vec<String>> {
        let mut command = Command::new(&self.program);
        command.args(["lint", "--strict"]).arg(&self.chart);
        let output = command.output().with_context(|| format!("could not run {command:?}"))?;
        if output.status.success() {
            return Ok(Vec::new());
        }
        Ok(vec![format!("helm lint: {}", String::from_utf8_lossy(&output.stdout).trim())])
    }

    /// The objects that the chart makes of a case's values, or why helm makes none.
    pub(super) fn render(&self, case: &Case) -> anyhow::Result<Result<String, String>> {
        let mut command = Command::new(&self.program);
        command.args(["template", case.release]).arg(&self.chart);
        command.args(["--namespace", case.namespace, "--values", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("could not run {command:?}"))?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(case.values.as_bytes()).context("helm does not read the values")?;
        drop(stdin);
        let output = child.wait_with_output().context("could not wait for helm")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr).trim().to_owned())
        })
    }
}
