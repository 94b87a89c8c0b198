//! A long step and its progress: a spinner on a terminal, plain lines elsewhere.

use std::{
    collections::VecDeque,
    env,
    io::{BufRead, BufReader, IsTerminal, PipeReader, pipe},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How many of a failed command's last lines are shown.
const SHOWN: usize = 20;
/// Without a terminal, how often a long step says that it is still at work.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// One step that takes a while.
pub(crate) struct Step {
    title: String,
    started: Instant,
    spinner: Option<ProgressBar>,
}

impl Step {
    pub(crate) fn start(title: &str) -> Self {
        let spinner = (std::io::stderr().is_terminal() && env::var_os("CI").is_none()).then(|| {
            let style =
                ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}");
            let bar = ProgressBar::new_spinner().with_prefix(title.to_owned());
            bar.set_style(style.expect("the template is well-formed"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if spinner.is_none() {
            eprintln!("… {title}");
        }
        Self { title: title.to_owned(), started: Instant::now(), spinner }
    }

    /// Runs a command of this step. An error holds the command and its last lines.
    pub(crate) fn run(&self, command: &mut Command) -> anyhow::Result<()> {
        let (reader, writer) = pipe().context("could not make a pipe")?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().context("could not copy a pipe")?)
            .stderr(writer)
            .spawn()
            .with_context(|| format!("could not run {command:?}"))?;
        // The command holds the pipe's writing end; without this the pipe would never end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let last = self.follow(reader);
        let status = child.wait().with_context(|| format!("could not wait for {command:?}"))?;
        if status.success() {
            return Ok(());
        }
        let last: Vec<_> = last.iter().map(|line| format!("\n    {line}")).collect();
        bail!("{} failed ({status}): {command:?}{}", self.title, last.concat())
    }

    /// Reads a command's output to its end, and keeps the last lines.
    fn follow(&self, output: PipeReader) -> VecDeque<String> {
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
        let mut last = VecDeque::with_capacity(SHOWN);
        let mut said = Instant::now();
        loop {
            match lines.recv_timeout(HEARTBEAT) {
                Ok(line) => {
                    if let Some(spinner) = &self.spinner {
                        spinner.set_message(line.trim().to_owned());
                    }
                    if last.len() == SHOWN {
                        last.pop_front();
                    }
                    last.push_back(line);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return last,
            }
            if self.spinner.is_none() && said.elapsed() >= HEARTBEAT {
                eprintln!("… {}: {} s so far", self.title, self.started.elapsed().as_secs());
                said = Instant::now();
            }
        }
    }

    /// The step is over and all is well.
    pub(crate) fn done(self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        eprintln!("✔ {} ({} s)", self.title, self.started.elapsed().as_secs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_shown_with_its_last_lines() {
        let step = Step::start("Counting");
        let error = step.run(Command::new("sh").args(["-c", "seq 30; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("\n    30"), "{text}");
        assert!(!text.contains("\n    10\n"), "only the last lines: {text}");
    }

    #[test]
    fn one_step_can_run_a_command_twice() {
        let step = Step::start("Trying");
        let mut command = Command::new("true");
        step.run(&mut command).unwrap();
        step.run(&mut command).unwrap();
        step.done();
    }
}
