//! Test programs, one after the other.

use std::{
    fs::File,
    io::Read,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::threads;

/// How long a test program may run. The longest takes a minute when the machine is not shared.
const AT_MOST: Duration = Duration::from_secs(5 * 60);
/// How soon it is looked again whether programs printed something or ended.
const AGAIN: Duration = Duration::from_millis(20);
/// Where what they print waits for its turn.
const OUTPUT: &str = "/run";

/// Runs programs, and returns the names of those that did not succeed.
pub(crate) fn run(programs: Vec<(String, Command)>) -> anyhow::Result<Vec<String>> {
    let mut programs = programs.into_iter();
    let mut running: Vec<Program> = Vec::new();
    let mut red = Vec::new();
    loop {
        let room = running.is_empty();
        if let Some((name, command)) = room.then(|| programs.next()).flatten() {
            running.push(Program::start(name, command)?);
        }
        // In this order: what a program printed before it was seen to end is all that it printed.
        let ended = reap()?;
        for program in &mut running {
            let ended = ended.iter().find(|(id, _)| *id == program.id);
            program.succeeded = program.succeeded.or(ended.map(|(_, succeeded)| *succeeded));
            program.read()?;
            program.watch();
        }
        let Some(first) = running.first_mut() else { return Ok(red) };
        print!("{}", std::mem::take(&mut first.lines));
        match first.succeeded {
            Some(succeeded) => {
                let first = running.remove(0);
                red.extend((!succeeded).then_some(first.name));
            }
            None => thread::sleep(AGAIN),
        }
    }
}

/// A test program that was started.
struct Program {
    name: String,
    id: Pid,
    /// When it is killed.
    until: Option<Instant>,
    output: File,
    /// What it printed since its last whole line.
    rest: Vec<u8>,
    /// What it printed before and was not passed on yet.
    lines: String,
    /// Known once it has ended.
    succeeded: Option<bool>,
}

impl Program {
    fn start(name: String, mut command: Command) -> anyhow::Result<Self> {
        let path = Path::new(OUTPUT).join(&name);
        let writer = File::create(&path)?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn().with_context(|| format!("could not run {command:?}"))?;
        Ok(Self {
            id: Pid::from_raw(child.id().cast_signed()),
            until: Some(Instant::now() + AT_MOST),
            output: File::open(path)?,
            rest: Vec::new(),
            lines: format!("@@ program {name}\n"),
            succeeded: None,
            name,
        })
    }

    /// Takes in what it has printed meanwhile.
    fn read(&mut self) -> anyhow::Result<()> {
        self.output.read_to_end(&mut self.rest)?;
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            self.lines.push_str(&line);
        }
        Ok(())
    }

    /// Kills it when it is not over in time, and says what it waited for.
    fn watch(&mut self) {
        if self.succeeded.is_none() && self.until.is_some_and(|until| until < Instant::now()) {
            self.until = None;
            let minutes = AT_MOST.as_secs() / 60;
            let threads = threads::list();
            self.lines += &format!("error: not over after {minutes} minutes; killed. {threads}");
            // Gone already is as good.
            let _ = kill(self.id, Signal::SIGKILL);
        }
    }
}

/// The processes that have ended, and whether each succeeded. Orphans are among them: they come
/// to the first process, which has to see their end as well.
fn reap() -> anyhow::Result<Vec<(Pid, bool)>> {
    let mut ended = Vec::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(id, status)) => ended.push((id, status == 0)),
            Ok(WaitStatus::Signaled(id, ..)) => ended.push((id, false)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(ended),
            Ok(_) => {}
            Err(error) => return Err(error).context("could not wait for processes"),
        }
    }
}
