//! Processes in a namespace and a cgroup, which never outlive the test.

use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, OnceLock, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        prctl::set_pdeathsig,
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, killpg},
    },
    unistd::{Pid, write},
};

use crate::{cgroup::Cgroup, lab::Ground, netns::Netns, output::Output};

/// Where a process runs.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    ground: Arc<Ground>,
    netns: Arc<File>,
    cgroup: Cgroup,
}

impl Place {
    pub(crate) fn new(ground: Arc<Ground>, netns: &Netns, cgroup: &Cgroup) -> anyhow::Result<Self> {
        Ok(Self { ground, netns: Arc::new(netns.open()?), cgroup: cgroup.clone() })
    }

    /// The cgroup of what runs there.
    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The lab's working directory.
    pub(crate) fn lab_directory(&self) -> &Path {
        &self.ground.directory
    }

    /// Starts a process there. Its output goes to a file of the lab and into [`Process::output`].
    pub(crate) fn spawn(&self, name: &str, command: Command) -> anyhow::Result<Process> {
        self.spawn_with(name, command, Stdio::null())
    }

    /// Starts a process there that reads from `stdin`.
    pub(crate) fn spawn_with(
        &self,
        name: &str,
        mut command: Command,
        stdin: Stdio,
    ) -> anyhow::Result<Process> {
        let log = self.ground.directory.join(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).open(&log);
        let (reader, writer) = std::io::pipe().context("could not make a pipe")?;
        let copy = writer.try_clone().context("could not copy a pipe")?;
        command.stdin(stdin).stdout(copy).stderr(writer);
        let child = self.start(command).with_context(|| format!("could not start {name}"))?;
        let output = Output::follow(reader, log.context("could not make a log file")?);
        let _ground = self.ground.clone();
        Ok(Process { name: name.to_owned(), child, status: None, output, _ground })
    }

    /// Runs a command there to its end.
    pub(crate) fn run(&self, mut command: Command) -> anyhow::Result<Finished> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let what = format!("{command:?}");
        let child = self.start(command).with_context(|| format!("could not run {what}"))?;
        let output = child.wait_with_output().with_context(|| format!("could not run {what}"))?;
        Ok(Finished {
            what,
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn start(&self, mut command: Command) -> anyhow::Result<Child> {
        let procs = self.cgroup.path().join("cgroup.procs");
        let procs = OwnedFd::from(
            OpenOptions::new()
                .write(true)
                .open(&procs)
                .with_context(|| format!("could not open {}", procs.display()))?,
        );
        let netns = self.netns.clone();
        let (_, most_files) = getrlimit(Resource::RLIMIT_NOFILE)?;
        command.process_group(0);
        let enter = move || {
            // First, so that whatever the process does from here on is accounted to the pod.
            write(procs.as_fd(), b"0")?;
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            set_pdeathsig(Signal::SIGKILL)?;
            // What a service manager gives a program, unless told otherwise.
            setrlimit(Resource::RLIMIT_NOFILE, most_files.min(1024), most_files)?;
            Ok(())
        };
        // SAFETY: between fork and exec, `enter` makes four system calls, with descriptors and numbers
        // from before; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(enter) };
        on_lasting_thread(move || command.spawn().map_err(Into::into))
    }
}

/// Runs `work` on a thread that lives as long as this process. The kernel sends a child its
/// parent-death signal when the *thread* that started it ends, and those of tests end early.
fn on_lasting_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    type Work = Box<dyn FnOnce() + Send>;
    static THREAD: OnceLock<mpsc::Sender<Work>> = OnceLock::new();
    let thread = THREAD.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Work>();
        thread::spawn(move || receiver.into_iter().for_each(|work| work()));
        sender
    });
    let (sender, receiver) = mpsc::channel();
    thread
        .send(Box::new(move || drop(sender.send(work()))))
        .expect("the thread ends with the process");
    receiver.recv().expect("the thread ends with the process")
}

/// A running process; dropping it kills it and all it started.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    output: Output,
    _ground: Arc<Ground>,
}

impl Process {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Bytes that it has in memory.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident(&self) -> anyhow::Result<u64> {
        self.memory("VmRSS:")
    }

    /// The most bytes that it ever had in memory.
    ///
    /// # Errors
    /// When it has ended.
    pub fn peak(&self) -> anyhow::Result<u64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let value = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = value.and_then(|value| value.split_whitespace().next());
        Ok(kib.with_context(|| format!("no {field}"))?.parse::<u64>()? << 10)
    }

    /// How many files it has open.
    ///
    /// # Errors
    /// When it has ended.
    pub fn open_files(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.id()))?.count())
    }

    /// What it has printed so far, both streams in one.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Sends it a signal; not to what it started.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        if self.status.is_some() {
            bail!("{} has ended already", self.name);
        }
        nix::sys::signal::kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .with_context(|| format!("could not signal {}", self.name))
    }

    /// Whether it waits for something to happen: state S of proc_pid_stat(5).
    pub(crate) fn sleeps(&self) -> anyhow::Result<bool> {
        let stat = format!("/proc/{}/stat", self.id());
        let stat = fs::read_to_string(&stat).with_context(|| format!("could not read {stat}"))?;
        // The field before it, the program's name in parentheses, may hold anything.
        Ok(stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('S')))
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it still runs after `at_most`.
    pub async fn exit(&mut self, at_most: Duration) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        // Its pipe ends with it, so this is an event and not a poll.
        self.output.end(at_most).await.with_context(|| format!("{} has not ended", self.name))?;
        let status = self.child.wait().with_context(|| format!("could not await {}", self.name))?;
        self.status = Some(status);
        Ok(status)
    }

    /// Kills it with SIGKILL, as a crash would, and all it started.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // Gone already is as good.
            let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
            self.status = self.child.wait().ok().or(Some(ExitStatus::from_raw(0)));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("---- the last lines of {} ----\n{}", self.name, self.output.tail(60));
        }
    }
}

/// What a command that ran to its end left.
#[derive(Clone, Debug)]
pub struct Finished {
    what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Finished {
    /// Its output.
    ///
    /// # Errors
    /// When it did not succeed, with what it complained of.
    pub fn success(self) -> anyhow::Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        bail!("{} failed ({}): {}", self.what, self.status, self.stderr.trim())
    }
}
