//! A named network namespace, as `ip netns` makes them.

use std::{
    fs::{self, File},
    io::Write,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps them.
const FOLDER: &str = "/run/netns";

/// A network namespace under `/run/netns`. Its maker removes it; see [`delete_all`].
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes it; `ip netns exec NAME …` then runs commands in it.
    pub(crate) fn create(name: String) -> anyhow::Result<Self> {
        ip(&[], &format!("netns add {name}\n"))?;
        Ok(Self { name })
    }

    /// Takes its name away; the namespace itself goes with the last that is open of it.
    pub(crate) fn delete(&self) -> anyhow::Result<()> {
        ip(&[], &format!("netns delete {}\n", self.name))
    }

    /// That of a process, which need not have a name.
    pub fn of_process(pid: u32) -> Self {
        Self { name: format!("/proc/{pid}/ns/net") }
    }

    /// Its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        // An absolute path stays what it is.
        Path::new(FOLDER).join(&self.name)
    }

    pub(crate) fn open(&self) -> anyhow::Result<File> {
        let path = self.path();
        File::open(&path).with_context(|| format!("could not open {}", path.display()))
    }

    /// Runs `work` on a thread of its own inside the namespace: sockets made there belong to it
    /// for good, and no other thread ever moves.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let handle = self.open()?;
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(handle, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("could not enter {}", self.name))?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs lines of `ip` commands, all in one process.
    pub(crate) fn ip(&self, commands: &str) -> anyhow::Result<()> {
        ip(&["-n", &self.name], commands)
    }

    /// Sets kernel parameters of this namespace, by their paths below `/proc/sys`.
    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(name, value)| {
                let path = Path::new("/proc/sys").join(name);
                fs::write(&path, value)
                    .with_context(|| format!("could not set {} to {value}", path.display()))
            })
        })?
    }
}

/// Removes every namespace whose name starts with `prefix`.
pub(crate) fn delete_all(prefix: &str) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(FOLDER) else { return Ok(()) };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let commands: String = names
        .filter(|name| name.starts_with(prefix))
        .map(|name| format!("netns delete {name}\n"))
        .collect();
    if commands.is_empty() { Ok(()) } else { ip(&["-force"], &commands) }
}

fn ip(options: &[&str], commands: &str) -> anyhow::Result<()> {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("could not run ip (hint: cargo xtask setup installs iproute2)")?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A batch that fails early stops reading; what `ip` says about it is the better error.
    let _ = stdin.write_all(commands.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().context("could not wait for ip")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("ip {} refused: {}\n{commands}", options.join(" "), why.trim());
    }
    Ok(())
}
