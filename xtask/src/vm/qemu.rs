//! How QEMU executes the machines' instructions.

use std::{env, fs, fs::File, process::Command};

use crate::needs;

/// How instructions are executed.
#[derive(Clone, Copy, Debug)]
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

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Without what costs more to translate than it saves: AVX, copies of one byte at a time
            // (ERMS, FSRM), a fifth level of page tables, and switches at each access of the
            // kernel's to a program's memory (SMAP).
            Self::Tcg => [
                "-accel",
                "tcg",
                "-cpu",
                "max,avx=off,avx2=off,fma=off,f16c=off,erms=off,fsrm=off,la57=off,smap=off",
            ],
        }
    }

    /// How many processors a machine has.
    ///
    /// QEMU before 8.1 may translate code in the moment in which another processor of the machine
    /// changes it, and keep what it made of the old: Linux patches itself with breakpoints, and a
    /// processor then runs into one that is long gone, for ever. Two machines at once are also
    /// quicker than one with two processors that interrupt each other.
    pub(crate) fn processors(self) -> usize {
        match self {
            Self::Kvm => 2,
            Self::Tcg => 1,
        }
    }

    /// QEMU, with no machine yet.
    pub(crate) fn command(self) -> Command {
        let mut command = Command::new(needs::QEMU);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(self.arguments());
        command
    }

    /// What the kernel is told because of how it is executed.
    ///
    /// QEMU keeps what it translated by address: programs that are always at the same one are
    /// translated once, which saves a third of the time of all tests. The time is read from the
    /// processor's counter, which Linux would distrust here: every other clock is a device. Memory
    /// is copied and cleared by loops (112 is `rep_good`), for QEMU goes through a repeated
    /// instruction step by step, and it is not cleared before it is given out. Nor does the kernel
    /// wait for its readers longer than it must (RCU): networks that are removed wait for them.
    pub(crate) fn parameters(self) -> &'static str {
        match self {
            Self::Kvm => "",
            Self::Tcg => {
                " norandmaps tsc=reliable clearcpuid=112 init_on_alloc=0 rcupdate.rcu_expedited=1"
            }
        }
    }
}
