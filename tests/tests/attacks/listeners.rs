//! A pod that dials the agent's own listeners, in all ways there are.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use sluice_tests::{HboneClient, Pod, TestCa};
use socket2::Domain;
use time::OffsetDateTime;
use tokio::{
    io::AsyncReadExt,
    net::TcpSocket,
    task::JoinSet,
    time::{Instant, interval, timeout_at},
};

use crate::siege::Siege;

const DIALLERS: usize = 64;
const TUNNELS: usize = 8;
const TIME: Duration = Duration::from_secs(6);
/// How long one dial is waited for: a SYN that is dropped is not heard of.
const PATIENCE: Duration = Duration::from_millis(500);
/// What one connection of each dialler and tunnel takes, and what the bystander has.
const FILES: usize = 2 * (DIALLERS + TUNNELS) + 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dialling_the_agents_listeners_in_all_ways_harms_nobody() -> anyhow::Result<()> {
    let siege = Siege::lay().await?;
    let ca = TestCa::of_agents(&siege.lab.directory().join("ca"))?;
    siege
        .withstands("dials of the agent's listeners", async |siege| {
            let before = siege.open_files()?[0];
            let targets: Arc<[SocketAddr]> = targets(siege)?.into();
            let (dials, until) = (Arc::new(AtomicUsize::new(0)), Instant::now() + TIME);
            let mut diallers = JoinSet::new();
            for number in 0..DIALLERS {
                let device = [None, Some("eth0"), Some("lo")][number % 3];
                let (pod, targets) = (siege.attacker.clone(), targets.clone());
                diallers.spawn(dial(pod, targets, number, device, dials.clone(), until));
            }
            for number in 0..TUNNELS {
                let principal = "spiffe://cluster.local/ns/default/sa/outsider";
                let certificate = ca.sign(&[principal], OffsetDateTime::now_utc())?;
                let tunnel =
                    HboneClient::connect(&siege.outsider, &siege.attacker, Some(certificate));
                let (tunnel, targets) = (tunnel.await?, targets.clone());
                diallers.spawn(ask(tunnel, targets, number, dials.clone(), until));
            }
            let mut most = before;
            let mut look = interval(Duration::from_millis(100));
            while Instant::now() < until {
                look.tick().await;
                most = most.max(siege.open_files()?[0]);
            }
            while let Some(done) = diallers.join_next().await {
                done??;
            }
            let after = siege.open_files()?[0];
            let dials = dials.load(Relaxed);
            ensure!(dials > DIALLERS + TUNNELS, "only {dials} dials");
            ensure!(most < before + FILES, "{before} open files before, {most} meanwhile");
            Ok((format!("{dials} dials, open files {before}, at most {most}, {after} after"), ()))
        })
        .await
}

/// Wherever the listeners in the attacker's pod could be reached by.
fn targets(siege: &Siege) -> anyhow::Result<Vec<SocketAddr>> {
    let mut sockets = Command::new("ss");
    sockets.args(["-Hlntp"]);
    let listening = siege.attacker.run(sockets)?.success()?;
    let of_agent = format!("pid={},", siege.attackers_agent().process().id());
    let ours = listening.lines().filter(|line| line.contains(&of_agent));
    let mut targets = Vec::new();
    for line in ours {
        let local = line.split_whitespace().nth(3).context("no local address")?;
        let listener: SocketAddr = local.parse()?;
        let own = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let ips = own.into_iter().chain(siege.attacker.ips());
        let ips = ips.chain([listener.ip(), listener.ip().to_canonical()]);
        targets.extend(ips.map(|ip: IpAddr| SocketAddr::new(ip, listener.port())));
    }
    ensure!(targets.len() == 12, "where the agent listens: {targets:?}");
    Ok(targets)
}

/// These, from the `first` on, again and again `until` then.
fn in_turn(
    targets: &[SocketAddr],
    first: usize,
    until: Instant,
) -> impl Iterator<Item = &SocketAddr> {
    targets.iter().cycle().skip(first).take_while(move |_| Instant::now() < until)
}

async fn dial(
    pod: Arc<Pod>,
    targets: Arc<[SocketAddr]>,
    first: usize,
    device: Option<&'static str>,
    dials: Arc<AtomicUsize>,
    until: Instant,
) -> anyhow::Result<()> {
    for target in in_turn(&targets, first, until) {
        let socket = pod.tcp_sockets(1, Domain::for_address(*target))?.remove(0);
        socket.set_nonblocking(true)?;
        if let Some(device) = device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        let dialled = async {
            let mut stream = TcpSocket::from_std_stream(socket.into()).connect(*target).await?;
            stream.read_u8().await
        };
        let heard = timeout_at(until.min(Instant::now() + PATIENCE), dialled).await;
        ensure!(!matches!(heard, Ok(Ok(_))), "{target} answered");
        dials.fetch_add(1, Relaxed);
    }
    Ok(())
}

async fn ask(
    mut tunnel: HboneClient,
    targets: Arc<[SocketAddr]>,
    first: usize,
    dials: Arc<AtomicUsize>,
    until: Instant,
) -> anyhow::Result<()> {
    for target in in_turn(&targets, first, until) {
        let (status, ..) = tunnel.open(*target).await?;
        ensure!(!status.is_success(), "CONNECT {target}: {status}");
        dials.fetch_add(1, Relaxed);
    }
    Ok(())
}
