//! Much at once, much in a row, and much in one piece. What it took is given back.

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use sluice_tests::{Agent, Line, Mesh, OPAQUE, PATIENCE, Pod, TunnelLab, eventually, within};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::Barrier,
    task::JoinSet,
    time::sleep,
};

/// How long a heavy test may take on a slow machine.
const AT_MOST: Duration = Duration::from_secs(240);
const MEGABYTE: usize = 1 << 20;
/// How soon `/proc` is looked at again: it reports no changes.
const AGAIN: Duration = Duration::from_millis(50);

/// Each of these tests uses up the machine; one of them at a time is enough.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What both agents had open before a load.
struct Before<'a> {
    agents: &'a [Agent; 2],
    files: [usize; 2],
}

impl<'a> Before<'a> {
    fn look(agents: &'a [Agent; 2]) -> anyhow::Result<Self> {
        let [a, b] = agents;
        Ok(Self { agents, files: [a.process().open_files()?, b.process().open_files()?] })
    }

    /// Waits until no more than `pooled` files are open beyond those before.
    async fn given_back(&self, pooled: usize) -> anyhow::Result<()> {
        for (agent, before) in self.agents.iter().zip(self.files) {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let now = agent.process().open_files()?;
                if now <= before + pooled {
                    println!(
                        "open files {before} before, {now} after; memory {} kB",
                        agent.process().resident()? >> 10
                    );
                    break;
                }
                ensure!(Instant::now() < deadline, "{now} files are open, {before} were");
                sleep(AGAIN).await;
            }
        }
        Ok(())
    }
}

/// Serves every connection by `serve`, until dropped.
fn serve_echo(listener: TcpListener) -> JoinSet<()> {
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut read, mut write) = stream.split();
                // Ends with the connection, in order or not; the client notices.
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            while connections.try_join_next().is_some() {}
        }
    });
    serving
}

/// Sends `megabytes` of which no two are alike, ends the direction, and returns the hash.
async fn send(to: &mut (impl AsyncWrite + Unpin), megabytes: u64) -> anyhow::Result<[u8; 32]> {
    let mut piece: Vec<u8> = (0..MEGABYTE as u64 / 8).flat_map(|n| (n * n).to_be_bytes()).collect();
    let mut hash = Sha256::new();
    for number in 0..megabytes {
        piece[..8].copy_from_slice(&number.to_be_bytes());
        hash.update(&piece);
        to.write_all(&piece).await?;
    }
    to.shutdown().await?;
    Ok(hash.finalize().into())
}

/// Reads to the end, and returns how many bytes there were and their hash.
async fn receive(from: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<(u64, [u8; 32])> {
    let mut buffer = vec![0; MEGABYTE / 4];
    let (mut hash, mut total) = (Sha256::new(), 0);
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok((total, hash.finalize().into()));
        }
        total += read as u64;
        hash.update(&buffer[..read]);
    }
}

#[expect(clippy::await_holding_lock, reason = "each test has a runtime of its own")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_arrives_unchanged_while_another_stream_comes_back() -> anyhow::Result<()> {
    const THERE: u64 = 1024;
    const BACK: u64 = 256;
    let _alone = alone();
    let lab = TunnelLab::new()?;
    let agents = lab.start_agents(&[]).await?;
    let listener = lab.far.listen(OPAQUE[0])?;
    let (mut client, mut server) = lab.join(&lab.far, &listener).await?;
    let before = Before::look(&agents)?;
    let began = Instant::now();
    let (mut from_server, mut to_server) = client.split();
    let (mut from_client, mut to_client) = server.split();
    let transfer = async {
        tokio::try_join!(
            send(&mut to_server, THERE),
            receive(&mut from_client),
            send(&mut to_client, BACK),
            receive(&mut from_server),
        )
    };
    let (there, arrived, back, returned) = within(AT_MOST, "the transfer", transfer).await??;
    println!("{THERE} MiB there and {BACK} MiB back in {:?}", began.elapsed());
    assert_eq!(arrived, (THERE * MEGABYTE as u64, there));
    assert_eq!(returned, (BACK * MEGABYTE as u64, back));
    before.given_back(0).await
}

#[expect(clippy::await_holding_lock, reason = "each test has a runtime of its own")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_are_open_at_once_and_none_gets_anothers_bytes() -> anyhow::Result<()>
{
    const CONNECTIONS: u64 = 1000;
    let _alone = alone();
    let lab = Arc::new(TunnelLab::new()?);
    // Both ends of every connection are this process's.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    // Agents start with a limit of 1,024, as every process of a lab, and have to ask for more.
    let agents = lab.start_agents(&[]).await?;
    let _echo = serve_echo(lab.far.listen(OPAQUE[0])?);
    echo(&lab.client, &lab.far, OPAQUE[0], 0).await?;
    let before = Before::look(&agents)?;

    // Everyone waits for all others before its second exchange, and before it closes.
    let all_open = Arc::new(Barrier::new(CONNECTIONS as usize + 1));
    let all_done = Arc::new(Barrier::new(CONNECTIONS as usize + 1));
    let mut clients = JoinSet::new();
    for number in 0..CONNECTIONS {
        let (lab, all_open, all_done) = (lab.clone(), all_open.clone(), all_done.clone());
        clients.spawn(async move {
            let to = SocketAddr::new(lab.far.ip(), OPAQUE[0]);
            let mut stream = lab.client.connect(to).await?;
            for round in 0..2 {
                let sent = number << 8 | round;
                stream.write_u64(sent).await?;
                let received = stream.read_u64().await?;
                ensure!(received == sent, "{sent:x} was sent, {received:x} came back");
                if round == 0 {
                    all_open.wait().await;
                }
            }
            all_done.wait().await;
            Ok(())
        });
    }
    let failed = async {
        while let Some(client) = clients.join_next().await {
            client??;
        }
        anyhow::Ok(())
    };
    tokio::pin!(failed);
    let both = async {
        tokio::select! {
            failed = &mut failed => failed.and(Err(anyhow::anyhow!("nobody waited"))),
            _ = all_open.wait() => Ok(()),
        }
    };
    within(AT_MOST, "all open", both).await??;
    for node in [&lab.a, &lab.b] {
        let open = Agent::status(node)?["connections"].as_u64().context("no connections")?;
        let expected = if node.name() == lab.a.name() { CONNECTIONS } else { 10 };
        assert!(open >= expected, "{} has {open} open", node.name());
    }
    all_done.wait().await;
    within(AT_MOST, "all closed", failed).await??;
    // HBONE connections of a hundred streams each stay in the pool.
    before.given_back(CONNECTIONS as usize / 100 + 5).await
}

/// One short connection.
async fn echo(client: &Pod, server: &Pod, port: u16, number: u64) -> anyhow::Result<()> {
    let work = async {
        let mut stream = client.connect(SocketAddr::new(server.ip(), port)).await?;
        stream.write_u64(number).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = within(PATIENCE, "one connection", work).await??;
    ensure!(answer == number.to_be_bytes(), "{number} was sent, {answer:?} came back");
    Ok(())
}

#[tokio::test]
async fn a_pod_without_ports_of_its_own_left_is_still_reached() -> anyhow::Result<()> {
    let lab = TunnelLab::new()?;
    let _agents = lab.start_agents(&["--trace-sampling", "0"]).await?;
    // The kernel keeps each for a minute after a connection.
    lab.far
        .netns()
        .run(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40049"))??;
    let _echo = serve_echo(lab.far.listen(OPAQUE[0])?);
    for number in 0..200 {
        let done = echo(&lab.client, &lab.far, OPAQUE[0], number).await;
        done.with_context(|| format!("connection {number}"))?;
    }
    Ok(())
}

/// To two ports of the server, because a client alone can open no more than 28,000 connections
/// to one within the minute that the kernel keeps their ports. Whoever dials in the client's
/// name meets both.
#[expect(clippy::await_holding_lock, reason = "each test has a runtime of its own")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_thousand_short_connections_within_a_minute_all_work() -> anyhow::Result<()> {
    const WORKERS: u64 = 8;
    const CONNECTIONS: u64 = 30_000;
    let _alone = alone();
    let lab = Arc::new(TunnelLab::new()?);
    let agents = lab.start_agents(&["--trace-sampling", "0"]).await?;
    let _echo = OPAQUE.map(|port| lab.far.listen(port).map(serve_echo));
    echo(&lab.client, &lab.far, OPAQUE[0], 0).await?;
    let before = Before::look(&agents)?;
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let lab = lab.clone();
        workers.spawn(async move {
            for number in (worker..CONNECTIONS).step_by(WORKERS as usize) {
                let port = OPAQUE[usize::from(number < CONNECTIONS / 2)];
                let done = echo(&lab.client, &lab.far, port, number).await;
                done.with_context(|| format!("connection {number} after {:?}", began.elapsed()))?;
            }
            anyhow::Ok(())
        });
    }
    let done = async {
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        anyhow::Ok(())
    };
    within(AT_MOST, "all connections", done).await??;
    println!("{CONNECTIONS} connections in {:?}", began.elapsed());
    before.given_back(2).await
}

/// Answers requests, without content.
async fn answer(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        connections.spawn(async move {
            let mut asked = [0; 1024];
            while stream.read(&mut asked).await.is_ok_and(|read| read > 0) {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        });
    }
}

#[expect(clippy::await_holding_lock, reason = "each test has a runtime of its own")]
#[tokio::test]
async fn memory_of_connections_is_given_back_when_they_are_gone() -> anyhow::Result<()> {
    const CONNECTIONS: usize = 1500;
    let _alone = alone();
    let mesh = Mesh::new()?;
    let agents = mesh.start_agents(&["--trace-sampling", "0"]).await?;
    let mut serving = JoinSet::new();
    serving.spawn(answer(mesh.far.listen(Mesh::HTTP_TARGET)?));
    let to = SocketAddr::new(mesh.service_ips(&mesh.far)[0], Mesh::HTTP);
    let ask = async || {
        let mut line = Line::new(mesh.client.connect(to).await?);
        line.say("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
        let head = line.hear("\r\n\r\n").await?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        anyhow::Ok(line)
    };
    drop(ask().await?);
    let resident = || -> anyhow::Result<[u64; 2]> {
        let [near, far] = agents.each_ref().map(|agent| agent.process().resident());
        Ok([near?, far?])
    };
    let before = resident()?;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        open.push(within(PATIENCE, "an answer", ask()).await??);
    }
    let with = resident()?;
    println!("bytes before, and with {CONNECTIONS} connections: {before:?}, {with:?}");
    for agent in 0..2 {
        ensure!(with[agent] > before[agent] + (4 << 20), "they take nothing worth giving back");
    }
    drop(open);
    // Of some 8 MiB about 3 stay, among them what tunnels take, which are kept for a while.
    eventually("half is given back", || async {
        let now = resident()?;
        let is_back = |agent| now[agent] <= before[agent] + (with[agent] - before[agent]) / 2;
        Ok((0..2).all(is_back).then_some(()))
    })
    .await
}
