//! Two nodes under attack, and what has to hold.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sluice_tests::{
    Agent, AgentOptions, Lab, MeshConfig, Node, Pod, PodOptions, Port, Service, eventually, ports,
};
use tokio::task::JoinSet;

use crate::{
    bystander::{self, Bystander},
    calm::Calm,
};

/// The chart's limit of the agent's memory.
const MEMORY: u64 = 512 << 20;
/// How long the bystander is watched before.
const QUIET: Duration = Duration::from_secs(2);
/// Open files beyond those before that an agent may keep for a while: connections of its pools.
const POOLED: usize = 200;

/// Node `a` with an attacker, one that is not of the mesh, and a bystander; node `b` with the
/// victim. On each there is a server that the bystander talks to.
pub(crate) struct Siege {
    _servers: Vec<JoinSet<()>>,
    calm: Calm,
    agents: [Agent; 2],
    /// Of the mesh.
    pub(crate) attacker: Arc<Pod>,
    /// Of the mesh, on the same node, and of the same mind.
    pub(crate) accomplice: Pod,
    /// Not of the mesh.
    pub(crate) outsider: Pod,
    /// Behind the Service [`Siege::service`].
    pub(crate) victim: Pod,
    bystander: Arc<Pod>,
    servers: [SocketAddr; 2],
    nodes: [Node; 2],
    /// What the agents are told.
    pub(crate) mesh: MeshConfig,
    /// What all of it stands on.
    pub(crate) lab: Lab,
}

impl Siege {
    pub(crate) async fn lay() -> anyhow::Result<Self> {
        // Both ends of every connection are this process's.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Calm::restore()?;
        let lab = Lab::new()?;
        let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
        let outside = PodOptions { meshed: false, ..PodOptions::default() };
        let (attacker, outsider) = (a.pod("attacker")?, a.pod_with("outsider", outside)?);
        let accomplice = a.pod("accomplice")?;
        let (bystander, victim) = (a.pod("bystander")?, b.pod("victim")?);
        let (near, far) = (a.pod("near")?, b.pod("far")?);
        let mesh = lab.mesh()?;
        for pod in [&attacker, &accomplice, &outsider, &bystander, &victim, &near, &far] {
            mesh.pod(pod)?;
        }
        mesh.service(&Service {
            name: "victim",
            namespace: "default",
            ips: vec![Self::service(ports::HTTP).ip()],
            ports: vec![ports::HTTP, ports::TCP],
            endpoints: vec![&victim],
        })?;
        let start = |node| {
            let flags = vec!["--trace-sampling".into(), "0.01".into()];
            Agent::start(node, &mesh, AgentOptions { flags, ..AgentOptions::default() })
        };
        let agents = <[Agent; 2]>::from(tokio::try_join!(start(&a), start(&b))?);
        let calm = Calm::begin()?;
        let servers = [&near, &far].map(|pod| SocketAddr::new(pod.ip(), bystander::PORT));
        let listening = [&near, &far].map(|pod| {
            let _on = calm.handle().enter();
            Ok(bystander::serve(calm.handle(), pod.listen(bystander::PORT)?))
        });
        Ok(Self {
            _servers: listening.into_iter().collect::<anyhow::Result<_>>()?,
            calm,
            agents,
            attacker: Arc::new(attacker),
            accomplice,
            outsider,
            victim,
            bystander: Arc::new(bystander),
            servers,
            nodes: [a, b],
            mesh,
            lab,
        })
    }

    /// A port of the victim's Service.
    pub(crate) fn service(port: Port<'_>) -> SocketAddr {
        SocketAddr::from(([10, 96, 0, 9], port.port))
    }

    /// Runs `attack` to its end, while the bystander goes on. What it returns is what there is to
    /// say about it, and what it holds until then.
    ///
    /// # Errors
    /// When the bystander is harmed, or an agent is not what it was afterwards.
    pub(crate) async fn withstands<Held>(
        &self,
        name: &str,
        attack: impl AsyncFnOnce(&Self) -> anyhow::Result<(String, Held)>,
    ) -> anyhow::Result<()> {
        let ask = |time| Bystander::watch(self.calm.handle(), &self.bystander, &self.servers, time);
        ask(QUIET / 3).await.unharmed("at the very beginning")?;
        let quiet = ask(QUIET).await;
        let files = self.open_files()?;
        let refused = self.refusals()?;
        let bystander = Bystander::start(self.calm.handle(), &self.bystander, &self.servers);
        let attacked = attack(self).await;
        let during = bystander.stop().await;
        let memory = self.memory()?;
        let refused = self.refusals()? - refused;
        let (told, held) = attacked.with_context(|| format!("the attack itself: {name}"))?;
        let ratio = during.at(0.99).as_secs_f64() / quiet.at(0.99).as_secs_f64();
        println!(
            "| {name} | {told} | quiet: {quiet} | during: {during} | p99 ratio {ratio:.1} \
                  | memory {} and {} MiB | {refused} refused |",
            memory[0] >> 20,
            memory[1] >> 20
        );
        quiet.unharmed("before")?;
        during.unharmed("during the attack")?;
        ensure!(memory.iter().all(|&most| most < MEMORY), "an agent took more than {MEMORY} bytes");
        for (agent, node) in self.agents.iter().zip(&self.nodes) {
            agent.ready(node).await?;
        }
        drop(held);
        eventually("what the attack took is given back", || async {
            let now = self.open_files()?;
            let back = now.iter().zip(files).all(|(&now, before)| now <= before + POOLED);
            Ok(back.then_some(()))
        })
        .await
        .with_context(|| format!("open files: {files:?} before, {:?} now", self.open_files()))?;
        ask(QUIET / 3).await.unharmed("after the attack")
    }

    /// The agent of the attacker's node.
    pub(crate) fn attackers_agent(&self) -> &Agent {
        &self.agents[0]
    }

    /// Its node.
    pub(crate) fn attackers_node(&self) -> &Node {
        &self.nodes[0]
    }

    /// The memory that agent has now.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        self.agents[0].process().resident()
    }

    /// A counter of that agent.
    pub(crate) fn count(&self, name: &str) -> anyhow::Result<u64> {
        Agent::counter(&self.nodes[0], name)
    }

    /// Open files of both agents.
    pub(crate) fn open_files(&self) -> anyhow::Result<[usize; 2]> {
        let [a, b] = self.agents.each_ref().map(|agent| agent.process().open_files());
        Ok([a?, b?])
    }

    /// The most memory that each agent ever had.
    fn memory(&self) -> anyhow::Result<[u64; 2]> {
        let [a, b] = self.agents.each_ref().map(|agent| agent.process().peak());
        Ok([a?, b?])
    }

    /// What both agents refused so far for want of room.
    fn refusals(&self) -> anyhow::Result<u64> {
        let mut all = 0;
        for node in &self.nodes {
            let status = Agent::status(node)?;
            let counters = status["counters"].as_object().context("no counters")?;
            let refused = counters.iter().filter(|(name, _)| {
                name.starts_with("sluice_connections_refused_total") && name.contains("_limit")
            });
            all += refused.filter_map(|(_, count)| count.as_u64()).sum::<u64>();
        }
        Ok(all)
    }
}
