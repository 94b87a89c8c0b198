//! Which QEMU runs the machines, and how it executes their instructions.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use crate::{
    apt::{self, Suites},
    needs,
};

/// Before it, QEMU's translation is not to be trusted with a Linux of two processors: one may
/// translate code while the other changes it, and keep what it made of the old. Linux changes
/// its code when, say, a first program is attached to a cgroup, with a breakpoint in between, and
/// now and then a processor ran into one that was long gone, for ever.
const TRANSLATES_SAFELY: Version = Version(8, 1);

/// How instructions are executed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Accelerator {
    /// By the processor.
    Kvm,
    /// Translated by QEMU, about ten times slower.
    Tcg,
}

impl Accelerator {
    /// What works here. A machine that is itself virtual often has `/dev/kvm` and yet cannot
    /// run a kernel with it; the processor's own flags tell.
    fn find() -> Self {
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
                "tcg,thread=multi",
                "-cpu",
                "max,avx=off,avx2=off,fma=off,f16c=off,erms=off,fsrm=off,la57=off,smap=off",
            ],
        }
    }
}

/// QEMU on this machine.
#[derive(Debug)]
pub(crate) struct Qemu {
    accelerator: Accelerator,
    program: PathBuf,
    /// Where its firmware is, if not where it looks by itself.
    firmware: Vec<PathBuf>,
}

impl Qemu {
    /// The one on the path; or where that cannot be trusted, a newer one that Debian has made for
    /// the same release, fetched into the cache.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let accelerator = Accelerator::find();
        let installed = Self { accelerator, program: needs::QEMU.into(), firmware: Vec::new() };
        let version = installed.version()?;
        if accelerator == Accelerator::Kvm || version >= TRANSLATES_SAFELY {
            return Ok(installed);
        }
        let Version(major, minor) = TRANSLATES_SAFELY;
        let newer = Self::backported(accelerator).and_then(|newer| match newer.version()? {
            version if version >= TRANSLATES_SAFELY => Ok(newer),
            Version(major, minor) => bail!("Debian's backports have {major}.{minor}"),
        });
        newer.with_context(|| {
            format!("QEMU is too old (hint: without KVM, this needs {major}.{minor} or newer)")
        })
    }

    /// The newest that Debian has made for this machine's release. The libraries it is linked
    /// with are those of the release's own.
    fn backported(accelerator: Accelerator) -> anyhow::Result<Self> {
        let names = [needs::QEMU_PACKAGE, "qemu-system-common", "qemu-system-data", "seabios"];
        let apt::Unpacked { folder, .. } = apt::Unpacked::find(
            "a newer QEMU",
            needs::cache().join("vm/apt/qemu"),
            &needs::cache().join("vm/qemu"),
            Suites::backports_here,
            |apt| names.into_iter().map(|name| Ok(apt.show(name)?.package)).collect(),
            |(_, version)| version.clone(),
        )?;
        let firmware = ["usr/share/qemu", "usr/share/seabios"].map(|place| folder.join(place));
        let program = folder.join("usr/bin").join(needs::QEMU);
        Ok(Self { accelerator, program, firmware: firmware.into() })
    }

    fn version(&self) -> anyhow::Result<Version> {
        let said = Command::new(&self.program).arg("--version").output();
        let said = said.with_context(|| format!("could not run {}", self.program.display()))?;
        let text = String::from_utf8_lossy(&said.stdout);
        Version::parse(&text)
            .with_context(|| format!("{} says no version: {text}", self.program.display()))
    }

    /// Runs it, with no machine yet.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        let with_option = |place: &PathBuf| [Path::new("-L").to_owned(), place.clone()];
        command.args(self.firmware.iter().flat_map(with_option));
        command.args(self.accelerator.arguments());
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
    pub(crate) fn parameters(&self) -> &'static str {
        match self.accelerator {
            Accelerator::Kvm => "",
            Accelerator::Tcg => {
                " norandmaps tsc=reliable clearcpuid=112 init_on_alloc=0 rcupdate.rcu_expedited=1"
            }
        }
    }
}

/// Major and minor.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Version(u32, u32);

impl Version {
    /// From `QEMU emulator version 7.2.22 (…)`.
    fn parse(said: &str) -> Option<Self> {
        let (_, version) = said.split_once(" version ")?;
        let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_qemu_says_and_compares_by_number() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(Version::parse(debian), Some(Version(7, 2)));
        assert_eq!(Version::parse("QEMU emulator version 11.1\n"), Some(Version(11, 1)));
        assert_eq!(Version::parse("command not found"), None);
        assert!(Version(7, 2) < TRANSLATES_SAFELY && TRANSLATES_SAFELY < Version(10, 0));
    }
}
