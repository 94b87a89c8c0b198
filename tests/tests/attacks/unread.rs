//! A server that never reads, and clients that send all they can.

use std::time::Duration;

use sluice_tests::ports;
use tokio::{io::AsyncWriteExt, task::JoinSet, time::timeout};

use crate::{
    flood::{flood, hoard},
    siege::Siege,
};

const CONNECTIONS: usize = 600;
/// How long clients go on trying to send.
const TIME: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_hundred_connections_to_a_server_that_never_reads_harm_no_other() -> anyhow::Result<()>
{
    let siege = Siege::lay().await?;
    let kept = hoard(siege.victim.listen(ports::TCP.target)?);
    siege
        .withstands("600 connections that nobody reads", async |siege| {
            let to = Siege::service(ports::TCP);
            let streams = flood(&siege.attacker, to, CONNECTIONS, b"").await?;
            let mut senders = JoinSet::new();
            for mut stream in streams {
                senders.spawn(async move {
                    let piece = vec![0; 64 << 10];
                    let mut sent = 0;
                    let send = async {
                        while let Ok(written) = stream.write(&piece).await {
                            sent += written;
                        }
                    };
                    let still_open = timeout(TIME, send).await.is_err();
                    (still_open, sent, stream)
                });
            }
            let senders = senders.join_all().await;
            let open = senders.iter().filter(|(open, ..)| *open).count();
            let sent: usize = senders.iter().map(|(_, sent, _)| sent).sum();
            let told = format!("{open} of {CONNECTIONS} open, {} MiB on their way", sent >> 20);
            Ok((told, (senders, kept)))
        })
        .await
}
