//! Clients and servers that are not ours, as people have them: what curl and wget are answered by
//! nginx, Apache httpd and applications in several languages is what they are answered without the
//! mesh.

mod clients;
mod servers;

use std::{cell::Cell, fs, net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use sluice_tests::{Line, Pod, eventually};
use tokio::{task::JoinSet, time::sleep};

use self::{
    clients::{BY_WGET, Client, IN_HTTP1, OF_APPLICATIONS, OF_FRONTS},
    servers::{APACHE, Front, Kind, NGINX, NODE, SERVERS, Server, Speaks, site},
};
use super::ways::{Ground, Way};

/// How much clients upload, and how much that is more than connections hold on their way.
const UPLOAD: usize = 300_000;
const LARGE: usize = 3_000_000;
/// How much of what was heard a report shows.
const SHOWN: usize = 1500;

/// All that clients ask of a server, in the order in which it is asked.
fn asked(server: &Server) -> Vec<(Client, &'static [&'static str])> {
    let all = |client, asked: &[&'static [&'static str]]| {
        asked.iter().map(|asked| (client, *asked)).collect::<Vec<_>>()
    };
    let Kind::Front(Front { speaks, .. }) = server.kind else {
        return all(Client::Curl, OF_APPLICATIONS);
    };
    let http1 =
        [all(Client::Curl, OF_FRONTS), all(Client::Curl, IN_HTTP1), all(Client::Wget, BY_WGET)];
    let http2 = all(Client::Curl2, OF_FRONTS);
    match speaks {
        Speaks::Http1 => http1.concat(),
        Speaks::Http2 => http2,
        Speaks::Both => [http1.concat(), http2].concat(),
    }
}

/// The ways on which they ask it: to start so many programs takes time, and what an agent makes of a
/// port that nothing is said of depends on no server.
fn ways(server: &Server) -> Vec<Way> {
    match server.kind {
        Kind::Front(_) => vec![Way::SameNode, Way::Across, Way::Undeclared],
        _ => Way::MESH.into_iter().filter(|way| way.is_declared()).collect(),
    }
}

/// What they all hear on a way.
fn heard(ground: &Ground, server: &Server, number: usize, way: Way) -> anyhow::Result<Vec<String>> {
    let (from, to, ..) = ground.ends(way, number);
    let hears = |(client, asked): (Client, &[&str])| {
        client.hears(ground.directory(), from, &to.to_string(), asked)
    };
    asked(server).into_iter().map(hears).collect()
}

#[tokio::test]
async fn clients_hear_of_real_servers_what_they_hear_without_the_mesh() -> anyhow::Result<()> {
    let ground = &Ground::lay(SERVERS.len()).await?;
    for (name, length) in [("upload", UPLOAD), ("large", LARGE)] {
        fs::write(ground.directory().join(name), vec![b'a'; length])?;
    }
    lay_site(ground)?;
    let mut wrong = String::new();
    for (number, server) in SERVERS.iter().enumerate() {
        let Some(_running) = server.start(ground, number).await? else { continue };
        let direct = heard(ground, server, number, Way::Direct)?;
        for way in ways(server) {
            let through = heard(ground, server, number, way)?;
            for (((client, asked), direct), through) in
                asked(server).into_iter().zip(&direct).zip(&through)
            {
                if through != direct {
                    wrong += &format!(
                        "\n== {} of {}, {client:?} {asked:?}:\n{}\n  directly\n{}\n",
                        server.name(),
                        way.name(),
                        shown(through),
                        shown(direct),
                    );
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}

fn shown(heard: &str) -> String {
    heard.chars().take(SHOWN).collect()
}

/// Lays out what fronts serve.
fn lay_site(ground: &Ground) -> anyhow::Result<()> {
    let site = site(ground);
    fs::create_dir(&site)?;
    let big: String = (0..UPLOAD / 8).map(|number| format!("{number:07}\n")).collect();
    for (name, text) in [("index.txt", "hello\n"), ("small", "hello\n"), ("big.txt", &*big)] {
        fs::write(site.join(name), text)?;
    }
    Ok(())
}

const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

#[tokio::test]
async fn a_websocket_passes_through_what_stands_before_an_application() -> anyhow::Result<()> {
    let servers = [NGINX, APACHE];
    let ground = &Ground::lay(servers.len()).await?;
    lay_site(ground)?;
    for (number, server) in servers.iter().enumerate() {
        let _running = server.start(ground, number).await?.context("it is needed")?;
        let (from, to, ..) = ground.ends(Way::Direct, number);
        let direct = websocket(from, to).await.with_context(|| server.name())?;
        assert!(direct.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        for way in Way::MESH {
            let (from, to, ..) = ground.ends(way, number);
            let what = || format!("{}, {}", server.name(), way.name());
            assert_eq!(websocket(from, to).await.with_context(what)?, direct, "{}", what());
        }
    }
    Ok(())
}

/// All that a client of a WebSocket hears, from the head to the end (RFC 6455).
async fn websocket(from: &Pod, to: SocketAddr) -> anyhow::Result<String> {
    let mut client = Line::new(from.connect(to).await?);
    client
        .say(
            "GET /socket HTTP/1.1\r\nHost: shop\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await?;
    let head = client.hear("\r\n\r\n").await?;
    let kept = head.lines().filter(|line| !line.starts_with("Date:"));
    let mut heard: String = kept.map(|line| format!("{line}\r\n")).collect();
    // A text, then the end, with masks of zeros, which change nothing.
    client.say(b"\x81\x85\0\0\0\0hello").await?;
    heard += &String::from_utf8_lossy(&client.exactly(7).await?);
    client.say(b"\x88\x82\0\0\0\0\x03\xe8").await?;
    let (rest, broke) = client.rest().await?;
    Ok(format!("{heard}{rest}{broke:?}"))
}

/// How many clients meet the end of a kept connection, each a little later than the one before it.
const CLIENTS: u64 = 50;

#[tokio::test]
async fn no_client_that_waits_as_long_as_servers_keep_connections_is_told_of_an_error()
-> anyhow::Result<()> {
    let servers = [NODE, NGINX, APACHE];
    let ground = &Ground::lay(servers.len()).await?;
    lay_site(ground)?;
    let mut running = Vec::new();
    let mut clients = JoinSet::new();
    for (number, server) in servers.iter().enumerate() {
        running.push(server.start(ground, number).await?);
        for way in Way::MESH {
            let (from, to, ..) = ground.ends(way, number);
            for number in 0..CLIENTS {
                let mut client = Line::new(from.connect(to).await?);
                let what = format!("{}, {}", server.name(), way.name());
                clients.spawn(async move {
                    client.say(GET).await?;
                    let first = client.hear("hello\n").await?;
                    // The time is what is tried: all end a connection a second after its last request.
                    sleep(Duration::from_micros(960_000 + 1600 * number)).await;
                    client.say(GET).await?;
                    let second = client.hear("hello\n").await.with_context(|| what.clone())?;
                    anyhow::Ok((what, [first, second]))
                });
            }
        }
    }
    while let Some(answers) = clients.join_next().await {
        let (what, answers) = answers??;
        for answer in answers {
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{what}: {answer}");
        }
    }
    Ok(())
}

/// How often servers are reloaded, how many clients ask meanwhile on each way, and how many answers
/// each of them has between two times.
const RELOADS: usize = 3;
const ASKING: usize = 4;
const BETWEEN: usize = 20;

#[tokio::test]
async fn no_client_is_told_of_an_error_when_a_server_reloads() -> anyhow::Result<()> {
    let servers = [(NGINX, Signal::SIGHUP), (APACHE, Signal::SIGUSR1)];
    let ground = &Ground::lay(servers.len()).await?;
    lay_site(ground)?;
    for (number, (server, signal)) in servers.iter().enumerate() {
        let running = server.start(ground, number).await?.context("it is needed")?;
        let answers = [const { Cell::new(0) }; Way::MESH.len() * ASKING];
        let is_over = &Cell::new(false);
        let clients = answers.iter().zip(Way::MESH.into_iter().cycle());
        let asking = clients.map(|(answers, way)| async move {
            let (from, to, ..) = ground.ends(way, number);
            let asked = asks(from, to, answers, is_over).await;
            asked.with_context(|| format!("{}, {}", server.name(), way.name()))
        });
        let reloading = async {
            for _ in 0..RELOADS {
                answers.iter().for_each(|answers| answers.set(0));
                let all = || answers.iter().all(|answers| answers.get() >= BETWEEN);
                eventually("everybody is answered", || async { Ok(all().then_some(())) }).await?;
                running.reload(*signal).await?;
            }
            is_over.set(true);
            anyhow::Ok(())
        };
        tokio::try_join!(try_join_all(asking), reloading)?;
    }
    Ok(())
}

/// Asks again and again on a connection, and on another one when a server says that it will end it.
async fn asks(
    from: &Pod,
    to: SocketAddr,
    answers: &Cell<usize>,
    is_over: &Cell<bool>,
) -> anyhow::Result<()> {
    let mut kept = None;
    while !is_over.get() {
        let mut client = match kept.take() {
            Some(client) => client,
            None => Line::new(from.connect(to).await?),
        };
        client.say(GET).await?;
        let answer = client.hear("hello\n").await?;
        ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        answers.set(answers.get() + 1);
        // Apache httpd says `Upgrade, close` where it could speak HTTP/2.
        let mut says = answer.lines().filter(|line| line.starts_with("Connection:"));
        kept = (!says.any(|line| line.ends_with("close"))).then_some(client);
    }
    Ok(())
}
