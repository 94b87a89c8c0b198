//! Two pods that make up as many metric series as they can.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use sluice_tests::{Agent, Service, eventually, ports};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{flood::each, siege::Siege};

/// More than one pod may have: half of what an agent keeps, 10,000.
const SERVICES: usize = 100;
/// Clients at once.
const AT_ONCE: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metric_series_without_end_harm_no_other() -> anyhow::Result<()> {
    let siege = Siege::lay().await?;
    let server = each(siege.accomplice.listen(ports::HTTP.target)?, any_status);
    let services: Vec<SocketAddr> = (0..SERVICES)
        .map(|number| Ok(SocketAddr::from(([10, 97, 0, u8::try_from(number)?], ports::HTTP.port))))
        .collect::<anyhow::Result<_>>()?;
    for (number, service) in services.iter().enumerate() {
        siege.mesh.service(&Service {
            name: &format!("made-up-{number}"),
            namespace: "default",
            ips: vec![service.ip()],
            ports: vec![ports::HTTP],
            endpoints: vec![&siege.accomplice],
        })?;
    }
    let statuses: Vec<u16> = (200..600)
        .filter(|status| {
            StatusCode::from_u16(*status).is_ok_and(|one| one.canonical_reason().is_some())
        })
        .collect();
    // The last one is known, so all are.
    let last = *services.last().context("no services")?;
    eventually("the services are there", || async {
        Ok(ask(&siege, last, &statuses[..1]).await.ok())
    })
    .await?;
    siege
        .withstands("metric series of two pods", async |siege| {
            let (before, had) = (siege.resident()?, series(siege).await?);
            let asked = services.iter().map(|service| ask(siege, *service, &statuses));
            stream::iter(asked).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
            let made = series(siege).await? - had;
            let grown = siege.resident()?.saturating_sub(before);
            ensure!((4_500..6_000).contains(&made), "{made} series");
            let each = grown / made as u64;
            Ok((format!("{made} series, {each} bytes each, {} MiB", grown >> 20), server))
        })
        .await
}

/// Series of requests in the agent of the attacker's node.
async fn series(siege: &Siege) -> anyhow::Result<usize> {
    let text = Agent::metrics(siege.attackers_node()).await?;
    Ok(text.lines().filter(|line| line.starts_with("istio_requests_total{")).count())
}

/// Asks for each status once, on one connection.
async fn ask(siege: &Siege, service: SocketAddr, statuses: &[u16]) -> anyhow::Result<()> {
    let mut stream = siege.attacker.connect(service).await?;
    let mut heard = Vec::new();
    for status in statuses {
        let request = format!("GET /{status} HTTP/1.1\r\nhost: accomplice\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        heard.clear();
        while !heard.ends_with(b"\r\n\r\n") {
            ensure!(stream.read_buf(&mut heard).await? > 0, "no answer to {status}");
        }
        ensure!(heard.starts_with(format!("HTTP/1.1 {status}").as_bytes()), "{status}: {heard:?}");
    }
    Ok(())
}

/// Answers with whatever status is asked for.
async fn any_status(mut stream: TcpStream) {
    let mut asked = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut asked).await {
        if !asked.ends_with(b"\r\n\r\n") {
            continue;
        }
        let status = String::from_utf8_lossy(&asked[5..8]).into_owned();
        asked.clear();
        // These two have no body, and say nothing of one.
        let length = if ["204", "304"].contains(&&*status) { "" } else { "content-length: 0\r\n" };
        let answer = format!("HTTP/1.1 {status} any\r\n{length}\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
