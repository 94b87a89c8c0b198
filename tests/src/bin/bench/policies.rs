//! What many AuthorizationPolicies cost the requests that they are about.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use clap::Args;
use serde_json::{Value, json};
use sluice_tests::{
    Agent, AgentOptions, KubeApi, KubeKind, Lab, Node, Pod, eventually, wait_until_captured,
};
use tokio::{net::TcpStream, task::JoinSet, time::sleep};

use crate::{
    cpu,
    dialler::Dialler,
    http1,
    latency::{Latencies, micros, millis},
    server::{self, Spoken},
    table::median,
    version::{time_of, version},
};

/// Connections that requests are sent on, one at a time on each.
const CONNECTIONS: usize = 16;
/// Between changes whose cost is measured: longer than the agent waits for others to join them.
const PACE: Duration = Duration::from_millis(50);

/// Measures the cost of a request to a pod with many policies beside one to a pod without any, the memory
/// of all rules and the cost of a change.
#[derive(Args, Debug)]
pub(crate) struct Policies {
    /// Policies for one pod
    #[arg(long, default_value_t = 1000)]
    policies: usize,

    /// Rules of each
    #[arg(long, default_value_t = 10)]
    rules: usize,

    /// Rounds of requests to either pod, by turns
    #[arg(long, default_value_t = 15)]
    rounds: usize,

    /// Seconds that either pod is asked in a round
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,

    /// Changes measured one by one
    #[arg(long, default_value_t = 100)]
    changes: usize,
}

impl Policies {
    pub(crate) async fn measure(self) -> anyhow::Result<()> {
        let lab = Lab::new()?;
        let node = lab.node("node-a")?;
        let client = Arc::new(node.pod("client")?);
        let (free, judged) = (node.pod("free")?, node.pod("judged")?);
        let mut api = KubeApi::new(&lab)?;
        api.namespace("default", &[].into());
        let mut servers = JoinSet::new();
        for pod in [&client, &free, &judged] {
            api.pod(pod);
            server::start(&mut servers, pod)?;
        }
        api.start()?;
        let options = AgentOptions {
            kubeconfig: Some(api.kubeconfig()),
            flags: ["--log", "warn", "--trace-sampling", "0"].map(String::from).to_vec(),
            ..AgentOptions::default()
        };
        let agent = Agent::start(&node, &lab.mesh()?, options).await?;
        let id = agent.process().id();
        for pod in [&*client, &free, &judged] {
            wait_until_captured(&node, pod, true).await?;
        }
        let bare = agent.process().resident()?;

        let before = cpu::used([id])?;
        (0..self.policies).for_each(|number| api.apply(KIND, self.policy(number, 0)));
        wait_for(&node, &judged, self.policies).await?;
        let used = cpu::used([id])? - before;
        println!("{} policies of {} rules for one pod:", self.policies, self.rules);
        println!("| CPU to read them all | {:.0} ms |", millis(used));
        let grown = agent.process().resident()?.saturating_sub(bare);
        println!("| memory of all | {:.1} MiB |", grown as f64 / f64::from(1 << 20));

        let asks = [&free, &judged].map(|pod| Dialler::new(&client, address(pod), CONNECTIONS));
        let mut costs = [Vec::new(), Vec::new()];
        let lasts = Duration::from_secs_f64(self.seconds);
        // The first round only warms everything up.
        for round in 0..=self.rounds {
            for (dialler, costs) in asks.iter().zip(&mut costs) {
                let cost = cost_of_a_request(dialler, id, lasts).await?;
                if round > 0 {
                    costs.push(cost);
                }
            }
        }
        let differences = costs[0].iter().zip(&costs[1]).map(|(free, judged)| judged - free);
        let more = median(differences.collect()).unwrap_or_default();
        let [free, with] = costs.map(|costs| median(costs).unwrap_or_default());
        println!("| CPU a request, no policy | {free:.2} µs |");
        println!("| CPU a request, all of them | {with:.2} µs |");
        println!("| the policies' part, median of {} pairs | {more:.2} µs |", self.rounds);
        self.change_one_by_one(&api, &node, id).await
    }

    /// Changes one policy after the other: at first to see how soon a change is in force, then what it costs.
    async fn change_one_by_one(&self, api: &KubeApi, node: &Node, id: u32) -> anyhow::Result<()> {
        let change = |change: usize| {
            api.apply(KIND, self.policy(change * 7 % self.policies, change + 1));
        };
        let times = (0..self.changes).map(|number| time_of(node, || change(number)));
        let times = Latencies::of(times.collect::<anyhow::Result<_>>()?);
        println!(
            "| one policy changes: in force after, median | {:.1} ms |",
            times.at(0.5) / 1000.0
        );
        let (former, before) = (version(node)?, cpu::used([id])?);
        for number in 0..self.changes {
            change(self.changes + number);
            sleep(PACE).await;
        }
        let used = cpu::used([id])? - before;
        let times = version(node)? - former;
        let each = millis(used) / times.max(1) as f64;
        println!("| one policy changes: agent's CPU | {each:.2} ms ({times} times) |");
        Ok(())
    }

    /// Lets others in than the client, but for the last policy, and keeps others out in every tenth.
    fn policy(&self, number: usize, version: usize) -> Value {
        let is_last = number + 1 == self.policies;
        let is_deny = number.is_multiple_of(10) && !is_last;
        let rule = |rule: usize| {
            let account = match is_last && rule + 1 == self.rules {
                true => "client".to_owned(),
                false => format!("other-{number}-{rule}"),
            };
            let operation = json!({"methods": ["GET", "POST"],
                "paths": [format!("/order{}*", if is_last { String::new() } else { format!("/{number}/{rule}/") })]});
            let from = json!([{"source": {"principals": [format!("cluster.local/ns/default/sa/{account}")]}}]);
            let when = json!([{"key": "request.headers[x-version]", "notValues": [format!("v{version}")]}]);
            json!({"from": from, "to": [{"operation": operation}], "when": when})
        };
        json!({
            "metadata": {"name": format!("policy-{number:04}"), "namespace": "default"},
            "spec": {
                "selector": {"matchLabels": {"app": "judged"}},
                "action": if is_deny { "DENY" } else { "ALLOW" },
                "rules": (0..self.rules).map(rule).collect::<Vec<_>>(),
            },
        })
    }
}

const KIND: KubeKind = KubeKind::AuthorizationPolicy;

/// CPU time of the agent for each of the requests of a while, in microseconds.
async fn cost_of_a_request(dialler: &Dialler, id: u32, lasts: Duration) -> anyhow::Result<f64> {
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = dialler.dial().await?;
        http1::exchange(&mut stream, http1::REQUEST, &mut Vec::new()).await?;
        streams.push(stream);
    }
    let before = cpu::used([id])?;
    let until = Instant::now() + lasts;
    let mut clients = JoinSet::new();
    streams.into_iter().for_each(|stream| drop(clients.spawn(ask(stream, until))));
    let mut requests = 0;
    while let Some(asked) = clients.join_next().await {
        requests += asked??;
    }
    let used = cpu::used([id])? - before;
    ensure!(requests > 0, "no request was answered");
    Ok(micros(used) / requests as f64)
}

async fn ask(mut stream: TcpStream, until: Instant) -> anyhow::Result<usize> {
    let mut buffer = Vec::with_capacity(1024);
    let mut asked = 0;
    while Instant::now() < until {
        http1::exchange(&mut stream, http1::REQUEST, &mut buffer).await?;
        asked += 1;
    }
    Ok(asked)
}

fn address(pod: &Pod) -> SocketAddr {
    (pod.ip(), Spoken::Http.port(false)).into()
}

/// Waits until so many policies are in force for `pod`.
async fn wait_for(node: &Node, pod: &Pod, policies: usize) -> anyhow::Result<()> {
    let name = format!("{}/{}", pod.namespace(), pod.name());
    eventually("the policies are in force", || async {
        let status = Agent::status(node)?;
        let mut pods = status["pods"].as_array().into_iter().flatten();
        let pod = pods.find(|pod| pod["name"] == name.as_str());
        let listed = pod.and_then(|pod| pod["authorization"].as_array());
        Ok((listed.map(Vec::len) == Some(policies)).then_some(()))
    })
    .await
}
