//! Opaque connections through the mesh: what others see of them, how they end, and what they
//! survive.

use std::{future::Future, io::ErrorKind, net::SocketAddr, time::Duration};

use anyhow::ensure;
use sluice_tests::{
    Agent, HboneClient, OPAQUE, PATIENCE, Pod, Recording, Tcpdump, TestCa, TunnelLab, within,
};
use socket2::SockRef;
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How soon an application must learn that its connection is broken: before any timeout of the
/// agent's would tell it.
const PROMPTLY: Duration = Duration::from_secs(9);
/// More than every buffer and window on the way takes at once.
const LONG: usize = 8 << 20;
const SECRET: &str = "a secret nobody on the way may read";

/// The two ways a connection can go: to the other node and within the client's.
fn servers(lab: &TunnelLab) -> [&Pod; 2] {
    [&lab.far, &lab.near]
}

async fn write_and_end(stream: &mut TcpStream, bytes: &[u8]) -> anyhow::Result<()> {
    let work = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await
    };
    Ok(within(PATIENCE, "write", work).await??)
}

async fn read_to_end(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    within(PATIENCE, "read to the end", stream.read_to_end(&mut bytes)).await??;
    Ok(bytes)
}

/// Sends [`SECRET`] to `server`'s first opaque port and back.
async fn exchange_secret(client: &Pod, server: &Pod) -> anyhow::Result<()> {
    let listener = server.listen(OPAQUE[0])?;
    let to = SocketAddr::new(server.ip(), OPAQUE[0]);
    let both = async { tokio::try_join!(client.connect(to), listener.accept()) };
    let (mut near, (mut far, _)) = within(PATIENCE, "connect", both).await??;
    write_and_end(&mut near, SECRET.as_bytes()).await?;
    let received = read_to_end(&mut far).await?;
    write_and_end(&mut far, &received).await?;
    assert_eq!(read_to_end(&mut near).await?, SECRET.as_bytes());
    Ok(())
}

fn everything_but_telemetry(lab: &TunnelLab) -> String {
    let [v4, v6] = lab.lab.fabric_ips();
    format!("(tcp or udp) and not host {v4} and not host {v6}")
}

#[tokio::test]
async fn between_nodes_there_is_tls_on_one_port_and_nothing_else() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let _agents = lab.start_agents(&[]).await?;
    let all = everything_but_telemetry(&lab);
    let crossing = Tcpdump::on_node(&lab.a, "crossing", &all).await?;
    let other = Tcpdump::on_node(&lab.a, "other", &format!("{all} and not port 15008")).await?;
    let inside = Tcpdump::in_pod(&lab.far, "lo", "tcp").await?;
    exchange_secret(&lab.client, &lab.far).await?;
    let (crossing, other, inside) =
        (crossing.stop().await?, other.stop().await?, inside.stop().await?);
    assert!(!crossing.contains(SECRET));
    assert!(is_tls_1_3(&crossing), "{} packets, but no TLS", crossing.packets);
    assert_eq!(other.packets, 0);
    assert!(inside.contains(SECRET), "the application's own side must be in plaintext");
    Ok(())
}

/// The first bytes of a handshake record and of an encrypted one.
fn is_tls_1_3(recording: &Recording) -> bool {
    recording.contains("\x16\x03\x01") && recording.contains("\x17\x03\x03")
}

#[tokio::test]
async fn pods_outside_the_mesh_are_seen_in_plaintext() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let _agents = lab.start_agents(&[]).await?;
    let crossing = Tcpdump::on_node(&lab.a, "crossing", &everything_but_telemetry(&lab)).await?;
    exchange_secret(&lab.outsider, &lab.far_outsider).await?;
    let crossing = crossing.stop().await?;
    assert!(crossing.contains(SECRET));
    assert!(!is_tls_1_3(&crossing));
    Ok(())
}

#[tokio::test]
async fn a_client_that_has_said_everything_still_hears_the_whole_answer() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let _agents = lab.start_agents(&[]).await?;
    for server in servers(&lab) {
        let listener = server.listen(OPAQUE[0])?;
        let (mut client, mut server) = lab.join(server, &listener).await?;
        write_and_end(&mut client, b"question").await?;
        assert_eq!(read_to_end(&mut server).await?, b"question");
        let answer = pattern();
        let (sent, received) =
            tokio::join!(write_and_end(&mut server, &answer), read_to_end(&mut client));
        sent?;
        assert!(received? == answer);
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_has_said_everything_still_hears_the_whole_client() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let _agents = lab.start_agents(&[]).await?;
    for server in servers(&lab) {
        let listener = server.listen(OPAQUE[0])?;
        let (mut client, mut server) = lab.join(server, &listener).await?;
        write_and_end(&mut server, b"greeting").await?;
        assert_eq!(read_to_end(&mut client).await?, b"greeting");
        let upload = pattern();
        let (sent, received) =
            tokio::join!(write_and_end(&mut client, &upload), read_to_end(&mut server));
        sent?;
        assert!(received? == upload);
    }
    Ok(())
}

/// Bytes in which no part is like another.
fn pattern() -> Vec<u8> {
    (0..LONG as u64 / 8).flat_map(u64::to_be_bytes).collect()
}

#[tokio::test]
async fn a_server_that_refuses_is_a_reset_to_the_client_at_once() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let _agents = lab.start_agents(&[]).await?;
    for server in servers(&lab) {
        let closed = SocketAddr::new(server.ip(), OPAQUE[1]);
        // The reset may be there before connect() returns.
        let refused = async { lab.client.connect(closed).await?.read_u8().await };
        assert_reset("a refused client", refused).await?;
        // The same pod is reachable where it listens.
        let listener = server.listen(OPAQUE[0])?;
        lab.join(server, &listener).await?;
    }
    let direct = lab.outsider.connect(SocketAddr::new(lab.far_outsider.ip(), OPAQUE[1]));
    let refused = within(PATIENCE, "connect", direct).await?.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    Ok(())
}

#[tokio::test]
async fn a_server_that_resets_is_a_reset_to_the_client_and_no_end() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let _agents = lab.start_agents(&[]).await?;
    for server in servers(&lab) {
        let listener = server.listen(OPAQUE[0])?;
        let (mut client, mut server) = lab.join(server, &listener).await?;
        client.write_all(b"half a question").await?;
        server.read_u8().await?;
        reset(server)?;
        assert_reset("the client of a server that resets", client.read_u8()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_resets_is_a_reset_to_the_server_and_no_end() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let _agents = lab.start_agents(&[]).await?;
    for server in servers(&lab) {
        let listener = server.listen(OPAQUE[0])?;
        let (mut client, mut server) = lab.join(server, &listener).await?;
        server.write_all(b"half an answer").await?;
        client.read_u8().await?;
        reset(client)?;
        assert_reset("the server of a client that resets", server.read_u8()).await?;
    }
    Ok(())
}

fn reset(stream: TcpStream) -> anyhow::Result<()> {
    Ok(SockRef::from(&stream).set_linger(Some(Duration::ZERO))?)
}

async fn assert_reset(
    who: &str,
    read: impl Future<Output = std::io::Result<u8>>,
) -> anyhow::Result<()> {
    match within(PROMPTLY, who, read).await? {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => anyhow::bail!("{who} must be reset, not {other:?}"),
    }
}

/// One connection there and back.
async fn echo_once(lab: &TunnelLab, text: &[u8]) -> anyhow::Result<()> {
    let listener = lab.far.listen(OPAQUE[0])?;
    let (mut client, mut server) = lab.join(&lab.far, &listener).await?;
    write_and_end(&mut client, text).await?;
    let received = read_to_end(&mut server).await?;
    write_and_end(&mut server, &received).await?;
    ensure!(read_to_end(&mut client).await? == text, "something else came back");
    Ok(())
}

#[tokio::test]
async fn the_next_connection_works_when_the_destinations_agent_was_restarted() -> anyhow::Result<()>
{
    let lab = TunnelLab::new()?;
    let [_a, mut b] = lab.start_agents(&[]).await?;
    echo_once(&lab, b"before").await?;
    b.terminate(PATIENCE).await?;
    let mut b = lab.start_agent(&lab.b, &lab.mesh, &[]).await?;
    echo_once(&lab, b"after an orderly end").await?;
    b.kill9();
    let _b = lab.start_agent(&lab.b, &lab.mesh, &[]).await?;
    echo_once(&lab, b"after a crash").await
}

#[tokio::test]
async fn certificates_are_renewed_under_traffic_and_nobody_notices() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let _agents = lab.start_agents(&["--certificate-lifetime", "6s"]).await?;
    let listener = lab.far.listen(OPAQUE[1])?;
    let (mut client, mut server) = lab.join(&lab.far, &listener).await?;
    let new_connections =
        Tcpdump::on_node(&lab.a, "hbone", "dst port 15008 and tcp[tcpflags] == tcp-syn").await?;

    let mut serials = [Vec::new(), Vec::new()];
    let mut exchanges = 0_u64;
    while serials.iter().any(|seen| seen.len() < 4) {
        exchanges += 1;
        client.write_u64(exchanges).await?;
        assert_eq!(within(PATIENCE, "the old stream", server.read_u64()).await??, exchanges);
        server.write_u64(!exchanges).await?;
        assert_eq!(within(PATIENCE, "the old stream", client.read_u64()).await??, !exchanges);
        echo_once(&lab, &exchanges.to_be_bytes()).await?;
        for (seen, (node, pod)) in
            serials.iter_mut().zip([(&lab.a, &lab.client), (&lab.b, &lab.far)])
        {
            let serial = serial_of(&Agent::status(node)?, pod);
            if !seen.contains(&serial) {
                seen.push(serial);
            }
        }
    }
    echo_once(&lab, b"with the newest").await?;
    let new_connections = new_connections.stop().await?.packets;
    // One for each certificate the client's side has had, at least from the second on.
    assert!(new_connections >= 3, "{new_connections} HBONE connections in {exchanges} exchanges");
    assert!(new_connections < exchanges, "{new_connections} connections were not shared");
    write_and_end(&mut client, b"").await?;
    assert_eq!(read_to_end(&mut server).await?, b"");

    let ca = TestCa::of_agents(&lab.lab.directory().join("ca"))?;
    let visitor = ca.sign(&["spiffe://cluster.local/ns/x/sa/y"], OffsetDateTime::now_utc())?;
    let older = serial_of(&Agent::status(&lab.b)?, &lab.far);
    let shown = HboneClient::connect(&lab.outsider, &lab.far, Some(visitor)).await?;
    let newer = serial_of(&Agent::status(&lab.b)?, &lab.far);
    assert!(shown.server_has_serial(&older) || shown.server_has_serial(&newer));
    assert!(!shown.server_has_serial(&serials[1][0]), "the first certificate is still in use");
    Ok(())
}

/// The serial number of the certificate that an agent holds for `pod`.
fn serial_of(status: &serde_json::Value, pod: &Pod) -> String {
    let certificates = status["certificates"].as_array().expect("status lists certificates");
    let of_pod = certificates.iter().find(|one| one["principal"] == pod.principal());
    let of_pod = of_pod.unwrap_or_else(|| panic!("no certificate of {}: {status}", pod.name()));
    of_pod["serial"].as_str().expect("a certificate has a serial number").to_owned()
}
