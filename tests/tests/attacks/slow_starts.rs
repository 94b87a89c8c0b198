//! Beginnings that never end: of TLS, of HTTP/2, of a request.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use sluice_tests::{HBONE, HboneClient, TestCa, ports};
use time::OffsetDateTime;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    flood::{flood, open},
    siege::Siege,
};

const CONNECTIONS: usize = 5_000;
/// How long they are held.
const TIME: Duration = Duration::from_secs(3);

/// The header of a TLS record that holds a ClientHello of 512 bytes, and the header of that.
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_handshakes_that_never_end_harm_no_other() -> anyhow::Result<()> {
    let siege = Siege::lay().await?;
    siege
        .withstands("5,000 TLS handshakes that never end", async |siege| {
            let to = SocketAddr::new(siege.victim.ip(), HBONE);
            let streams = flood(&siege.outsider, to, CONNECTIONS, CLIENT_HELLO).await?;
            sleep(TIME).await;
            Ok((format!("{} of {CONNECTIONS} open", open(&streams)), streams))
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_prefaces_that_never_come_harm_no_other() -> anyhow::Result<()> {
    let siege = Siege::lay().await?;
    let ca = TestCa::of_agents(&siege.lab.directory().join("ca"))?;
    siege
        .withstands("5,000 tunnels without a preface", async |siege| {
            let principal = "spiffe://cluster.local/ns/default/sa/outsider";
            let certificate = Arc::new(ca.sign(&[principal], OffsetDateTime::now_utc())?);
            let to = SocketAddr::new(siege.victim.ip(), HBONE);
            let tcp = flood(&siege.outsider, to, CONNECTIONS, b"").await?;
            let mut handshakes = JoinSet::new();
            for stream in tcp {
                let certificate = certificate.clone();
                handshakes.spawn(async move { HboneClient::tls_over(stream, &certificate).await });
            }
            let done = handshakes.join_all().await;
            let done: Vec<_> = done.into_iter().flatten().collect();
            sleep(TIME).await;
            Ok((format!("{} of {CONNECTIONS} through TLS", done.len()), done))
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_never_end_harm_no_other() -> anyhow::Result<()> {
    let siege = Siege::lay().await?;
    for (what, start) in [
        ("5,000 heads that never end", &b"GET / HTTP/1.1\r\nhost: victim\r\nx-slow: "[..]),
        ("5,000 prefaces in plaintext that never end", b"PRI * HTTP/2.0\r\n"),
    ] {
        siege
            .withstands(what, async |siege| {
                let to = Siege::service(ports::HTTP);
                let streams = flood(&siege.attacker, to, CONNECTIONS, start).await?;
                sleep(TIME).await;
                Ok((format!("{} of {CONNECTIONS} open", open(&streams)), streams))
            })
            .await?;
    }
    Ok(())
}
