//! The sample application in a namespace of a test's own: client and user service on the first
//! node, frontend and order service on the second.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{LazyLock, OnceLock},
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sluice_kube::{Bed, CONTROL, Mesh, NODES, PATIENCE, Tenant, Workload, text};
use sluice_tests::{Netns, OtlpReceiver, Span};
use tokio::runtime::Runtime;

/// What the asynchronous parts run on; it outlives every test of the program.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads can be made"));

/// Runs `work` to its end.
pub(crate) fn wait<T>(work: impl Future<Output = T>) -> T {
    RUNTIME.block_on(work)
}

/// What receives the spans of the whole cluster while this program runs.
pub(crate) struct Receiver(OtlpReceiver);

/// The one receiver.
pub(crate) fn receiver() -> anyhow::Result<&'static Receiver> {
    static RECEIVER: OnceLock<Result<Receiver, String>> = OnceLock::new();
    let start = || {
        let bed = Bed::find()?.context("no cluster is up")?;
        let _inside = RUNTIME.enter();
        OtlpReceiver::start_in(&Netns::of_process(bed.control()), CONTROL.into()).map(Receiver)
    };
    let receiver = RECEIVER.get_or_init(|| start().map_err(|error| format!("{error:#}")));
    receiver.as_ref().map_err(|error| anyhow::anyhow!(error.clone()))
}

impl Receiver {
    /// Waits until there are `enough` spans.
    pub(crate) fn wait_for(&self, enough: impl Fn(&[Span]) -> bool) -> anyhow::Result<Vec<Span>> {
        wait(self.0.wait_for(PATIENCE, enough))
    }
}

/// What came of an order.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) placed: bool,
    /// All that the client said.
    pub(crate) said: String,
}

/// The application.
pub(crate) struct Shop {
    pub(crate) tenant: Tenant,
}

impl Shop {
    /// Deploys it, outside the mesh, and waits until it runs.
    pub(crate) fn open(name: &str) -> anyhow::Result<Self> {
        let shop = Self { tenant: Tenant::new(name)? };
        let [first, second] = NODES;
        let idle = ["echo"];
        shop.deploy([
            // Orders are placed by commands beside it.
            Workload::new("client", &idle, 9000).on(first),
            Workload::new("user-service", &["user"], 8080).on(first),
            Workload::new("frontend", &["frontend"], 8080).on(second),
            Workload::new("order-service", &["order"], 8080).on(second),
        ])?;
        // A pod is ready a moment before every node knows the way to it. Not by the frontend, which
        // keeps connections, and those from before the label stay what they are.
        let url = "http://order-service:8080/api/order";
        shop.tenant.eventually("orders are taken", || shop.order(url))?;
        Ok(shop)
    }

    /// Deploys more, and waits until it runs.
    pub(crate) fn deploy(
        &self,
        workloads: impl IntoIterator<Item = Workload>,
    ) -> anyhow::Result<()> {
        let names = self.begin(workloads)?;
        names.iter().try_for_each(|name| self.tenant.await_deployment(name))
    }

    /// Deploys more, which may never be ready. Returns the names.
    pub(crate) fn begin(
        &self,
        workloads: impl IntoIterator<Item = Workload>,
    ) -> anyhow::Result<Vec<String>> {
        let env = json!([{
            "name": "OTEL_EXPORTER_OTLP_ENDPOINT",
            "value": format!("http://{CONTROL}:4317"),
        }]);
        let workloads: Vec<_> = workloads.into_iter().map(|workload| workload.env(&env)).collect();
        let names: Vec<_> = workloads.iter().map(|workload| workload.name().to_owned()).collect();
        self.tenant.deploy(workloads)?;
        Ok(names)
    }

    /// Labels the namespace: its pods belong to the mesh.
    pub(crate) fn join(&self) -> anyhow::Result<()> {
        self.label("istio.io/dataplane-mode=ambient")
    }

    /// Takes the label away.
    pub(crate) fn leave(&self) -> anyhow::Result<()> {
        self.label("istio.io/dataplane-mode-")
    }

    fn label(&self, label: &str) -> anyhow::Result<()> {
        let arguments = ["label", "namespace", self.tenant.namespace(), label];
        self.tenant.kubectl(arguments).map(drop)
    }

    /// Lets nobody into the namespace's pods but those who have an identity.
    pub(crate) fn strict(&self) -> anyhow::Result<()> {
        self.tenant.apply(&json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "default"},
            "spec": {"mtls": {"mode": "STRICT"}},
        }))
    }

    /// The pods that are not about to end, by name.
    pub(crate) fn pods(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let list = self.tenant.kubectl(["get", "pods", "--output=json"])?;
        let list: Value = serde_json::from_str(&list)?;
        let pods = list["items"].as_array().context("not a list")?.iter();
        pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| Ok((text(pod, "/metadata/name")?.to_owned(), pod.clone())))
            .collect()
    }

    /// The pod of a Deployment.
    pub(crate) fn pod(&self, deployment: &str) -> anyhow::Result<Value> {
        let mut pods = self.pods()?.into_values();
        let found = pods.find(|pod| pod["metadata"]["labels"]["app"] == deployment);
        found.with_context(|| format!("no pod of {deployment}"))
    }

    /// Its address.
    pub(crate) fn address(&self, deployment: &str) -> anyhow::Result<String> {
        Ok(text(&self.pod(deployment)?, "/status/podIP")?.to_owned())
    }

    /// Has the pod of a Deployment place an order at `url`.
    pub(crate) fn ask(&self, deployment: &str, url: &str) -> anyhow::Result<Answer> {
        let mut command = self.tenant.bed().command("kubectl");
        command.args(["--namespace", self.tenant.namespace(), "exec"]);
        command.arg(format!("deployment/{deployment}"));
        command.args(["--", "/sluice-sample", "client", "--url", url]);
        let output = command.output().with_context(|| format!("could not run {command:?}"))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        // The client's own words are there whether or not it was served.
        ensure!(said.contains(" ms: "), "no order was tried: {said}");
        Ok(Answer { placed: output.status.success(), said })
    }

    /// Has the client place an order at `url`, and returns what it got.
    pub(crate) fn order(&self, url: &str) -> anyhow::Result<Value> {
        let Answer { placed, said } = self.ask("client", url)?;
        ensure!(placed, "the order failed: {said}");
        let (_, body) = said.split_once(" ms: ").context("no answer")?;
        Ok(serde_json::from_str(body.trim())?)
    }

    /// Waits until the agents say that every pod is captured.
    pub(crate) fn await_captured(&self, mesh: &Mesh) -> anyhow::Result<()> {
        self.tenant.eventually("every pod is captured", || {
            let captured = self.captured(mesh)?;
            for name in self.pods()?.keys() {
                ensure!(captured.contains(name), "{name} is not among {captured:?}");
            }
            Ok(())
        })
    }

    /// Waits until the agents say that no pod is captured any more.
    pub(crate) fn await_released(&self, mesh: &Mesh) -> anyhow::Result<()> {
        self.tenant.eventually("no pod is captured", || {
            let captured = self.captured(mesh)?;
            ensure!(captured.is_empty(), "{captured:?} still are");
            Ok(())
        })
    }

    /// The pods that are captured.
    fn captured(&self, mesh: &Mesh) -> anyhow::Result<Vec<String>> {
        let mut captured = Vec::new();
        for node in NODES {
            captured.extend(mesh.captured(node, self.tenant.namespace())?);
        }
        Ok(captured)
    }
}
