//! Connections that are opened and left alone.

use std::time::Duration;

use sluice_tests::ports;
use tokio::time::sleep;

use crate::{
    flood::{flood, hoard, open},
    siege::Siege,
};

const CONNECTIONS: usize = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_of_one_pod_harm_no_other() -> anyhow::Result<()> {
    let siege = Siege::lay().await?;
    let kept = hoard(siege.victim.listen(ports::TCP.target)?);
    siege
        .withstands("10,000 idle connections", async |siege| {
            let to = Siege::service(ports::TCP);
            let streams = flood(&siege.attacker, to, CONNECTIONS, b"").await?;
            sleep(Duration::from_secs(2)).await;
            Ok((format!("{} of {CONNECTIONS} open", open(&streams)), (streams, kept)))
        })
        .await
}
