//! Processor time. On a node a pod has its cgroup's weight, and can take no more than that from the
//! agent or from other pods. Here the attacker is threads of the same process as the bystander.

use std::{fs, io, process::Command};

use anyhow::ensure;
use tokio::runtime::{Builder, Handle, Runtime};

/// A thread for whoever is not to be disturbed by this process's other threads: those give way to
/// it, and to the agents.
pub(crate) struct Calm(Option<Runtime>);

impl Calm {
    /// All threads as they were, so that what is started now is not begun at a disadvantage.
    pub(crate) fn restore() -> anyhow::Result<()> {
        renice("0", &threads()?)
    }

    /// From here on the threads there are give way.
    pub(crate) fn begin() -> anyhow::Result<Self> {
        let others = threads()?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        renice("19", &others)?;
        Ok(Self(Some(runtime)))
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.0.as_ref().expect("taken when it is dropped").handle()
    }
}

impl Drop for Calm {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn threads() -> io::Result<Vec<String>> {
    fs::read_dir("/proc/self/task")?
        .map(|thread| Ok(thread?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn renice(priority: &str, threads: &[String]) -> anyhow::Result<()> {
    let mut command = Command::new("renice");
    let reniced = command.args(["-n", priority, "-p"]).args(threads).output()?;
    ensure!(reniced.status.success(), "{}", String::from_utf8_lossy(&reniced.stderr));
    Ok(())
}
