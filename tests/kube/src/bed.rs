//! Bringing a bed up, finding it, entering it, taking it down.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    cgroup::{self, Group},
    component::log,
    control::{READY, STAY},
    node::CREDENTIALS,
    objects::DNS_USER,
    pki::{Authority, service_account_key},
    place::{API_SERVICE, CONTROL, FOLDER, NODES, NodeName, control_folder, image, log_folder},
};

/// A cluster that is up.
#[derive(Clone, Debug)]
pub struct Bed {
    control: Pid,
    /// Where its programs are, in the form of PATH.
    path: OsString,
}

impl Bed {
    /// Brings a cluster up; it stays when this process ends. `maker` is the program `kube-bed`,
    /// `programs` are folders in the form of PATH, `images` is a folder of archives for nodes.
    ///
    /// # Errors
    /// When there is a bed, or when this one does not come up: nothing of it runs then, and its
    /// logs stay for whoever looks.
    pub fn up(maker: &Path, programs: &OsStr, images: &Path) -> anyhow::Result<Self> {
        if cgroup::populated()? {
            bail!("there is a bed already (hint: cargo xtask kube down takes it down)");
        }
        // What one that died may have left.
        Self::down()?;
        let path = search_path(programs)?;
        let started = lay().and_then(|()| start(maker, &path, images));
        if let Err(error) = started {
            cgroup::delete()?;
            return Err(error.context(format!(
                "the cluster did not come up (hint: {} and {FOLDER}/nodes/*/log have all that its \
                 programs said)",
                log_folder().display()
            )));
        }
        Self::find()?.context("the cluster was gone as soon as it was up")
    }

    /// The cluster that is up, if there is one.
    ///
    /// # Errors
    /// When the machine has no cgroup2.
    pub fn find() -> anyhow::Result<Option<Self>> {
        let Ok(path) = fs::read_to_string(complete()) else { return Ok(None) };
        let control = cgroup::first_process(Group::Control)?;
        Ok(control.map(|control| Self { control, path: path.into() }))
    }

    /// Takes down whatever there is of a bed; nothing is as good.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub fn down() -> anyhow::Result<()> {
        cgroup::delete()?;
        match fs::remove_dir_all(FOLDER) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("could not remove {FOLDER}"))
            }
            _ => Ok(()),
        }
    }

    /// The first process of the control plane's namespaces.
    pub fn control(&self) -> u32 {
        self.control.as_raw().unsigned_abs()
    }

    /// A command beside the API server: `kubectl` and `helm` are found there and know the
    /// cluster, and this process's working directory is its own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.enter(self.control, program);
        command.envs(environment());
        command
    }

    /// `kubectl` beside the API server, as whoever has this token.
    pub fn kubectl_as(&self, token: &str) -> Command {
        let mut kubectl = self.command("kubectl");
        // Without the administrator's certificate, which would count more.
        kubectl.args(["--kubeconfig=/dev/null", &format!("--server=https://{CONTROL}:6443")]);
        kubectl.arg("--certificate-authority").arg(control_folder().join("ca.crt"));
        kubectl.arg(format!("--token={token}"));
        kubectl
    }

    /// A command on a node, as a user logged in there would run it.
    ///
    /// # Errors
    /// When the node is gone.
    pub fn node_command(
        &self,
        node: NodeName,
        program: impl AsRef<OsStr>,
    ) -> anyhow::Result<Command> {
        let first = cgroup::first_process(Group::System(node))?;
        Ok(self.enter(first.with_context(|| format!("{node} is gone"))?, program))
    }

    /// Stops a program of the control plane in its tracks, until the answer is dropped: whoever
    /// asks it hears nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, program: &str) -> anyhow::Result<Paused> {
        let processes = cgroup::processes(Group::Control, program)?;
        ensure!(!processes.is_empty(), "no {program} runs");
        let paused = Paused(processes);
        paused.signal(Signal::SIGSTOP);
        Ok(paused)
    }

    /// Kills a program in the pods of a node, as a crash would; `program` is the beginning of its
    /// command line.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self, node: NodeName, program: &str) -> anyhow::Result<()> {
        let processes = cgroup::pods_processes(node, program)?;
        ensure!(!processes.is_empty(), "no {program} runs on {node}");
        for process in processes {
            kill(process, Signal::SIGKILL).with_context(|| format!("could not kill {program}"))?;
        }
        Ok(())
    }

    /// What is in a file as a program in the pods of a node sees it; `program` is the beginning of
    /// its command line.
    ///
    /// # Errors
    /// When it does not run, or has no such file.
    pub fn file_of(&self, node: NodeName, program: &str, path: &str) -> anyhow::Result<String> {
        let processes = cgroup::pods_processes(node, program)?;
        let process = processes.first().with_context(|| format!("no {program} runs on {node}"))?;
        let file = format!("/proc/{process}/root{path}");
        fs::read_to_string(&file).with_context(|| format!("could not read {file}"))
    }

    /// A process of a pod on `node`, by its number outside.
    ///
    /// # Errors
    /// When the pod has none.
    pub fn process_of(&self, node: NodeName, uid: &str) -> anyhow::Result<u32> {
        let processes = cgroup::of_pod(node, uid)?.into_iter().flat_map(|pod| cgroup::below(&pod));
        processes.min().with_context(|| format!("pod {uid} has no process on {node}"))
    }

    fn enter(&self, first: Pid, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &first.to_string(), "--mount", "--net", "--pid", "--uts"]);
        // Entering the mounts leads to their root.
        let here = env::current_dir().unwrap_or_else(|_| "/".into());
        command.args(["env", "--chdir"]).arg(here).arg(program).env("PATH", &self.path);
        command
    }
}

/// Programs that do nothing for now.
#[derive(Debug)]
pub struct Paused(Vec<Pid>);

impl Paused {
    fn signal(&self, signal: Signal) {
        for process in &self.0 {
            // Gone already is as good.
            let _ = kill(*process, signal);
        }
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
    }
}

/// How `kubectl` and `helm` find the cluster, and keep what they write inside its folder.
pub(crate) fn environment() -> [(&'static str, PathBuf); 5] {
    let folder = control_folder();
    [
        ("KUBECONFIG", folder.join("admin.kubeconfig")),
        ("KUBECACHEDIR", folder.join("kubectl")),
        ("HELM_CACHE_HOME", folder.join("helm/cache")),
        ("HELM_CONFIG_HOME", folder.join("helm/config")),
        ("HELM_DATA_HOME", folder.join("helm/data")),
    ]
}

/// The file that marks a complete cluster; it holds the PATH of its programs.
fn complete() -> PathBuf {
    Path::new(FOLDER).join("path")
}

/// The programs' folders before this machine's own.
fn search_path(programs: &OsStr) -> anyhow::Result<OsString> {
    let system = OsStr::new("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let folders = env::split_paths(programs).chain(env::split_paths(system));
    env::join_paths(folders).context("a folder has a colon in its name")
}

/// Makes the cgroups, the folders and what is in them.
fn lay() -> anyhow::Result<()> {
    let make = |folder: &Path| {
        fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))
    };
    cgroup::make(Group::Control)?;
    for folder in [log_folder(), control_folder()] {
        make(&folder)?;
    }
    let authority = Authority::create()?;
    let folder = control_folder();
    authority.publish(&folder)?;
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
    let addresses = [CONTROL, API_SERVICE, Ipv4Addr::LOCALHOST].map(IpAddr::V4);
    authority.server(&folder, "apiserver", &names, &addresses)?;
    service_account_key(&folder)?;
    for (name, user, group) in [
        ("admin", "admin", Some("system:masters")),
        ("apiserver-kubelet", "apiserver-kubelet", Some("system:masters")),
        ("controller-manager", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("coredns", DNS_USER, None),
    ] {
        authority.user(&folder, name, user, group)?;
    }
    for node in NODES {
        cgroup::make(Group::System(node))?;
        cgroup::make(Group::Kubelet(node))?;
        let folder = node.folder();
        make(&folder.join("log"))?;
        let credentials = folder.join("lib").join(CREDENTIALS);
        make(&credentials)?;
        authority.publish(&credentials)?;
        let user = format!("system:node:{node}");
        authority.user(&credentials, "kubelet", &user, Some("system:nodes"))?;
        authority.user(&credentials, "proxy", "system:kube-proxy", None)?;
    }
    Ok(())
}

/// Starts the first process and follows it until the cluster is complete. When this process
/// dies meanwhile, the cluster does too.
fn start(maker: &Path, path: &OsStr, images: &Path) -> anyhow::Result<()> {
    let pause = format!("pause-{}.tar", env!("CARGO_PKG_VERSION"));
    if !images.join(&pause).is_file() {
        bail!("{} lacks {}, the image {}", images.display(), pause, image("pause"));
    }
    let images = images.canonicalize().context("could not tell where the images are")?;
    let mut command = Command::new("setsid");
    command.arg(maker).args(["within", "control", "unshare"]);
    command.args(["--mount", "--propagation", "private", "--net", "--uts"]);
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(maker).args(["control", "--images"]).arg(images);
    command.env_clear().env("PATH", path).env("HOME", FOLDER).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log(&log_folder(), "control")?);
    let mut child = command.spawn().with_context(|| format!("could not run {command:?}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let stdout = child.stdout.take().expect("stdout is piped");
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if line != READY {
            println!("{line}");
            continue;
        }
        let text = path.to_str().context("PATH is not UTF-8")?;
        fs::write(complete(), text)
            .with_context(|| format!("could not write {}", complete().display()))?;
        return writeln!(stdin, "{STAY}").context("the cluster was gone as soon as it was up");
    }
    let _ = child.wait();
    let said = fs::read_to_string(log_folder().join("control.log")).unwrap_or_default();
    bail!("{}", said.trim())
}
