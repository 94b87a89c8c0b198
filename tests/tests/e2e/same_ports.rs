//! Connections that look alike: the same ports at both ends, at the same time.

use std::net::SocketAddr;

use anyhow::Context;
use sluice_tests::{Mesh, PATIENCE, Pod, Talk, capture_events, within};
use socket2::{Domain, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const PORT: u16 = 9999;
/// Below where Linux takes ports from by itself.
const FIXED: u16 = 20_000;

/// Connects from exactly `from`, on which the pod may be listening at the same time.
async fn connect_from(pod: &Pod, from: SocketAddr, to: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = pod.socket(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&from.into()).with_context(|| format!("bind to {from}"))?;
    let connect = TcpSocket::from_std_stream(socket.into()).connect(to);
    within(PATIENCE, "connect", connect).await?.with_context(|| format!("{from} to {to}"))
}

/// Listens on exactly `at`, from which the pod may be connected at the same time.
fn listen_and_share(pod: &Pod, at: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = pod.socket(Domain::for_address(at), Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&at.into())?;
    socket.listen(16)?;
    Ok(TcpListener::from_std(socket.into())?)
}

/// The server's end that a client's end leads to: the one whose bytes arrive there.
async fn joined(client: TcpStream, listener: &TcpListener, from: &Pod) -> anyhow::Result<Talk> {
    let talk = Talk::over(client, listener).await?;
    assert!(from.ips().contains(&talk.seen_client()?.ip()), "{:?}", talk.seen_client());
    Ok(talk)
}

#[tokio::test]
async fn two_pods_dial_each_other_on_the_port_that_both_listen_on() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    for other in [&mesh.near, &mesh.far] {
        for family in [0, 1] {
            let at = |pod: &Pod| SocketAddr::new(pod.ips()[family], PORT);
            for wildcard in [true, false] {
                let listen = |pod: &Pod| {
                    if wildcard { pod.listen(PORT) } else { pod.listen_at(at(pod)) }
                };
                let (own, others) = (listen(&mesh.client)?, listen(other)?);
                let before = capture_events(&mesh.a, "steered_out")?;
                let (there, back) = tokio::try_join!(
                    Talk::start(&mesh.client, at(other), &others),
                    Talk::start(other, at(&mesh.client), &own),
                )?;
                assert_eq!(there.seen_client()?.ip(), at(&mesh.client).ip());
                assert_eq!(back.seen_client()?.ip(), at(other).ip());
                let ours = if other.node() == mesh.a.name() { 2 } else { 1 };
                assert_eq!(capture_events(&mesh.a, "steered_out")?, before + ours);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_port_can_be_listened_on_while_captured_connections_to_it_last() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let mut open = Vec::new();
    for round in 0..2 {
        // In the second round again, while the connections of the first are open.
        let (own, near) = (mesh.client.listen(PORT)?, mesh.near.listen(PORT)?);
        let far = mesh.far.listen(PORT)?;
        for (client, server, listener) in [
            (&mesh.client, &mesh.near, &near),
            (&mesh.client, &mesh.far, &far),
            (&mesh.outsider, &mesh.near, &near),
            (&mesh.far, &mesh.client, &own),
        ] {
            for ip in server.ips() {
                let to = SocketAddr::new(ip, PORT);
                let talk = Talk::start(client, to, listener).await;
                open.push(talk.with_context(|| format!("round {round}"))?);
            }
        }
    }
    for talk in &mut open {
        talk.exchange().await?;
    }
    // Neither do those that are over and wait for their minute to pass.
    drop(open);
    drop((mesh.client.listen(PORT)?, mesh.near.listen(PORT)?, mesh.far.listen(PORT)?));
    Ok(())
}

#[tokio::test]
async fn two_pods_dial_one_server_from_the_same_port() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let second = mesh.a.pod("second")?;
    mesh.config.pod(&second)?;
    let _agents = mesh.start_agents(&[]).await?;
    for server in [&mesh.near, &mesh.far] {
        let listener = server.listen(PORT)?;
        for (family, port) in [(0, FIXED), (1, FIXED + 1)] {
            let to = SocketAddr::new(server.ips()[family], PORT);
            let mut talks = Vec::new();
            for pod in [&mesh.client, &second] {
                let from = SocketAddr::new(pod.ips()[family], port);
                let stream = connect_from(pod, from, to).await?;
                talks.push(joined(stream, &listener, pod).await?);
            }
            // Both at once, and neither gets the other's bytes.
            for talk in &mut talks {
                talk.exchange().await?;
            }
            assert_ne!(talks[0].seen_client()?.ip(), talks[1].seen_client()?.ip());
        }
    }
    Ok(())
}

#[tokio::test]
async fn two_pods_dial_each_other_with_one_port_at_all_four_ends() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    for other in [&mesh.near, &mesh.far] {
        for family in [0, 1] {
            // Another one for each, for the last has to wait out its minute.
            let port = FIXED + 10 * family as u16 + u16::from(other.name() == mesh.near.name());
            let at = |pod: &Pod| SocketAddr::new(pod.ips()[family], port);
            let (own, others) = (
                listen_and_share(&mesh.client, at(&mesh.client))?,
                listen_and_share(other, at(other))?,
            );
            let (there, back) = tokio::try_join!(
                connect_from(&mesh.client, at(&mesh.client), at(other)),
                connect_from(other, at(other), at(&mesh.client)),
            )?;
            let (mut there, mut back) =
                tokio::try_join!(joined(there, &others, &mesh.client), joined(back, &own, other),)?;
            there.exchange().await?;
            back.exchange().await?;
        }
    }
    Ok(())
}
