//! An agent without a file descriptor left.

use std::{io::ErrorKind, process::Command};

use anyhow::ensure;
use sluice_tests::{eventually, ports};
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{
    flood::{flood, hoard},
    siege::Siege,
};

/// Descriptors that the agent gets beyond those it has.
const MORE: usize = 100;
const CONNECTIONS: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_one_too_many_is_reset_and_others_are_served_when_there_are_descriptors_again()
-> anyhow::Result<()> {
    let siege = Siege::lay().await?;
    let kept = hoard(siege.victim.listen(ports::TCP.target)?);
    let agent = siege.attackers_agent();
    let limit = siege.open_files()?[0] + MORE;
    let mut prlimit = Command::new("prlimit");
    prlimit.arg(format!("--pid={}", agent.process().id())).arg(format!("--nofile={limit}:"));
    ensure!(prlimit.status()?.success(), "could not limit the agent's open files");
    let streams = flood(&siege.attacker, Siege::service(ports::TCP), CONNECTIONS, b"").await?;
    // What came later than that many has not been accepted before there were none left.
    eventually("a connection was reset", || async {
        let reset = |stream: &TcpStream| {
            stream.try_read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
        };
        Ok(streams.iter().any(reset).then_some(()))
    })
    .await?;
    // Each is either carried or reset; none waits for what may never come.
    let refused = || async {
        let name = "sluice_connections_refused_total{reason=\"descriptor_limit\"}";
        Ok((siege.count(name)? > 0).then_some(()))
    };
    // Both ends: one that says no more is still there for the other.
    drop((streams, kept));
    eventually("connections were refused", refused).await?;
    let lines = agent.process().output().lines();
    let told = lines.iter().filter(|line| line.contains("descriptor")).count();
    ensure!(told < 10, "{told} lines say that there are no descriptors");
    let listener = siege.victim.listen(ports::TCP.target)?;
    eventually("connections are carried again", || async {
        let mut stream = siege.attacker.connect(Siege::service(ports::TCP)).await?;
        tokio::select! {
            accepted = listener.accept() => Ok(accepted.ok().map(drop)),
            // Reset: the agent has not heard of all ends yet.
            _ = stream.read_u8() => Ok(None),
        }
    })
    .await
}
