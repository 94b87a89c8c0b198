//! A virtual machine: QEMU with a kernel, an archive, and two serial lines.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{archive::Unpacked, qemu::Accelerator};

/// How long a machine may run before it counts as stuck: longer than its tests may.
const AT_MOST: Duration = Duration::from_secs(20 * 60);
const MEMORY: &str = "2G";

/// A machine that can be started.
pub(crate) struct Machine<'a> {
    pub(crate) accelerator: Accelerator,
    pub(crate) kernel: &'a Unpacked,
    /// Its root file system, as an archive.
    pub(crate) root: &'a Path,
}

impl Machine<'_> {
    fn command(&self, init: &[&str]) -> Command {
        let mut command = self.accelerator.command();
        command.args(["-smp", &self.accelerator.processors().to_string(), "-m", MEMORY]);
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(self.root);
        // A kernel in trouble says so and ends the machine at once: a bug of its own (`oops`), or
        // a processor that goes on with one thing for two minutes (twice `watchdog_thresh`).
        // What follows the dashes is for the init program.
        let line = format!(
            "console=ttyS0 quiet panic=-1 oops=panic softlockup_panic=1 watchdog_thresh=60 \
             mitigations=off{} rdinit=/sluice/init -- {}",
            self.accelerator.parameters(),
            init.join(" ")
        );
        command.args(["-append", &line]);
        command
    }

    /// Runs the init program with `arguments`, and hands each line it and its tests print to
    /// `each_line`. What the kernel says goes to the file `console`.
    pub(crate) fn run(
        &self,
        arguments: &[&str],
        console: &Path,
        mut each_line: impl FnMut(&str),
    ) -> anyhow::Result<()> {
        let mut command = self.command(arguments);
        command.args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut qemu =
            Running(command.spawn().with_context(|| format!("could not run {command:?}"))?);
        let output = qemu.0.stdout.take().expect("stdout is piped");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
            for line in lines {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        let deadline = Instant::now() + AT_MOST;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => each_line(&line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the machine did not end within {} minutes", AT_MOST.as_secs() / 60)
                }
            }
        }
        let status = qemu.0.wait().context("could not wait for QEMU")?;
        if !status.success() {
            bail!("QEMU failed ({status}): {command:?}");
        }
        Ok(())
    }

    /// Gives the machine to the person at the terminal.
    pub(crate) fn shell(&self) -> anyhow::Result<()> {
        let mut command = self.command(&["shell"]);
        // Through `mon:`, Ctrl-C goes to the machine and Ctrl-A x ends it.
        command.args(["-serial", "mon:stdio"]);
        let status = command.status().with_context(|| format!("could not run {command:?}"))?;
        if !status.success() {
            bail!("QEMU failed ({status})");
        }
        Ok(())
    }
}

/// A machine that ends with the work on it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
