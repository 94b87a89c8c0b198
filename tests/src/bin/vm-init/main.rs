//! The first process of a virtual machine that `cargo xtask vm` starts.
//!
//! Makes of a bare kernel what tests expect of a machine, runs them, and turns the machine off. Its
//! own lines begin with `@@`, for the caller at the other end of the serial line: `kernel RELEASE`
//! at first and `verdict` at last.

mod watch;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand, ValueEnum};
use nix::{
    libc,
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, dup2_stderr, dup2_stdout, getpid, setsid, sync},
};

use self::watch::Watch;

const TESTS: &str = "/sluice/tests";
/// What has the machine to itself: it fills a processor, and is to be quick, for of each dial the
/// kernel keeps something for a minute.
const ALONE: &str = "dials::";
/// How long that, and how long all other tests may take. With a processor of their own they take one
/// minute, and three.
const AT_MOST: [Duration; 2] = [Duration::from_secs(4 * 60), Duration::from_secs(12 * 60)];
const DEMO: &str = "/sluice/demo";
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
    /// Run the end-to-end tests
    Test {
        /// How cgroups are mounted
        #[arg(long, value_enum, default_value_t = Cgroups::Unified)]
        cgroups: Cgroups,
        /// Not the tests whose names contain one of these; in one word, for the kernel passes on few
        #[arg(long, value_delimiter = ',')]
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
            mount_cgroups(cgroups)?;
            switch_seldom()?;
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

fn mount_cgroups(layout: Cgroups) -> anyhow::Result<()> {
    const ROOT: &str = "/sys/fs/cgroup";
    if layout == Cgroups::Unified {
        return mount_at("cgroup2", ROOT, None);
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
    mount_at("cgroup2", &unified, None)
}

/// Lets this process and its children go on until they wait, or for 30 ms (kernels before 6.12 ignore
/// that): a processor that is emulated is slow for a while after each switch to another process. One
/// that is not does not care.
fn switch_seldom() -> anyhow::Result<()> {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_BATCH as u32,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 30_000_000,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of plain integers, and writes nothing.
    let refused = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()).context("sched_setattr") }
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
    let tests = || {
        let mut tests = Command::new(TESTS);
        // So that the reader learns what a test found to be impossible here.
        tests.arg("--show-output").args(skip.iter().flat_map(|name| ["--skip", name]));
        tests
    };
    let [short, long] = AT_MOST;
    let passed = match filter {
        Some(filter) => succeeds(tests().arg(filter), long)?,
        None => {
            let alone = succeeds(tests().arg(ALONE), short)?;
            succeeds(tests().args(["--skip", ALONE]), long)? && alone
        }
    };
    println!("@@ verdict {}", if passed { "passed" } else { "failed" });
    Ok(())
}

/// Runs a program of ours to its end, and tells whether it succeeded.
fn succeeds(program: &mut Command, at_most: Duration) -> anyhow::Result<bool> {
    environment(program);
    let child = program.stdin(Stdio::null()).spawn();
    let child = child.with_context(|| format!("could not run {program:?}"))?;
    let id = Pid::from_raw(child.id().cast_signed());
    let _watch = Watch::over(id, at_most);
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
    program.env("PATH", "/usr/sbin:/usr/bin:/sluice").env("HOME", "/root").env("TERM", "linux");
    // More than there are processors: some tests do little but wait.
    program.env("RUST_TEST_THREADS", "6");
    program.env("SLUICE_BIN", "/sluice/sluice").env("SLUICE_SAMPLE_BIN", "/sluice/sluice-sample");
}

/// What the demo prints last before it waits.
const KEPT: &str = "Everything runs until";

fn shell() -> anyhow::Result<()> {
    let (reader, writer) = io::pipe()?;
    let mut demo = Command::new(DEMO);
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
        "\nThis is that terminal. `sluice check` tells what this kernel has; `exit` ends the \
         machine.\n"
    );
    let terminal: File = OpenOptions::new().read(true).write(true).open(TERMINAL)?;
    let mut bash = Command::new("bash");
    environment(&mut bash);
    bash.arg("-i").env("PS1", "vm:\\w# ");
    bash.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    let lead = || {
        setsid()?;
        // SAFETY: an ioctl on the process's own standard input; no memory is touched.
        let refused = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
        if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
