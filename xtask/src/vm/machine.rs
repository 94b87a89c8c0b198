//! A virtual machine: QEMU with a kernel, an archive, and two serial lines.

use std::{
    env, fs,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::archive::Unpacked;
use crate::needs;

/// How long a machine may run before it counts as stuck.
const AT_MOST: Duration = Duration::from_secs(20 * 60);
/// Processors a machine has.
const PROCESSORS: &str = "2";
const MEMORY: &str = "2G";

/// How instructions are executed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Accelerator {
    /// By the processor.
    Kvm,
    /// Translated by QEMU, about ten times slower.
    Tcg,
}

impl Accelerator {
    /// What works here. A machine that is itself virtual often has `/dev/kvm` and yet cannot
    /// run a kernel with it; the processor's own flags tell.
    pub(crate) fn find() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let virtualises = cpu.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
        let arm = env::consts::ARCH == "aarch64";
        let opens = File::options().read(true).write(true).open("/dev/kvm").is_ok();
        if opens && (virtualises || arm) { Self::Kvm } else { Self::Tcg }
    }

    fn apply(self, qemu: &mut Command) {
        match self {
            Self::Kvm => qemu.args(["-accel", "kvm", "-cpu", "host"]),
            // Without what costs more to translate than it saves: AVX, copies of one byte at a time
            // (ERMS, FSRM), a fifth level of page tables, and switches at each access of the
            // kernel's to a program's memory (SMAP).
            Self::Tcg => qemu.args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max,avx=off,avx2=off,fma=off,f16c=off,erms=off,fsrm=off,la57=off,smap=off",
            ]),
        };
    }

    /// QEMU keeps what it translated by address: programs that are always at the same one are
    /// translated once, which saves a third of the time of all tests. The time is read from the
    /// processor's counter, which Linux would distrust here: every other clock is a device. Memory
    /// is copied and cleared by loops (112 is `rep_good`), for QEMU goes through a repeated
    /// instruction step by step, and it is not cleared before it is given out. Nor does the kernel
    /// wait for its readers longer than it must (RCU): networks that are removed wait for them.
    fn parameters(self) -> &'static str {
        match self {
            Self::Kvm => "",
            Self::Tcg => {
                " norandmaps tsc=reliable clearcpuid=112 init_on_alloc=0 rcupdate.rcu_expedited=1"
            }
        }
    }
}

fn qemu(kernel: &Unpacked, archive: &Path, parameters: &str, init: &[&str]) -> Command {
    let accelerator = Accelerator::find();
    let mut qemu = Command::new(needs::QEMU);
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    accelerator.apply(&mut qemu);
    qemu.args(["-smp", PROCESSORS, "-m", MEMORY]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(archive);
    // panic: the machine ends at once. What follows the dashes is for the init program.
    let line = format!(
        "console=ttyS0 panic=-1 mitigations=off{}{parameters} rdinit=/sluice/init -- {}",
        accelerator.parameters(),
        init.join(" ")
    );
    qemu.args(["-append", &line]);
    qemu
}

/// Runs the init program with `arguments`, and hands each line it and its tests print to
/// `each_line`. What the kernel says goes to the file `console`.
pub(crate) fn run(
    kernel: &Unpacked,
    archive: &Path,
    arguments: &[&str],
    console: &Path,
    mut each_line: impl FnMut(&str),
) -> anyhow::Result<()> {
    let mut command = qemu(kernel, archive, " quiet", arguments);
    command.args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut qemu = Running(command.spawn().with_context(|| format!("could not run {command:?}"))?);
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
                bail!(
                    "kernel {} did not end within {} minutes",
                    kernel.kernel,
                    AT_MOST.as_secs() / 60
                )
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
pub(crate) fn shell(kernel: &Unpacked, archive: &Path) -> anyhow::Result<()> {
    let mut command = qemu(kernel, archive, " quiet", &["shell"]);
    // Through `mon:`, Ctrl-C goes to the machine and Ctrl-A x ends it.
    command.args(["-serial", "mon:stdio"]);
    let status = command.status().with_context(|| format!("could not run {command:?}"))?;
    if !status.success() {
        bail!("QEMU failed ({status})");
    }
    Ok(())
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
