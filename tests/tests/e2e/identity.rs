//! Who is let in. Whoever is not leaves no byte at the application, and both the log and a span
//! say why.

use std::{fs, io::ErrorKind, net::SocketAddr, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use http::StatusCode;
use sluice_tests::{
    Agent, HBONE, HboneClient, HboneSessions, Kind, OPAQUE, PATIENCE, Pod, Span, TestCa,
    TestCertificate, TunnelLab, within,
};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// How soon a refused application must learn of it: before any timeout of the agent's would tell
/// it.
const PROMPTLY: Duration = Duration::from_secs(9);
const NAMESPACE: &str = "spiffe://cluster.local/ns/default/sa";

fn opaque(server: &Pod) -> SocketAddr {
    SocketAddr::new(server.ip(), OPAQUE[0])
}

/// Connects from the client to `far`, which must reset it.
async fn be_refused(lab: &TunnelLab) -> anyhow::Result<()> {
    let work = async {
        let mut stream = lab.client.connect(opaque(&lab.far)).await?;
        stream.write_all(b"must not arrive").await?;
        stream.read_u8().await
    };
    // Whichever of the three the reset meets.
    let met = within(PROMPTLY, "the reset", work).await?;
    assert_eq!(met.unwrap_err().kind(), ErrorKind::ConnectionReset);
    Ok(())
}

/// Sends `marker` straight to the application, from its own pod, and expects it to be the first
/// thing the application ever gets.
async fn arrives_first(pod: &Pod, listener: &TcpListener, marker: &str) -> anyhow::Result<()> {
    let to = SocketAddr::new(pod.ip(), listener.local_addr()?.port());
    let mut stream = within(PATIENCE, "connect", pod.connect(to)).await??;
    stream.write_all(marker.as_bytes()).await?;
    let (first, _) = within(PATIENCE, "accept", listener.accept()).await??;
    assert_eq!(read(first, marker.len()).await?, marker.as_bytes());
    Ok(())
}

async fn read(mut stream: TcpStream, length: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    within(PATIENCE, "read", stream.read_exact(&mut bytes)).await??;
    Ok(bytes)
}

async fn says(agent: &Agent, event: &str, why: &str) -> anyhow::Result<()> {
    let line = agent.process().output();
    let line = line.line(PATIENCE, |line| line.contains(event) && line.contains(why));
    line.await.map(drop).with_context(|| format!("no `{event}` because of `{why}`"))
}

async fn refused_span(lab: &TunnelLab, kind: Kind, of: &Pod) -> anyhow::Result<Span> {
    let refused = |span: &Span| {
        span.kind == kind
            && span.service == of.app()
            && span.attribute("error.type") == "tls_failure"
    };
    let spans = lab.receiver.wait_for(PATIENCE, |spans| spans.iter().any(refused)).await?;
    Ok(spans.into_iter().find(refused).expect("it was waited for"))
}

#[tokio::test]
async fn a_node_of_another_ca_is_refused_and_refuses() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let foreign = lab.lab.directory().join("foreign-ca");
    let foreign = foreign.to_str().context("the lab's directory is not UTF-8")?;
    let a = lab.start_agent(&lab.a, &lab.mesh, &[]).await?;
    let b = lab.start_agent(&lab.b, &lab.mesh, &["--ca-dir", foreign]).await?;
    let listener = lab.far.listen(OPAQUE[0])?;
    be_refused(&lab).await?;
    says(&a, "outbound connection failed", "signed by no CA this node trusts").await?;
    says(&b, "HBONE connection refused", "alert").await?;
    let span = refused_span(&lab, Kind::Client, &lab.client).await?;
    assert_eq!(span.attribute("mesh.connection.sent_bytes"), "0");
    refused_span(&lab, Kind::Server, &lab.far).await?;
    arrives_first(&lab.far, &listener, "from inside").await
}

#[tokio::test]
async fn a_destination_that_is_somebody_else_is_refused_by_the_client() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    // The destination's agent takes `far` for another service account than the client's does.
    let other = lab.lab.mesh_named("other")?;
    for entry in fs::read_dir(lab.mesh.directory())? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).context("not UTF-8")?;
        let text = fs::read_to_string(&path)?;
        let text = text.replace("serviceAccountName: far\n", "serviceAccountName: near\n");
        other.write(name, &text)?;
    }
    let (a, _b) = tokio::try_join!(
        lab.start_agent(&lab.a, &lab.mesh, &[]),
        lab.start_agent(&lab.b, &other, &[]),
    )?;
    let listener = lab.far.listen(OPAQUE[0])?;
    be_refused(&lab).await?;
    let why = format!("the peer is {NAMESPACE}/near, not {NAMESPACE}/far");
    says(&a, "outbound connection failed", &why).await?;
    refused_span(&lab, Kind::Client, &lab.client).await?;
    arrives_first(&lab.far, &listener, "from inside").await
}

/// Connects by hand as the `outsider` and asks for `far`'s application.
async fn by_hand(
    lab: &TunnelLab,
    certificate: Option<TestCertificate>,
    authority: SocketAddr,
) -> anyhow::Result<(HboneClient, StatusCode, h2::SendStream<Bytes>, h2::RecvStream)> {
    let mut client = HboneClient::connect(&lab.outsider, &lab.far, certificate).await?;
    let (status, send, received) = client.open(authority).await?;
    Ok((client, status, send, received))
}

/// A client with `certificate` must fail for the reason `why`, and the same client with a right
/// one must be the first that the application hears of.
async fn refused_by_hand(
    certificate: impl FnOnce(&TestCa) -> anyhow::Result<Option<TestCertificate>>,
    why: &str,
) -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let [_a, b] = lab.start_agents(&[]).await?;
    let ca = TestCa::of_agents(&lab.lab.directory().join("ca"))?;
    let listener = lab.far.listen(OPAQUE[0])?;

    let certificate = certificate(&ca)?;
    let refused = by_hand(&lab, certificate, opaque(&lab.far)).await;
    assert!(refused.is_err(), "it was answered {:?}", refused.map(|answer| answer.1));
    says(&b, "HBONE connection refused", why).await?;
    let span = refused_span(&lab, Kind::Server, &lab.far).await?;
    assert_eq!(span.attribute("server.port"), HBONE.to_string());
    assert_eq!(span.attribute("mesh.source.principal"), "", "nobody has proved to be anybody");

    let right = ca.sign(&[&format!("{NAMESPACE}/visitor")], OffsetDateTime::now_utc())?;
    let answered = by_hand(&lab, Some(right), opaque(&lab.far)).await?;
    let (_client, status, mut send, _received) = answered;
    assert_eq!(status, StatusCode::OK);
    send.send_data(Bytes::from_static(b"let in"), true)?;
    let (first, _) = within(PATIENCE, "accept", listener.accept()).await??;
    assert_eq!(read(first, 6).await?, b"let in");
    let principal = format!("{NAMESPACE}/visitor");
    lab.receiver
        .wait_for(PATIENCE, |spans| {
            spans.iter().any(|span| span.attribute("mesh.source.principal") == principal)
        })
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() -> anyhow::Result<()> {
    refused_by_hand(|_| Ok(None), "presented no certificate").await
}

#[tokio::test]
async fn a_client_with_a_certificate_of_another_ca_is_refused() -> anyhow::Result<()> {
    let sign = |_: &TestCa| {
        let ca = TestCa::unknown()?;
        ca.sign(&[&format!("{NAMESPACE}/client")], OffsetDateTime::now_utc()).map(Some)
    };
    refused_by_hand(sign, "signed by no CA this node trusts").await
}

#[tokio::test]
async fn a_client_whose_certificate_has_expired_is_refused() -> anyhow::Result<()> {
    let sign = |ca: &TestCa| {
        let yesterday = OffsetDateTime::now_utc() - time::Duration::days(1);
        ca.sign(&[&format!("{NAMESPACE}/client")], yesterday).map(Some)
    };
    refused_by_hand(sign, "expired at").await
}

#[tokio::test]
async fn a_client_whose_certificate_is_not_valid_yet_is_refused() -> anyhow::Result<()> {
    let sign = |ca: &TestCa| {
        let tomorrow = OffsetDateTime::now_utc() + time::Duration::days(1);
        ca.sign(&[&format!("{NAMESPACE}/client")], tomorrow).map(Some)
    };
    refused_by_hand(sign, "not valid before").await
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused() -> anyhow::Result<()> {
    let sign = |ca: &TestCa| {
        let principal = "spiffe://elsewhere.example/ns/default/sa/client";
        ca.sign(&[principal], OffsetDateTime::now_utc()).map(Some)
    };
    refused_by_hand(sign, "not of trust domain `cluster.local`").await
}

#[tokio::test]
async fn a_client_whose_certificate_names_no_workload_is_refused() -> anyhow::Result<()> {
    let sign = |ca: &TestCa| ca.sign(&[], OffsetDateTime::now_utc()).map(Some);
    refused_by_hand(sign, "names 0 URI identities").await
}

#[tokio::test]
async fn a_client_whose_certificate_names_two_workloads_is_refused() -> anyhow::Result<()> {
    let sign = |ca: &TestCa| {
        let (one, other) = (format!("{NAMESPACE}/client"), format!("{NAMESPACE}/near"));
        ca.sign(&[&one, &other], OffsetDateTime::now_utc()).map(Some)
    };
    refused_by_hand(sign, "names 2 URI identities").await
}

#[tokio::test]
async fn a_tunnel_into_one_pod_leads_to_no_other_address() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let [_a, b] = lab.start_agents(&[]).await?;
    let ca = TestCa::of_agents(&lab.lab.directory().join("ca"))?;
    // Whoever is there would be reached from the pod or from its node.
    let elsewhere = lab.far_outsider.listen(OPAQUE[0])?;
    let right = ca.sign(&[&format!("{NAMESPACE}/visitor")], OffsetDateTime::now_utc())?;
    let answered = by_hand(&lab, Some(right), opaque(&lab.far_outsider)).await?;
    let (mut client, status, _send, _received) = answered;
    assert_eq!(status, StatusCode::NOT_FOUND);
    says(&b, "not the pod's", &opaque(&lab.far_outsider).to_string()).await?;
    let loopback = SocketAddr::from(([127, 0, 0, 1], OPAQUE[0]));
    assert_eq!(client.open(loopback).await?.0, StatusCode::NOT_FOUND);
    // Nobody came there before this.
    arrives_first(&lab.far_outsider, &elsewhere, "from inside").await?;
    // The connection is not at fault, and the pod itself is reachable through it.
    let _listener = lab.far.listen(OPAQUE[0])?;
    assert_eq!(client.open(opaque(&lab.far)).await?.0, StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn no_session_is_resumed_past_the_certificates() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let _agents = lab.start_agents(&[]).await?;
    let ca = TestCa::of_agents(&lab.lab.directory().join("ca"))?;
    let certificate = ca.sign(&[&lab.client.principal()], OffsetDateTime::now_utc())?;
    let sessions = HboneSessions::of(Some(certificate))?;
    let listener = lab.far.listen(OPAQUE[0])?;
    for _ in 0..2 {
        let mut client = HboneClient::connect_by(&lab.outsider, &lab.far, &sessions).await?;
        assert!(!client.is_resumed());
        // By now a server has said what it takes to resume.
        let (status, ..) = client.open(opaque(&lab.far)).await?;
        assert_eq!(status, StatusCode::OK);
        within(PATIENCE, "accept", listener.accept()).await??;
    }
    Ok(())
}

#[tokio::test]
async fn whoever_speaks_tls_1_2_alone_is_refused() -> anyhow::Result<()> {
    /// A ClientHello (RFC 5246, 7.4.1.2) up to its random, and behind that: one cipher suite, one
    /// kind of signature and one group.
    const BEFORE: &[u8] = &[22, 3, 1, 0, 63, 1, 0, 0, 59, 3, 3];
    const AFTER: &[u8] =
        &[0, 0, 2, 0xc0, 0x2f, 1, 0, 0, 16, 0, 13, 0, 4, 0, 2, 4, 3, 0, 10, 0, 4, 0, 2, 0, 23];
    /// A fatal alert: `protocol_version`.
    const REFUSAL: [u8; 7] = [21, 3, 3, 0, 2, 2, 70];
    let lab = TunnelLab::new()?;
    let _agents = lab.start_agents(&[]).await?;
    let to = SocketAddr::new(lab.far.ip(), HBONE);
    let mut stream = within(PATIENCE, "connect", lab.outsider.connect(to)).await??;
    stream.write_all(&[BEFORE, &[0; 32], AFTER].concat()).await?;
    assert_eq!(read(stream, REFUSAL.len()).await?, REFUSAL);
    Ok(())
}
