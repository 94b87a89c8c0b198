//! The first process of a virtual machine that `cargo xtask vm` starts.
//!
//! Makes of a bare kernel what tests expect of a machine, runs every program in `/sluice/run`,
//! and turns the machine off. Its own lines begin with `@@`, for the caller at the other end of
//! the serial line: `kernel RELEASE`, `program NAME` before each program, and `verdict` at last.

mod watch;

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand, ValueEnum};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        resource::{Resource, getrlimit, setrlimit},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, dup2_stderr, dup2_stdout, getpid, setsid, sync},
};
use sluice_tests::{Attachment, CgroupProgram, OnConnect};

use self::watch::Watch;

const PROGRAMS: &str = "/sluice/run";
/// The serial line for whoever reads results; the kernel's messages go to the first.
const RESULTS: &str = "/dev/ttyS1";
const TERMINAL: &str = "/dev/ttyS0";

#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    work: Work,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Run the test programs
    Test {
        /// How cgroups are mounted
        #[arg(long, value_enum, default_value_t = Cgroups::Unified)]
        cgroups: Cgroups,
        /// Not the tests whose name contains this
        #[arg(long)]
        skip: Vec<String>,
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Run the demo and give a prompt beside it
    Shell,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Cgroups {
    /// cgroup2 at /sys/fs/cgroup
    Unified,
    /// Version 1 at /sys/fs/cgroup, and cgroup2 below it
    Hybrid,
}

fn main() -> ExitCode {
    if getpid() != Pid::from_raw(1) {
        eprintln!("error: this turns the machine off (hint: it is for `cargo xtask vm`)");
        return ExitCode::FAILURE;
    }
    if let Err(error) = work() {
        println!("@@ verdict error: {error:#}");
    }
    sync();
    // Does not return; a kernel without this would panic when its first process ends, which
    // ends the machine as well.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    ExitCode::FAILURE
}

fn work() -> anyhow::Result<()> {
    make(&[("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")])?;
    let options = Options::try_parse();
    if !matches!(&options, Ok(Options { work: Work::Shell })) {
        say_to(RESULTS)?;
    }
    let options = options.context("wrong arguments")?;
    fs::create_dir_all("/dev/pts")?;
    make(&[("devpts", "/dev/pts"), ("tmpfs", "/run"), ("tmpfs", "/tmp"), ("bpf", "/sys/fs/bpf")])?;
    done(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    match options.work {
        Work::Test { cgroups, skip, filter } => {
            let cgroup2 = mount_cgroups(cgroups)?;
            let _kept = keep_programs_below(&cgroup2)?;
            test(filter.as_deref(), &skip)
        }
        Work::Shell => {
            mount_cgroups(Cgroups::Unified)?;
            shell()
        }
    }
}

/// Mounts file systems, each by its type.
fn make(mounts: &[(&str, &str)]) -> anyhow::Result<()> {
    for &(kind, place) in mounts {
        mount_at(kind, place, None)?;
    }
    Ok(())
}

fn mount_at(kind: &str, place: &str, options: Option<&str>) -> anyhow::Result<()> {
    mount(Some(kind), place, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("could not mount {kind} at {place}"))
}

/// Mounts cgroups, and returns where those of version 2 are.
fn mount_cgroups(layout: Cgroups) -> anyhow::Result<PathBuf> {
    const ROOT: &str = "/sys/fs/cgroup";
    if layout == Cgroups::Unified {
        mount_at("cgroup2", ROOT, None)?;
        return Ok(ROOT.into());
    }
    mount_at("tmpfs", ROOT, None)?;
    // As systemd has it: some controllers with version 1, and version 2 for keeping track.
    for (name, controllers) in
        [("cpu,cpuacct", "cpu,cpuacct"), ("net_cls,net_prio", "net_cls,net_prio")]
    {
        let place = format!("{ROOT}/{name}");
        fs::create_dir(&place)?;
        mount_at("cgroup", &place, Some(controllers))?;
    }
    let unified = format!("{ROOT}/unified");
    fs::create_dir(&unified)?;
    mount_at("cgroup2", &unified, None)?;
    Ok(unified.into())
}

/// Keeps programs attached to a cgroup where nothing runs.
///
/// Linux changes its code when a first such program is attached and when the last is gone, with a
/// breakpoint in between. QEMU before 8.1 may translate code in the moment in which another
/// processor changes it and keep what it made of the old: a processor then ran into a breakpoint
/// that was long gone, for ever.
fn keep_programs_below(cgroup2: &Path) -> anyhow::Result<[CgroupProgram; 2]> {
    let cgroup = cgroup2.join("kept");
    fs::create_dir(&cgroup)?;
    let attach = |ipv6| CgroupProgram::attach(&cgroup, Attachment::Link, ipv6, OnConnect::Allow);
    // Loading lifts the limit on old kernels, and tests are to find it as it was.
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    let kept = [attach(false)?, attach(true)?];
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
    Ok(kept)
}

/// Sends what this process and its children print to another terminal.
fn say_to(terminal: &str) -> anyhow::Result<()> {
    let terminal = OpenOptions::new().read(true).write(true).open(terminal)?;
    dup2_stdout(terminal.as_fd())?;
    dup2_stderr(terminal.as_fd())?;
    Ok(())
}

fn test(filter: Option<&str>, skip: &[String]) -> anyhow::Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("@@ kernel {}", release.trim());
    let mut names = Vec::new();
    for entry in fs::read_dir(PROGRAMS).with_context(|| format!("could not list {PROGRAMS}"))? {
        names.push(entry?.file_name());
    }
    names.sort();
    let mut red = Vec::new();
    for name in names {
        println!("@@ program {}", name.display());
        let mut program = Command::new(Path::new(PROGRAMS).join(&name));
        // So that the reader learns what a test found to be impossible here.
        program.arg("--show-output").args(filter);
        program.args(skip.iter().flat_map(|name| ["--skip", name]));
        if !run(&mut program)? {
            red.push(name.display().to_string());
        }
    }
    if red.is_empty() {
        println!("@@ verdict passed");
    } else {
        println!("@@ verdict failed: {}", red.join(", "));
    }
    Ok(())
}

/// Runs a program of ours to its end, and tells whether it succeeded.
fn run(program: &mut Command) -> anyhow::Result<bool> {
    environment(program);
    let child = program.stdin(Stdio::null()).spawn();
    let child = child.with_context(|| format!("could not run {program:?}"))?;
    let id = Pid::from_raw(child.id().cast_signed());
    let _watch = Watch::over(id);
    loop {
        // Orphans come to the first process, which has to see their end as well.
        match waitpid(None, None)? {
            WaitStatus::Exited(ended, status) if ended == id => return Ok(status == 0),
            WaitStatus::Signaled(ended, _, _) if ended == id => return Ok(false),
            _ => {}
        }
    }
}

fn environment(program: &mut Command) {
    program.env_clear().current_dir("/root");
    program.env("PATH", "/usr/sbin:/usr/bin").env("HOME", "/root").env("TERM", "linux");
    // More than there are processors: some tests do little but wait.
    program.env("RUST_TEST_THREADS", "6");
    program.env("SLUICE_BIN", "/sluice/sluice").env("SLUICE_SAMPLE_BIN", "/sluice/sluice-sample");
}

/// What the demo prints last before it waits.
const KEPT: &str = "Everything runs until";

fn shell() -> anyhow::Result<()> {
    let (reader, writer) = std::io::pipe()?;
    let mut demo = Command::new(Path::new(PROGRAMS).join("demo"));
    environment(&mut demo);
    demo.arg("--keep").stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut demo = demo.spawn().context("could not run the demo")?;
    let mut ready = false;
    for line in BufReader::new(reader).lines() {
        let line = line?;
        println!("{line}");
        ready |= line.contains(KEPT);
        // The last of the commands that it prints.
        if ready && line.contains("tail -f") {
            break;
        }
    }
    if !ready {
        bail!("the demo ended: {}", demo.wait()?);
    }
    println!(
        "\nsluice {{status,check}} work on a node: ip netns exec …; `exit` ends the machine.\n"
    );
    let terminal: File = OpenOptions::new().read(true).write(true).open(TERMINAL)?;
    let mut bash = Command::new("bash");
    environment(&mut bash);
    bash.arg("-i").env("PS1", "vm:\\w# ");
    bash.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    let lead = || {
        setsid()?;
        // SAFETY: an ioctl on the process's own standard input; no memory is touched.
        let refused = unsafe { nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) };
        if refused == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec, `lead` makes two system calls; it allocates nothing and
    // takes no lock.
    unsafe { bash.pre_exec(lead) };
    bash.status().context("could not run bash")?;
    Ok(())
}

fn done(command: &mut Command) -> anyhow::Result<()> {
    environment(command);
    let status = command.status().with_context(|| format!("could not run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
