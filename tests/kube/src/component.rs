//! The programs a cluster consists of, and waiting for them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// How long anything may take to be ready. Seconds are usual; a machine may be busy.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often it is asked for: these programs announce nothing.
const PAUSE: Duration = Duration::from_millis(100);
/// How many of its log's last lines are shown of a program that ended.
const SHOWN: usize = 15;

/// The programs that run in one place, each with a log of its own.
pub(crate) struct Components {
    logs: PathBuf,
    running: Vec<(String, Child)>,
}

impl Components {
    pub(crate) fn new(logs: &Path) -> Self {
        Self { logs: logs.to_owned(), running: Vec::new() }
    }

    /// Starts a program; its output goes to `NAME.log`.
    pub(crate) fn start(&mut self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let log = log(&self.logs, name)?;
        let copy = log.try_clone().context("could not copy a descriptor")?;
        command.stdin(Stdio::null()).stdout(copy).stderr(log);
        self.keep(name, command).map(drop)
    }

    /// The same for a program whose input and output the caller has set.
    pub(crate) fn keep(&mut self, name: &str, command: &mut Command) -> anyhow::Result<&mut Child> {
        let child = command.spawn().with_context(|| format!("could not run {command:?}"))?;
        self.running.push((name.to_owned(), child));
        let (_, child) = self.running.last_mut().expect("one was just added");
        Ok(child)
    }

    /// Waits until `ready`; an error when one of the programs ends before.
    pub(crate) fn until(
        &mut self,
        what: &str,
        mut ready: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !ready() {
            self.all_run()?;
            if Instant::now() > deadline {
                bail!(
                    "{what}: not within {} s (hint: see {})",
                    PATIENCE.as_secs(),
                    self.logs.display()
                );
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// An error, with the end of its log, for a program that has ended.
    pub(crate) fn all_run(&mut self) -> anyhow::Result<()> {
        for (name, child) in &mut self.running {
            if let Some(status) = child.try_wait().context("could not ask for a child")? {
                let log = self.logs.join(format!("{name}.log"));
                let text = fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                let last = lines[lines.len().saturating_sub(SHOWN)..].join("\n    ");
                bail!("{name} ended ({status}); the end of {}:\n    {last}", log.display());
            }
        }
        Ok(())
    }
}

/// A file for what a program prints.
pub(crate) fn log(folder: &Path, name: &str) -> anyhow::Result<File> {
    let path = folder.join(format!("{name}.log"));
    let file = File::options().create(true).append(true).open(&path);
    file.with_context(|| format!("could not make {}", path.display()))
}

/// Whether a command succeeds; what it prints does not matter.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs a command to its end; an error holds what it said.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("could not run {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, said.trim());
    }
    Ok(())
}

/// Takes in dead children for ever, as the first process of a pid namespace must.
pub(crate) fn reap() -> anyhow::Result<()> {
    loop {
        nix::sys::wait::wait().context("nothing is left to wait for")?;
    }
}
