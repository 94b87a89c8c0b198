//! A pod that looks for open ports of another.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use sluice_tests::{Pod, within};
use tokio::{
    io::AsyncReadExt,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::siege::Siege;

const SCANNERS: usize = 64;
/// All ports are tried, or as many as this is enough for.
const TIME: Duration = Duration::from_secs(6);
/// How long a port is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_of_all_ports_of_a_pod_harms_no_other() -> anyhow::Result<()> {
    let siege = Siege::lay().await?;
    siege
        .withstands("scan of a pod's ports", async |siege| {
            let tried = scan(&siege.attacker, &siege.victim).await?;
            Ok((format!("{tried} ports in {TIME:?}"), ()))
        })
        .await
}

async fn scan(attacker: &Arc<Pod>, victim: &Pod) -> anyhow::Result<u32> {
    let (next, deadline) = (Arc::new(AtomicU32::new(1)), Instant::now() + TIME);
    let mut scanners = JoinSet::new();
    for _ in 0..SCANNERS {
        let (attacker, next, ip) = (attacker.clone(), next.clone(), victim.ip());
        scanners.spawn(async move {
            while Instant::now() < deadline
                && let Ok(port) = u16::try_from(next.fetch_add(1, Relaxed))
            {
                let try_it = async {
                    let mut stream = attacker.connect(SocketAddr::new(ip, port)).await?;
                    stream.read(&mut [0; 1]).await
                };
                // Whatever the answer is.
                let _ = timeout(PATIENCE, try_it).await;
            }
        });
    }
    within(2 * TIME, "the scan", scanners.join_all()).await?;
    Ok(next.load(Relaxed).saturating_sub(1))
}
