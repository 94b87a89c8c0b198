//! The first process of a node: its mounts, containerd, kubelet, kube-proxy.
//!
//! A node sees the machine's files except where a real one would have files of its own: `/run`,
//! `/var/lib`, `/var/log` and the BPF file system. Programs, and charts, find everything in its
//! customary place.

use std::{
    env, fs,
    io::stdin,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::{
    cgroup,
    component::{self, Components, run as run_command, succeeds},
    place::{DNS_SERVICE, NodeName, PODS, image},
};

/// What a node says when containerd runs and has the images.
pub(crate) const RUNTIME: &str = "runtime";
/// What it is told when the API server is ready.
pub(crate) const JOIN: &str = "join";
/// What it says when the kubelet and kube-proxy run.
pub(crate) const JOINED: &str = "joined";

/// Certificates and kubeconfigs, below a node's `/var/lib`.
pub(crate) const CREDENTIALS: &str = "credentials";
const CONTAINERD: &str = "/run/containerd/config.toml";
const KUBELET: &str = "/run/kubelet.json";
const CNI: &str = "/run/cni";

/// Settings of the whole machine that a kubelet changes.
const KUBELETS_OWN: [&str; 5] = [
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Makes a node of the namespaces it runs in, as their first process, and stays with it.
///
/// # Errors
/// When one of the programs does not come up.
pub fn run(node: NodeName, images: &Path) -> anyhow::Result<()> {
    mounts(node)?;
    nix::unistd::sethostname(node.to_string()).context("could not set the host name")?;
    write("/proc/sys/net/ipv4/ip_forward", "1")?;
    configure(node)?;

    let mut components = Components::new(Path::new("/var/log"));
    let mut containerd = Command::new("containerd");
    components.start("containerd", containerd.args(["--config", CONTAINERD]))?;
    components.until("containerd answers", || succeeds(Command::new("ctr").arg("version")))?;
    for archive in archives(images)? {
        let import = ["--namespace", "k8s.io", "images", "import"];
        run_command(Command::new("ctr").args(import).arg(archive))?;
    }
    println!("{RUNTIME}");
    let mut told = String::new();
    stdin().read_line(&mut told).context("could not read what to do")?;
    if told.trim() != JOIN {
        bail!("told {told:?} instead of `{JOIN}`");
    }
    components.start("kubelet", &mut kubelet(node)?)?;
    components.start("kube-proxy", &mut proxy(node))?;
    for (name, port) in [("the kubelet", 10248), ("kube-proxy", 10256)] {
        components.until(&format!("{name} answers"), || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        })?;
    }
    println!("{JOINED}");
    component::reap()
}

fn mounts(node: NodeName) -> anyhow::Result<()> {
    let none = None::<&str>;
    // As on a real node: what a kubelet mounts, containers see where they ask for it.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)
        .context("could not share the mounts")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("could not mount /run")?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
        .context("could not mount /sys/fs/bpf")?;
    // The latter hides the bed's own folder and comes last.
    for (folder, place) in [("log", "/var/log"), ("lib", "/var/lib")] {
        bind(&node.folder().join(folder), Path::new(place))?;
    }
    // Copies, so that the machine's own are what they were when the bed is gone.
    fs::create_dir("/run/settings").context("could not make /run/settings")?;
    for name in KUBELETS_OWN {
        let setting = Path::new("/proc/sys").join(name);
        let value = fs::read_to_string(&setting)
            .with_context(|| format!("could not read {}", setting.display()))?;
        let copy = Path::new("/run/settings").join(name.replace('/', "."));
        fs::write(&copy, value).with_context(|| format!("could not write {}", copy.display()))?;
        bind(&copy, &setting)?;
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> anyhow::Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("could not bind {} to {}", from.display(), to.display()))
}

/// The archives of a folder, in the order of their names.
fn archives(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder);
    let entries = entries.with_context(|| format!("could not read {}", folder.display()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut archives: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "tar")).collect();
    archives.sort();
    Ok(archives)
}

fn configure(node: NodeName) -> anyhow::Result<()> {
    for folder in [CNI, "/run/containerd"] {
        fs::create_dir(folder).with_context(|| format!("could not make {folder}"))?;
    }
    write(&format!("{CNI}/10-pods.conflist"), &cni(node).to_string())?;
    write(CONTAINERD, &containerd())?;
    write(KUBELET, &kubelet_configuration(node).to_string())
}

fn write(path: &str, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("could not write {path}"))
}

/// A link for each pod, routed. Not a bridge: there, a pod's answer to its neighbour would go
/// past the kernel's connection tracking unless br_netfilter is loaded, and Services fail.
fn cni(node: NodeName) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": node.pods()}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

/// NRI is on by default since containerd 2.0. Restricted scores: a machine's root may lack
/// CAP_SYS_RESOURCE, and runc then fails with "can't get final child's PID from pipe".
fn containerd() -> String {
    format!(
        r#"version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "{CNI}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    SystemdCgroup = false
[plugins."io.containerd.nri.v1.nri".default_validator]
  enable = true
"#,
        pause = image("pause"),
    )
}

fn kubelet_configuration(node: NodeName) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "x509": {"clientCAFile": format!("/var/lib/{CREDENTIALS}/ca.crt")},
            "webhook": {"enabled": true},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", cgroup::of_node(node)),
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        // The machine's name servers are out of reach.
        "resolvConf": "",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "localStorageCapacityIsolation": false,
        // However full the machine's disk is: neither pods nor images go for it.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    })
}

/// In a cgroup of its own, by which agents know it.
fn kubelet(node: NodeName) -> anyhow::Result<Command> {
    let within = env::current_exe().context("could not tell where this program is")?;
    let mut kubelet = Command::new(within);
    kubelet.args(["within", &format!("{node}/kubelet"), "kubelet"]);
    kubelet.args([
        format!("--config={KUBELET}"),
        format!("--kubeconfig=/var/lib/{CREDENTIALS}/kubelet.kubeconfig"),
        format!("--hostname-override={node}"),
        format!("--node-ip={}", node.address()),
    ]);
    Ok(kubelet)
}

fn proxy(node: NodeName) -> Command {
    let mut proxy = Command::new("kube-proxy");
    proxy.args([
        format!("--kubeconfig=/var/lib/{CREDENTIALS}/proxy.kubeconfig"),
        format!("--hostname-override={node}"),
        "--proxy-mode=nftables".into(),
        format!("--cluster-cidr={PODS}"),
        "--bind-address=127.0.0.1".into(),
        "--healthz-bind-address=127.0.0.1:10256".into(),
    ]);
    // Settings of connection tracking are the machine's: left alone.
    proxy.args(["--conntrack-max-per-core=0", "--conntrack-min=0"]);
    proxy.args(["--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"]);
    proxy
}
