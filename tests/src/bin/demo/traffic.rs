//! What the demo sends, and what was seen of it on the way.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};
use sluice_tests::{Finished, Pod, Recording, Span, Tcpdump};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::world::World;

/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many orders are placed.
const ORDERS: &str = "20";
/// What goes through the echo service.
const PAYLOAD: &str = "these bytes are nobody else's business";

/// Texts that cross between the nodes with every order and echo: paths, JSON, bytes.
pub(crate) const SECRETS: [&str; 3] = ["/api/user", "\"user_id\"", PAYLOAD];

/// What the claims are examined on.
pub(crate) struct Evidence {
    /// Between the nodes, without agents.
    pub(crate) bare: Recording,
    pub(crate) meshed: Meshed,
    /// Of one order.
    pub(crate) spans: Vec<Span>,
    pub(crate) all_spans: Vec<Span>,
    /// `sluice status` of each node.
    pub(crate) status: Vec<serde_json::Value>,
}

/// The traffic with agents.
pub(crate) struct Meshed {
    /// The client's lines, one per order.
    pub(crate) orders: Vec<String>,
    /// Between the nodes.
    pub(crate) crossing: Recording,
    /// Of it, what is not HBONE.
    pub(crate) other: Recording,
    /// Inside the user service's pod, between agent and application.
    pub(crate) inside: Recording,
}

impl Meshed {
    /// The replicas that served orders.
    pub(crate) fn replicas(&self) -> String {
        let replica = |order: &String| {
            let known = ["order-near", "order-far"];
            known.into_iter().find(|name| order.contains(&format!("\"{name}-")))
        };
        let replicas: BTreeSet<_> = self.orders.iter().filter_map(replica).collect();
        replicas.into_iter().collect::<Vec<_>>().join(" and ")
    }
}

/// Every connection but those of telemetry, which end at the router itself.
fn between_nodes(world: &World) -> String {
    let not_telemetry = world.lab.fabric_ips().map(|ip| format!("not host {ip}"));
    format!("(tcp or udp) and {}", not_telemetry.join(" and "))
}

/// Sends by pod addresses what the mesh will carry later.
pub(crate) async fn without_agents(world: &World) -> anyhow::Result<Recording> {
    let recording = Tcpdump::on_node(&world.a, "bare", &between_nodes(world)).await?;
    let request = "GET /api/user HTTP/1.0\r\nHost: user-service\r\n\r\n";
    exchange(&world.client, world.user_pod(), request, "\"user_id\"").await?;
    exchange(&world.client, world.echo_pod(), PAYLOAD, PAYLOAD).await?;
    let recording = recording.stop().await?;
    for secret in SECRETS {
        ensure!(recording.contains(secret), "`{secret}` is not seen even without an agent");
    }
    Ok(recording)
}

/// Places orders and sends bytes through the echo service, by service addresses.
pub(crate) async fn with_agents(world: &World) -> anyhow::Result<Meshed> {
    let filter = between_nodes(world);
    let crossing = Tcpdump::on_node(&world.a, "meshed", &filter).await?;
    let other =
        Tcpdump::on_node(&world.a, "other", &format!("{filter} and not port 15008")).await?;
    let inside = Tcpdump::in_pod(&world.user, "lo", "tcp").await?;

    let url = world.order_url();
    let place = ["client", "--url", &url, "--count", ORDERS, "--interval", "20ms"];
    let placed = world
        .client
        .run(world.program(&world.client, &place)?)
        .and_then(Finished::success)
        .context("orders failed")?;
    exchange(&world.client, world.echo_service(), PAYLOAD, PAYLOAD).await?;

    Ok(Meshed {
        orders: placed.lines().map(str::to_owned).collect(),
        crossing: crossing.stop().await?,
        other: other.stop().await?,
        inside: inside.stop().await?,
    })
}

/// Connects from `pod`, sends `text`, and reads until `expected` has come back.
async fn exchange(pod: &Pod, to: SocketAddr, text: &str, expected: &str) -> anyhow::Result<()> {
    let talk = async {
        let mut stream = pod.connect(to).await?;
        stream.write_all(text.as_bytes()).await?;
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains(expected) {
            let read = stream.read_buf(&mut answer).await?;
            let answered = String::from_utf8_lossy(&answer);
            ensure!(read > 0, "the answer ended without `{expected}`: `{answered}`");
        }
        Ok(())
    };
    let what = || format!("{} did not get its answer from {to}", pod.name());
    timeout(PATIENCE, talk).await.with_context(what)?.with_context(what)
}
