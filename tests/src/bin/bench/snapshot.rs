//! What a large cluster costs an agent that watches its API server.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::{Value, json};
use sluice_tests::{Agent, AgentOptions, KubeApi, KubeKind, Lab, Node, eventually};
use tokio::time::sleep;

use crate::{
    cpu,
    latency::{Latencies, millis},
    version::{configuration, time_of, version},
};

/// Pods of one Deployment, each with a Service in front.
const REPLICAS: usize = 10;
/// Between changes whose cost is measured: longer than the agent waits for others to join them.
const PACE: Duration = Duration::from_millis(50);
/// What users' tools leave on an object that the mesh has no use for, in bytes.
const BALLAST: usize = 4096;

/// Simulates a cluster's pods and Services, and measures the memory of one node's agent and
/// the cost of one pod's change.
#[derive(Args, Debug)]
pub(crate) struct Snapshot {
    /// Pods of the cluster; there is a Service for every ten
    #[arg(long, default_value_t = 10_000)]
    pods: usize,

    /// Changes measured one by one
    #[arg(long, default_value_t = 100)]
    changes: usize,
}

impl Snapshot {
    pub(crate) async fn measure(self) -> anyhow::Result<()> {
        let lab = Lab::new()?;
        let node = lab.node("node-a")?;
        let mut api = KubeApi::new(&lab)?;
        api.start()?;
        let config = lab.mesh()?;
        let options = || AgentOptions {
            kubeconfig: Some(api.kubeconfig()),
            flags: ["--log", "warn"].map(String::from).to_vec(),
            ..AgentOptions::default()
        };
        let mut agent = Agent::start(&node, &config, options()).await?;
        let empty = agent.process().resident()? >> 20;
        agent.kill9();
        self.fill(&api);

        let began = Instant::now();
        let agent = Agent::start(&node, &config, options()).await?;
        let id = agent.process().id();
        wait_for(&node, |configuration| configuration["workloads"] == self.pods).await?;
        println!("{} pods, {} Services, one agent:", self.pods, self.pods / REPLICAS);
        println!("| started, everything listed | {:.1} s |", began.elapsed().as_secs_f64());
        println!("| CPU for that | {:.2} s |", cpu::used([id])?.as_secs_f64());
        println!("| memory without pods | {empty} MiB |");
        println!("| memory | {} MiB |", agent.process().resident()? >> 20);
        println!("| memory at most, while listing | {} MiB |", agent.process().peak()? >> 20);
        self.change_one_by_one(&api, &node, id).await?;
        self.change_many(&api, &node, id).await?;
        println!("| memory afterwards | {} MiB |", agent.process().resident()? >> 20);
        Ok(())
    }

    fn fill(&self, api: &KubeApi) {
        for namespace in 0..self.pods.div_ceil(100) {
            let metadata = json!({"name": format!("ns-{namespace}"),
                "labels": {"istio.io/dataplane-mode": "ambient"}});
            api.apply(KubeKind::Namespace, json!({"metadata": metadata}));
        }
        for number in 0..self.pods {
            api.apply(KubeKind::Pod, pod(number, true));
        }
        for service in 0..self.pods / REPLICAS {
            let (namespace, name) = (namespace_of(service * REPLICAS), format!("app-{service}"));
            let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + service as u32);
            api.apply(
                KubeKind::Service,
                json!({"metadata": {"name": name, "namespace": namespace},
                    "spec": {"clusterIP": ip, "clusterIPs": [ip], "selector": {"app": name},
                        "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
            );
            let pods = service * REPLICAS..(service + 1) * REPLICAS;
            let endpoints: Vec<_> = pods
                .map(|pod| {
                    json!({"addresses": [ip_of(pod)], "conditions": {"ready": true},
                    "targetRef": {"kind": "Pod", "name": name_of(pod), "namespace": namespace}})
                })
                .collect();
            api.apply(
                KubeKind::EndpointSlice,
                json!({"metadata": {"name": format!("{name}-x"), "namespace": namespace,
                        "labels": {"kubernetes.io/service-name": name}},
                    "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
                    "endpoints": endpoints}),
            );
        }
    }

    /// Changes one pod after the other: at first to see how soon a change is in force, then what it costs.
    async fn change_one_by_one(&self, api: &KubeApi, node: &Node, id: u32) -> anyhow::Result<()> {
        let change = |change: usize| {
            api.apply(KubeKind::Pod, pod(change * 7 % self.pods, change / self.pods % 2 == 1));
        };
        let times = (0..self.changes).map(|number| time_of(node, || change(number)));
        let times = Latencies::of(times.collect::<anyhow::Result<_>>()?);
        println!("| one pod changes: in force after, median | {:.1} ms |", times.at(0.5) / 1000.0);

        let (former, before) = (version(node)?, cpu::used([id])?);
        for number in 0..self.changes {
            change(self.changes + number);
            sleep(PACE).await;
        }
        let used = cpu::used([id])? - before;
        let snapshots = version(node)? - former;
        let each = millis(used) / snapshots.max(1) as f64;
        println!("| one pod changes: agent's CPU | {each:.2} ms ({snapshots} times) |");
        Ok(())
    }

    async fn change_many(&self, api: &KubeApi, node: &Node, id: u32) -> anyhow::Result<()> {
        let many = self.pods.min(1000);
        let (former, before) = (version(node)?, cpu::used([id])?);
        for number in 0..many {
            let mut pod = pod(number, false);
            pod["metadata"]["labels"]["burst"] = "yes".into();
            api.apply(KubeKind::Pod, pod);
        }
        // Changes are taken in order: when this one is in force, all are.
        api.delete(KubeKind::Pod, &namespace_of(many - 1), &name_of(many - 1));
        wait_for(node, |configuration| configuration["workloads"] == self.pods - 1).await?;
        let used = cpu::used([id])? - before;
        let snapshots = version(node)? - former;
        println!(
            "| {many} pods change at once | {snapshots} snapshots, {:.0} ms of CPU |",
            millis(used)
        );
        Ok(())
    }
}

/// A pod of another node, with labels by version.
fn pod(number: usize, first_version: bool) -> Value {
    let app = format!("app-{}", number / REPLICAS);
    let (name, ip) = (name_of(number), ip_of(number));
    let version = if first_version { "v1" } else { "v2" };
    json!({
        "metadata": {
            "name": name, "namespace": namespace_of(number),
            "uid": format!("{:08x}-0000-4000-8000-{number:012}", scattered(number)),
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"app": app, "version": version, "app.kubernetes.io/name": app,
                "pod-template-hash": "7d4b9c6f5"},
            "annotations": {"example.com/ballast": "x".repeat(BALLAST)},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
                "name": format!("{app}-7d4b9c6f5"), "uid": "x", "controller": true}],
        },
        "spec": {
            "nodeName": format!("node-{}", number % 200 + 1), "serviceAccountName": app,
            "containers": [{"name": "app", "image": "app:1",
                "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "app", "image": "app:1", "imageID": "", "ready": true,
                "restartCount": 0, "state": {"running": {}}}],
        },
    })
}

fn name_of(number: usize) -> String {
    format!("app-{}-7d4b9c6f5-{number:05}", number / REPLICAS)
}

fn namespace_of(number: usize) -> String {
    format!("ns-{}", number / 100)
}

/// Another number of 23 bits for each: in no cluster have pods addresses in the order of their names.
fn scattered(number: usize) -> u32 {
    (number as u32).wrapping_mul(0x9E37_79B1) & 0x7F_FFFF
}

fn ip_of(number: usize) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + scattered(number)).into()
}

/// Waits until the agent says of its configuration what `is` accepts.
async fn wait_for(node: &Node, is: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
    eventually("the configuration", || async { Ok(is(&configuration(node)?).then_some(())) }).await
}
