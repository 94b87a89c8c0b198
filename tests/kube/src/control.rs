//! The first process of a bed: the network that joins the nodes, the control plane, the nodes.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write, stdin},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Command, Stdio, exit},
    sync::mpsc::{self, Receiver},
    thread,
    time::Instant,
};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};

use crate::{
    bed,
    component::{self, Components, log, run as run_command, succeeds},
    node, objects,
    place::{CONTROL, NODES, NodeName, PODS, SERVICES, control_folder, log_folder},
};

/// What this process says when the cluster is complete.
pub(crate) const READY: &str = "ready";
/// What it is told then, for it to outlive the one who started it.
pub(crate) const STAY: &str = "stay";

/// Brings a cluster up and stays with it. Runs as the first process of new pid, mount, network
/// and host name namespaces; `images` is a folder of archives for the nodes.
///
/// # Errors
/// When the cluster does not come up; all of it is gone then.
pub fn run(images: &Path) -> anyhow::Result<()> {
    end_with_parent();
    // Sockets and named network namespaces of this machine stay out of the way.
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("could not mount /run")?;
    nix::unistd::sethostname("control").context("could not set the host name")?;
    network()?;

    let began = Instant::now();
    let say = |what: &str| println!("{what} ({:.1} s)", began.elapsed().as_secs_f64());
    let mut components = Components::new(&log_folder());
    let mut nodes = Vec::new();
    for node in NODES {
        nodes.push(Started::node(node, images, &mut components)?);
    }
    api_server(&mut components)?;
    say("the API server answers");
    controllers(&mut components)?;
    name_service(&mut components)?;
    say("names resolve");
    for node in &mut nodes {
        node.await_line(node::RUNTIME, &mut components)?;
        node.tell(node::JOIN)?;
    }
    say("containerd runs on both nodes");
    for node in &nodes {
        node.await_line(node::JOINED, &mut components)?;
        let name = format!("node/{}", node.name);
        components.until(&format!("{name} is ready"), || {
            let ready = ["wait", "--for=condition=Ready", "--timeout=10s", &name];
            succeeds(kubectl().args(ready))
        })?;
    }
    // Without which the first pods would be refused.
    components.until("the default service account exists", || {
        succeeds(kubectl().args(["get", "serviceaccount", "default"]))
    })?;
    say("both nodes are ready");
    println!("{READY}");
    component::reap()
}

/// Ends this process, and with it all others, when the one who started it ends without having
/// said that the bed is to stay.
fn end_with_parent() {
    thread::spawn(|| {
        let mut line = String::new();
        let told = stdin().lock().read_line(&mut line);
        if told.is_err() || line.trim() != STAY {
            eprintln!("error: `up` ended before the bed was complete");
            exit(1);
        }
    });
}

/// A bridge here, and a link from it into each node's network namespace.
fn network() -> anyhow::Result<()> {
    let mut lines = format!(
        "link set lo up\nlink add nodes type bridge\naddr add {CONTROL}/24 dev nodes\n\
         link set nodes up\n"
    );
    for node in NODES {
        lines += &format!(
            "netns add {node}\nlink add {node} type veth peer name eth0 netns {node}\n\
             link set {node} master nodes up\n"
        );
    }
    // The API server reaches pods too: webhooks are such.
    lines += &routes(NODES);
    ip(&[], &lines)?;
    for node in NODES {
        let others = NODES.into_iter().filter(|other| *other != node);
        let lines = format!(
            "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\n\
             route add default via {CONTROL}\n{}",
            node.address(),
            routes(others)
        );
        ip(&["-netns", &node.to_string()], &lines)?;
    }
    Ok(())
}

fn routes(to: impl IntoIterator<Item = NodeName>) -> String {
    let route = |node: NodeName| format!("route add {} via {}\n", node.pods(), node.address());
    to.into_iter().map(route).collect()
}

fn ip(options: &[&str], lines: &str) -> anyhow::Result<()> {
    let file = control_folder().join("ip");
    fs::write(&file, lines).with_context(|| format!("could not write {}", file.display()))?;
    run_command(Command::new("ip").args(options).arg("-batch").arg(file))
}

fn kubectl() -> Command {
    let mut kubectl = Command::new("kubectl");
    kubectl.envs(bed::environment());
    kubectl
}

fn api_server(components: &mut Components) -> anyhow::Result<()> {
    let folder = control_folder();
    let file = |name: &str| folder.join(name).display().to_string();
    components.start(
        "etcd",
        Command::new("etcd").args([
            format!("--data-dir={}", file("etcd")),
            "--listen-client-urls=http://127.0.0.1:2379".into(),
            "--advertise-client-urls=http://127.0.0.1:2379".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            // A bed does not outlive the machine.
            "--unsafe-no-fsync".into(),
        ]),
    )?;
    components.start(
        "kube-apiserver",
        Command::new("kube-apiserver").args([
            "--etcd-servers=http://127.0.0.1:2379".into(),
            format!("--advertise-address={CONTROL}"),
            format!("--bind-address={CONTROL}"),
            "--secure-port=6443".into(),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--kubelet-client-certificate={}", file("apiserver-kubelet.crt")),
            format!("--kubelet-client-key={}", file("apiserver-kubelet.key")),
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!("--service-account-key-file={}", file("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", file("service-accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--allow-privileged=true".into(),
        ]),
    )?;
    components
        .until("the API server is ready", || succeeds(kubectl().args(["get", "--raw", "/readyz"])))
}

fn controllers(components: &mut Components) -> anyhow::Result<()> {
    let folder = control_folder();
    let file = |name: &str| folder.join(name).display().to_string();
    components.start(
        "kube-controller-manager",
        Command::new("kube-controller-manager").args([
            format!("--kubeconfig={}", file("controller-manager.kubeconfig")),
            "--use-service-account-credentials".into(),
            format!("--service-account-private-key-file={}", file("service-accounts.key")),
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--cluster-cidr={PODS}"),
            "--leader-elect=false".into(),
            "--bind-address=127.0.0.1".into(),
        ]),
    )?;
    components.start(
        "kube-scheduler",
        Command::new("kube-scheduler").args([
            format!("--kubeconfig={}", file("scheduler.kubeconfig")),
            "--leader-elect=false".into(),
            "--bind-address=127.0.0.1".into(),
        ]),
    )
}

fn name_service(components: &mut Components) -> anyhow::Result<()> {
    let write = |name: &str, text: String| {
        let file = control_folder().join(name);
        fs::write(&file, text).with_context(|| format!("could not write {}", file.display()))?;
        anyhow::Ok(file)
    };
    let list = write("objects.json", objects::all().to_string())?;
    // The API server is ready a moment before the namespace kube-system is there.
    components.until("the name service's objects are taken", || {
        succeeds(kubectl().args(["apply", "--filename"]).arg(&list))
    })?;
    let kubeconfig = control_folder().join("coredns.kubeconfig").display().to_string();
    let corefile = write("Corefile", objects::corefile(&kubeconfig))?;
    components.start("coredns", Command::new("coredns").arg("-conf").arg(corefile))?;
    // It listens once it knows the services.
    components.until("CoreDNS answers", || TcpStream::connect((Ipv4Addr::LOCALHOST, 53)).is_ok())
}

/// A node that was started, and what it says.
struct Started {
    name: NodeName,
    says: Receiver<String>,
    stdin: std::process::ChildStdin,
}

impl Started {
    /// Starts the first process of a node's own namespaces.
    fn node(name: NodeName, images: &Path, components: &mut Components) -> anyhow::Result<Self> {
        let program = env::current_exe().context("could not tell where this program is")?;
        let node = name.to_string();
        let mut command = Command::new(&program);
        command.args(["within", &node, "nsenter", &format!("--net=/run/netns/{node}"), "unshare"]);
        command.args(["--mount", "--propagation", "private", "--uts"]);
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.arg(&program).args(["node", &node, "--images"]).arg(images);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log(&log_folder(), &node)?);
        let child = components.keep(&node, &mut command)?;
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, says) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(stdout).lines();
            lines.map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Self { name, says, stdin })
    }

    fn await_line(&self, expected: &str, components: &mut Components) -> anyhow::Result<()> {
        let mut said = None;
        components.until(&format!("{} says `{expected}`", self.name), || {
            said = said.take().or_else(|| self.says.try_recv().ok());
            said.is_some()
        })?;
        match said {
            Some(line) if line == expected => Ok(()),
            other => bail!("{} said {other:?} instead of `{expected}`", self.name),
        }
    }

    fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.stdin, "{line}").with_context(|| format!("{} does not listen", self.name))
    }
}
