//! A process of a pod in cgroups with names of its own making.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

use crate::{Bed, NodeName, cgroup};

/// Joins the cgroups that come after address, port and trace, and asks for `/health`.
const ASK: &str = r#"
    address=$1 port=$2 trace=$3
    shift 3
    for folder; do echo 0 >"$folder/cgroup.procs" || exit; done
    exec 3<>"/dev/tcp/$address/$port" || exit
    printf 'GET /health HTTP/1.0\r\ntraceparent: %s\r\n\r\n' "$trace" >&3
    cat <&3
"#;

/// Cgroups below those that a pod's process is in, one in every hierarchy: what whoever may write
/// to its own cgroups can make. They go when this is dropped.
#[derive(Debug)]
pub struct Pose {
    /// The pod's, in whose network is acted.
    process: u32,
    /// The process's own cgroups, and what is made below each.
    made: Vec<(PathBuf, PathBuf)>,
}

impl Pose {
    /// Of the pod `uid` on `node`; `path` is made below the cgroups of its oldest process.
    ///
    /// # Errors
    /// When there is no such pod, or the cgroups cannot be made.
    pub fn of_pod(bed: &Bed, node: NodeName, uid: &str, path: &str) -> anyhow::Result<Self> {
        let process = bed.process_of(node, uid)?;
        let mut pose = Self { process, made: Vec::new() };
        for pod in cgroup::of_pod(node, uid)? {
            let own = cgroup::holding(&pod, process);
            let own = own.with_context(|| format!("{process} is not in {}", pod.display()))?;
            pose.made.push((own.clone(), own.join(path)));
            cgroup::make_below(&own, Path::new(path))?;
        }
        Ok(pose)
    }

    /// Asks the order service at `to` for its health from inside: what it answered. `trace` is a
    /// `traceparent`.
    ///
    /// # Errors
    /// When nothing was answered within five seconds.
    pub fn health(&self, to: SocketAddr, trace: &str) -> anyhow::Result<String> {
        let mut timeout = Command::new("nsenter");
        timeout.args(["--target", &self.process.to_string(), "--net", "--pid", "timeout"]);
        ask(timeout, self.made.iter().map(|(_, made)| made.as_path()), to, trace)
    }
}

/// The same as a process of a node itself, such as the kubelet.
///
/// # Errors
/// When nothing was answered within five seconds.
pub fn health_asked_by(
    bed: &Bed,
    node: NodeName,
    to: SocketAddr,
    trace: &str,
) -> anyhow::Result<String> {
    ask(bed.node_command(node, "timeout")?, [], to, trace)
}

fn ask<'a>(
    mut timeout: Command,
    cgroups: impl IntoIterator<Item = &'a Path>,
    to: SocketAddr,
    trace: &str,
) -> anyhow::Result<String> {
    timeout.args(["5", "bash", "-c", ASK, "bash", &to.ip().to_string(), &to.port().to_string()]);
    timeout.arg(trace).args(cgroups);
    let output = timeout.output().with_context(|| format!("could not run {timeout:?}"))?;
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(answer.starts_with("HTTP/1.0 200"), "{}: {answer}{said}", output.status);
    Ok(answer)
}

impl Drop for Pose {
    fn drop(&mut self) {
        for (own, made) in &self.made {
            // The pod, and all of its cgroups, may be gone.
            made.ancestors().take_while(|above| above != own).try_for_each(fs::remove_dir).ok();
        }
    }
}
