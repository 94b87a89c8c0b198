//! The mesh in the bed: installing it from its chart, and asking its agents.

use std::{ffi::OsStr, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{Bed, NODES, NodeName, cgroup, component, place::CONTROL, tenant::finish};

/// The namespace that the chart is installed in.
pub const SYSTEM: &str = "sluice-system";
/// The release, and the name of the DaemonSet.
pub const RELEASE: &str = "sluice";
/// What the mesh is installed from.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/chart");
/// As long as helm may take until everything that it has changed is ready.
const WAITING: [&str; 5] = ["--namespace", SYSTEM, "--wait", "--timeout", "120s"];
/// How the agents' pods are selected.
const AGENTS: &str = "app.kubernetes.io/name=sluice,app.kubernetes.io/component=agent";

/// The mesh that is installed in a cluster.
#[derive(Debug)]
pub struct Mesh {
    bed: Bed,
}

/// What an agent takes of its node.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Bytes of memory that its pod is charged, page cache included.
    pub memory: u64,
    /// Time of CPU since it started.
    pub cpu: Duration,
}

impl Mesh {
    /// Installs the chart in the folder `chart`, or makes what is installed what that says, and
    /// waits until every agent and the CA are ready. Spans go to the control plane's address.
    ///
    /// # Errors
    /// When they are not ready within two minutes; the error shows the pods.
    pub fn install(bed: &Bed, chart: &Path) -> anyhow::Result<Self> {
        let mesh = Self { bed: bed.clone() };
        let mut helm = bed.command("helm");
        helm.args(["upgrade", "--install", RELEASE, "--create-namespace"]).args(WAITING).arg(chart);
        helm.args(["--set", "image.pullPolicy=Never", "--set"]);
        helm.arg(format!("telemetry.endpoint=http://{CONTROL}:4317"));
        component::run(&mut helm).or_else(|error| {
            let said = mesh.kubectl(["get", "pods,events", "--output=wide"])?;
            Err(error.context(said))
        })?;
        Ok(mesh)
    }

    /// Runs the sample application of the file `objects` in the mesh, in its namespace `shop`, and
    /// waits until it takes orders.
    ///
    /// # Errors
    /// When it does not within two minutes.
    pub fn run_sample(&self, objects: &Path) -> anyhow::Result<()> {
        let kubectl =
            |arguments: &[&str]| component::run(self.bed.command("kubectl").args(arguments));
        // Labelled before any of it runs: connections from before stay outside the mesh.
        kubectl(&["create", "namespace", "shop"])?;
        kubectl(&["label", "namespace", "shop", "istio.io/dataplane-mode=ambient"])?;
        component::run(self.bed.command("kubectl").args(["apply", "--filename"]).arg(objects))?;
        let ready = ["wait", "--for=condition=Available", "--timeout=120s", "deployment", "--all"];
        kubectl(&[&["--namespace", "shop"], ready.as_slice()].concat())
    }

    /// The mesh of the cluster that is up.
    ///
    /// # Errors
    /// When there is none.
    pub fn find() -> anyhow::Result<Self> {
        let bed = Bed::find()?.context("no cluster is up (hint: cargo xtask kube test)")?;
        Ok(Self { bed })
    }

    /// The cluster that it is in.
    pub fn bed(&self) -> &Bed {
        &self.bed
    }

    /// Changes values of the chart (`NAME=VALUE`), as whoever installed it would, and waits until
    /// every agent and the CA are ready.
    ///
    /// # Errors
    /// When they are not within two minutes; the values are what they were then.
    pub fn change(&self, values: &[&str]) -> anyhow::Result<Changed<'_>> {
        let mut status = self.bed.command("helm");
        status.args(["status", RELEASE, "--namespace", SYSTEM, "--output=json"]);
        let status: Value = serde_json::from_str(&finish(status, "")?)?;
        let revision = status["version"].as_u64().context("no version of the release")?;
        // From here on, whatever fails.
        let changed = Changed { mesh: self, revision: Some(revision) };
        let mut helm = self.bed.command("helm");
        helm.args(["upgrade", RELEASE, CHART, "--reset-then-reuse-values"]).args(WAITING);
        for value in values {
            helm.args(["--set", value]);
        }
        finish(helm, "")?;
        self.rolled_out()?;
        Ok(changed)
    }

    /// Gives the nodes an image, from an archive.
    ///
    /// # Errors
    /// When a container runtime does not take it.
    pub fn import(&self, archive: &Path) -> anyhow::Result<()> {
        NODES.into_iter().try_for_each(|node| {
            let mut ctr = self.bed.node_command(node, "ctr")?;
            ctr.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
            finish(ctr, "").map(drop)
        })
    }

    /// Does `work` while there is no CA, and waits until there is one again.
    ///
    /// # Errors
    /// That of `work`, or when the CA does not come back.
    pub fn without_ca<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let ca = "deployment/sluice-ca";
        let scale = |replicas: &str| self.kubectl(["scale", ca, replicas]);
        scale("--replicas=0")?;
        let gone = ["wait", "--for=delete", "--timeout=120s", "pods"];
        let done = self
            .kubectl(gone.into_iter().chain(["--selector=app.kubernetes.io/component=ca"]))
            .and_then(|_| work());
        scale("--replicas=2")?;
        self.kubectl(["rollout", "status", "--timeout=120s", ca])?;
        done
    }

    /// Runs `kubectl` in the mesh's own namespace to its end, and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the error holds what it said.
    pub fn kubectl<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<String> {
        let mut command = self.command();
        command.args(arguments);
        finish(command, "")
    }

    fn command(&self) -> Command {
        let mut command = self.bed.command("kubectl");
        command.args(["--namespace", SYSTEM]);
        command
    }

    /// The pod of the agent in charge of a node, as the API server tells it.
    ///
    /// # Errors
    /// When there is not exactly one that is not about to end.
    pub fn agent(&self, node: NodeName) -> anyhow::Result<Value> {
        let field = format!("--field-selector=spec.nodeName={node}");
        let list = self.kubectl(["get", "pods", "--output=json", "--selector", AGENTS, &field])?;
        let list: Value = serde_json::from_str(&list)?;
        let pods = list["items"].as_array().context("not a list")?.iter();
        let staying: Vec<_> =
            pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect();
        match staying.as_slice() {
            [agent] => Ok((*agent).clone()),
            agents => bail!("{} agents on {node}", agents.len()),
        }
    }

    /// What `sluice status` says on a node.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn status(&self, node: NodeName) -> anyhow::Result<Value> {
        let agent = self.agent(node)?;
        let pod = text(&agent, "/metadata/name")?;
        let said = self.kubectl(["exec", pod, "--", "/sluice", "status", "--output=json"])?;
        Ok(serde_json::from_str(&said)?)
    }

    /// Starts every agent anew, and waits until the new ones are ready and the old ones gone.
    ///
    /// # Errors
    /// When that takes longer than two minutes.
    pub fn restart(&self) -> anyhow::Result<()> {
        self.kubectl(["rollout", "restart", &format!("daemonset/{RELEASE}")])?;
        self.rolled_out()
    }

    /// Waits until every agent is a new one and ready; the old ones may still drain.
    fn rolled_out(&self) -> anyhow::Result<()> {
        let target = format!("daemonset/{RELEASE}");
        self.kubectl(["rollout", "status", "--timeout=120s", &target]).map(drop)
    }

    /// The pods of a namespace that the agent of `node` has captured.
    ///
    /// # Errors
    /// When it does not tell.
    pub fn captured(&self, node: NodeName, namespace: &str) -> anyhow::Result<Vec<String>> {
        let status = self.status(node)?;
        let Some(pods) = status["pods"].as_array() else { bail!("no pods in {status}") };
        let mut captured = Vec::new();
        for pod in pods.iter().filter(|pod| pod["error"].is_null()) {
            let ours = text(pod, "/name")?.strip_prefix(namespace);
            captured.extend(ours.and_then(|rest| rest.strip_prefix('/')).map(str::to_owned));
        }
        Ok(captured)
    }

    /// The pods of all agents, those about to end included.
    ///
    /// # Errors
    /// When the API server does not tell.
    pub fn agents(&self) -> anyhow::Result<Vec<String>> {
        let names = self.kubectl(["get", "pods", "--output=name", "--selector", AGENTS])?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Waits until these pods are gone.
    ///
    /// # Errors
    /// When they are not within two minutes.
    pub fn await_gone(&self, pods: &[String]) -> anyhow::Result<()> {
        let wait = ["wait", "--for=delete", "--timeout=120s"];
        self.kubectl(wait.into_iter().chain(pods.iter().map(String::as_str))).map(drop)
    }

    /// What the agent of a node has taken so far, by its cgroups.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn usage(&self, node: NodeName) -> anyhow::Result<Usage> {
        let agent = self.agent(node)?;
        let uid = text(&agent, "/metadata/uid")?;
        let (mut memory, mut cpu) = (None, None);
        for folder in cgroup::of_pod(node, uid)? {
            let number = |file: &str| -> Option<u64> {
                fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
            };
            memory = memory.or(number("memory.current")).or(number("memory.usage_in_bytes"));
            let stat = fs::read_to_string(folder.join("cpu.stat")).unwrap_or_default();
            let used = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
            cpu = cpu
                .or(used.and_then(|used| used.parse().ok()).map(Duration::from_micros))
                .or(number("cpuacct.usage").map(Duration::from_nanos));
        }
        let missing = || format!("no accounting of pod {uid} on {node}");
        Ok(Usage { memory: memory.with_context(missing)?, cpu: cpu.with_context(missing)? })
    }
}

/// Values of the chart that are not the usual ones, until this is dropped.
#[derive(Debug)]
pub struct Changed<'a> {
    mesh: &'a Mesh,
    /// The release's that the usual ones are in.
    revision: Option<u64>,
}

impl Changed<'_> {
    /// Goes back to the usual ones, and waits until every agent and the CA are ready.
    ///
    /// # Errors
    /// When they are not within two minutes.
    pub fn undo(mut self) -> anyhow::Result<()> {
        self.roll_back()
    }

    fn roll_back(&mut self) -> anyhow::Result<()> {
        let Some(revision) = self.revision.take() else { return Ok(()) };
        let mut helm = self.mesh.bed.command("helm");
        helm.args(["rollback", RELEASE, &revision.to_string()]).args(WAITING);
        finish(helm, "")?;
        self.mesh.rolled_out()
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        // The cluster may be gone.
        let _ = self.roll_back();
    }
}

/// The text at `pointer` (RFC 6901) of an object.
///
/// # Errors
/// When there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.with_context(|| format!("no {pointer} in {object}"))
}
