//! One agent takes over from another while pods go on connecting.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Incoming, client::conn::http2, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};
use sluice_tests::{
    Agent, Answer, Finished, Line, Mesh, Node, PATIENCE, Pod, Process, Talk, agent_program, ask,
    capture_events, eventually, within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// The servers of the agent that comes second on a node. In a cluster each agent is a pod with a
/// network of its own, and both have the same.
const SECOND: [(&str, &str); 3] = [
    ("--ready-addr", "127.0.0.1:25021"),
    ("--stats-addr", "127.0.0.1:25020"),
    ("--admin-addr", "127.0.0.1:25000"),
];

async fn ask_second(node: &Node, which: usize, path: &str) -> anyhow::Result<Answer> {
    ask(node.netns(), SECOND[which].1.parse()?, path, PATIENCE).await
}

/// Starts an agent, beside one at the usual ports if there is one on `node`, and waits until it says
/// that it is ready.
pub(crate) async fn agent_at_other_ports(
    mesh: &Mesh,
    node: &Node,
    flags: &[&str],
) -> anyhow::Result<Agent> {
    let mut flags = flags.to_vec();
    flags.extend(SECOND.iter().flat_map(|&(flag, address)| [flag, address]));
    let agent = Agent::launch(node, &mesh.config, mesh.agent_options(&flags))?;
    eventually("the second agent is ready", || async {
        if agent.process().output().has_ended() {
            bail!("it has ended:\n{}", agent.process().output().tail(20));
        }
        let answer = ask_second(node, 0, "/healthz/ready").await;
        Ok(answer.is_ok_and(|answer| answer.status == 200).then_some(()))
    })
    .await?;
    Ok(agent)
}

fn status_of_second(node: &Node, output: &str) -> anyhow::Result<String> {
    let mut command = Command::new(agent_program()?);
    command.args(["status", "--output", output, SECOND[2].0, SECOND[2].1]);
    node.run(command).and_then(Finished::success)
}

pub(crate) async fn wait_for_line(agent: &Agent, line: &str) -> anyhow::Result<String> {
    agent.process().output().line(PATIENCE, |said| said.contains(line)).await
}

/// Answers until dropped: an echo on the port declared opaque, and the path of each request on
/// the one declared HTTP, in whichever version it is asked.
fn serve(pod: &Pod) -> anyhow::Result<JoinSet<()>> {
    let mut serving = JoinSet::new();
    serving.spawn(serve_each(pod.listen(Mesh::TCP_TARGET)?, |mut stream| async move {
        let (mut read, mut write) = stream.split();
        // However it ends, the client notices.
        let _ = tokio::io::copy(&mut read, &mut write).await;
    }));
    serving.spawn(serve_each(pod.listen(Mesh::HTTP_TARGET)?, |stream| async move {
        let answer = service_fn(|request: Request<Incoming>| async move {
            let path = Bytes::from(request.uri().path().to_owned());
            Ok::<_, Infallible>(Response::new(Full::new(path)))
        });
        let server = auto::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), answer).await;
    }));
    Ok(serving)
}

async fn serve_each<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream));
        while connections.try_join_next().is_some() {}
    }
}

/// What clients did so far.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Short connections, each with a question of its own that was answered.
    connects: u64,
    /// Requests on kept connections, HTTP/1.1 and HTTP/2.
    requests: [u64; 2],
    /// How often a client was asked to use another connection.
    moved: [u64; 2],
}

/// Clients that go on until [`Load::stop`], or until one does not get its answer.
struct Load {
    counts: watch::Sender<Counts>,
    stop: CancellationToken,
    clients: JoinSet<anyhow::Result<()>>,
    began: Instant,
}

/// How many connect at once, and how often each of them does.
const WORKERS: u64 = 8;
const PERIOD: Duration = Duration::from_millis(20);

impl Load {
    /// Starts clients in `client` that dial the services of `server`.
    fn start(mesh: &Arc<Mesh>, server: fn(&Mesh) -> &Pod) -> Self {
        let (counts, stop) = (watch::Sender::default(), CancellationToken::new());
        let mut clients = JoinSet::new();
        let [ip, _] = mesh.service_ips(server(mesh));
        let (tcp, http) = (SocketAddr::new(ip, Mesh::TCP), SocketAddr::new(ip, Mesh::HTTP));
        for worker in 0..WORKERS {
            let (mesh, counts, stop) = (mesh.clone(), counts.clone(), stop.clone());
            clients.spawn(async move {
                let mut ticks = ticks();
                for number in (worker..).step_by(WORKERS as usize) {
                    tokio::select! {
                        _ = ticks.tick() => {}
                        () = stop.cancelled() => break,
                    }
                    let done = within(PATIENCE, "it", connect_once(&mesh.client, tcp, number));
                    done.await.flatten().with_context(|| format!("connection {number}"))?;
                    counts.send_modify(|counts: &mut Counts| counts.connects += 1);
                }
                Ok(())
            });
        }
        let client = (mesh.clone(), counts.clone(), stop.clone());
        clients
            .spawn(async move { keep_asking_http1(&client.0, http, &client.1, &client.2).await });
        let client = (mesh.clone(), counts.clone(), stop.clone());
        clients
            .spawn(async move { keep_asking_http2(&client.0, http, &client.1, &client.2).await });
        Self { counts, stop, clients, began: Instant::now() }
    }

    /// Waits until `enough` of what was counted since now. Fails with the first client.
    async fn until(&mut self, enough: impl Fn(Counts, Counts) -> bool) -> anyhow::Result<()> {
        let before = *self.counts.borrow();
        let mut counts = self.counts.subscribe();
        // What is waited for is a lock on the counts: it must be gone before they are read again.
        let grown = async { counts.wait_for(|now| enough(before, *now)).await.map(drop) };
        tokio::select! {
            grown = timeout(PATIENCE, grown) => {
                let now = *self.counts.borrow();
                Ok(grown.with_context(|| format!("too little: {before:?}, {now:?}"))??)
            }
            Some(failed) = self.clients.join_next() => {
                failed??;
                bail!("a client ended before it was told to")
            }
        }
    }

    /// Ends all clients and makes sure that none of them failed.
    async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        while let Some(client) = within(PATIENCE, "clients end", self.clients.join_next()).await? {
            client??;
        }
        let (counts, took) = (*self.counts.borrow(), self.began.elapsed());
        let rate = counts.connects as f64 / took.as_secs_f64();
        println!("{counts:?} in {took:?}: {rate:.0} connects a second, 0 failed");
        Ok(())
    }
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// One short connection.
async fn connect_once(client: &Pod, to: SocketAddr, number: u64) -> anyhow::Result<()> {
    let mut stream = client.connect(to).await.context("connect")?;
    stream.write_u64(number).await.context("the question")?;
    stream.shutdown().await.context("the end of the question")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.context("the answer")?;
    ensure!(answer == number.to_be_bytes(), "{number} was sent, {answer:?} came back");
    Ok(())
}

/// Sends one request after the other on a connection that it leaves when asked to.
async fn keep_asking_http1(
    mesh: &Mesh,
    to: SocketAddr,
    counts: &watch::Sender<Counts>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut ticks = ticks();
    let mut number = 0;
    while !stop.is_cancelled() {
        let stream = within(PATIENCE, "connect", mesh.client.connect(to)).await??;
        let mut line = Line::new(stream);
        loop {
            ticks.tick().await;
            number += 1;
            let ask = async {
                line.say(format!("GET /{number} HTTP/1.1\r\nHost: shop\r\n\r\n")).await?;
                let head = line.hear("\r\n\r\n").await?;
                ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
                let body = line.exactly(1 + format!("{number}").len()).await?;
                ensure!(body == format!("/{number}").as_bytes(), "{body:?}");
                Ok(head.to_ascii_lowercase().contains("connection: close"))
            };
            let asked_to_go = ask.await.with_context(|| format!("HTTP/1.1 request {number}"))?;
            counts.send_modify(|counts| {
                counts.requests[0] += 1;
                counts.moved[0] += u64::from(asked_to_go);
            });
            if asked_to_go || stop.is_cancelled() {
                break;
            }
        }
    }
    Ok(())
}

/// The same in HTTP/2.
async fn keep_asking_http2(
    mesh: &Mesh,
    to: SocketAddr,
    counts: &watch::Sender<Counts>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut ticks = ticks();
    let mut number = 0;
    while !stop.is_cancelled() {
        let stream = within(PATIENCE, "connect", mesh.client.connect(to)).await??;
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = within(PATIENCE, "handshake", handshake).await??;
        let mut driving = JoinSet::new();
        driving.spawn(connection);
        loop {
            ticks.tick().await;
            number += 1;
            let request = Request::get(format!("http://shop/{number}")).body(Empty::<Bytes>::new());
            let ask = async {
                let mut error = match sender.try_send_request(request?).await {
                    Ok(response) => {
                        let status = response.status();
                        let body = response.into_body().collect().await?.to_bytes();
                        ensure!(status == 200, "{status}: {body:?}");
                        return Ok(Some(body));
                    }
                    Err(error) => error,
                };
                // Not sent: told to go before.
                match error.take_message() {
                    Some(_) => Ok(None),
                    None => Err(error.into_error().into()),
                }
            };
            let answer = within(PATIENCE, "the answer", ask).await.flatten();
            let answer = answer.with_context(|| format!("HTTP/2 request {number}"))?;
            let Some(body) = answer else {
                counts.send_modify(|counts| counts.moved[1] += 1);
                break;
            };
            ensure!(body == format!("/{number}"), "{body:?}");
            counts.send_modify(|counts| counts.requests[1] += 1);
            if stop.is_cancelled() {
                break;
            }
        }
    }
    Ok(())
}

/// Sends through an echo until the connection breaks; what comes back must be what was sent.
/// Returns how much that was, how the connection broke, and when.
async fn keep_sending(mut stream: TcpStream) -> anyhow::Result<(u64, std::io::Error, Instant)> {
    let (mut sent, mut received) = (Sha256::new(), Sha256::new());
    let mut total = 0;
    let mut piece = [0; 1024];
    loop {
        let pass = async {
            stream.write_all(&piece).await?;
            let mut back = [0; 1024];
            stream.read_exact(&mut back).await?;
            std::io::Result::Ok(back)
        };
        let back = match timeout(PATIENCE, pass).await? {
            Ok(back) => back,
            Err(error) => return Ok((total, error, Instant::now())),
        };
        sent.update(piece);
        received.update(back);
        total += 1024;
        ensure!(sent.clone().finalize() == received.clone().finalize(), "after {total} bytes");
        piece = std::array::from_fn(|index| back[index].wrapping_mul(5).wrapping_add(index as u8));
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_on_both_nodes_fails_no_connect_and_no_request() -> anyhow::Result<()> {
    let began = Instant::now();
    let mesh = Arc::new(Mesh::new()?);
    // Long enough for what is to happen within it, on a machine as slow as this one is.
    let drain = Duration::from_secs(4).max(5 * began.elapsed());
    let flag = format!("{}ms", drain.as_millis());
    let flags = ["--trace-sampling", "0", "--drain-timeout", &flag];
    let agents = mesh.start_agents(&flags).await?;
    let _serving = serve(&mesh.far)?;
    let mut load = Load::start(&mesh, |mesh| &mesh.far);
    let enough = |before: Counts, now: Counts| {
        now.connects >= before.connects + 200
            && (0..2).all(|version| now.requests[version] >= before.requests[version] + 20)
    };
    load.until(enough).await?;

    let (mut gone, mut successors) = (Vec::new(), Vec::new());
    for (node, leaving) in [&mesh.a, &mesh.b].into_iter().zip(agents) {
        let to = SocketAddr::new(mesh.service_ips(&mesh.far)[0], Mesh::TCP);
        let opaque = timeout(PATIENCE, mesh.client.connect(to)).await??;
        let opaque = tokio::spawn(keep_sending(opaque));
        let coming = agent_at_other_ports(&mesh, node, &flags).await?;
        load.until(enough).await?;

        leaving.process().signal(Signal::SIGTERM)?;
        let asked = Instant::now();
        println!("{}: {}", node.name(), wait_for_line(&leaving, "has taken over").await?);
        wait_for_line(&coming, "agent started").await?;
        load.until(|before, now| {
            enough(before, now) && (0..2).all(|version| now.moved[version] > 0)
        })
        .await?;
        gone.push((node, leaving, asked, opaque));
        successors.push(coming);
    }
    for (node, mut leaving, asked, opaque) in gone {
        let status = leaving.process_mut().exit(drain + PATIENCE).await?;
        assert_eq!(status.code(), Some(0), "{}", leaving.process().output().tail(20));
        let (bytes, error, broken) = within(PATIENCE, "the end", opaque).await???;
        println!("{}: {bytes} bytes until {:?} after the signal", node.name(), broken - asked);
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "cut, and no end in order");
        assert!(broken - asked >= drain, "not before the deadline");
    }
    load.until(enough).await?;
    load.stop().await
}

#[tokio::test]
async fn an_agent_that_stands_by_says_so_and_captures_nothing() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let mut first = mesh.start_agent(&mesh.a, &[]).await?;
    let mut second = agent_at_other_ports(&mesh, &mesh.a, &[]).await?;
    let status: serde_json::Value = serde_json::from_str(&status_of_second(&mesh.a, "json")?)?;
    assert_eq!(status["standby"], true, "{status}");
    assert_eq!(status["pods"], serde_json::json!([]), "{status}");
    assert_eq!(status["certificates"].as_array().map(Vec::len), Some(2), "got ready: {status}");
    let text = status_of_second(&mesh.a, "text")?;
    assert!(text.contains("standing by, another agent is in charge"), "{text}");
    let metrics = ask_second(&mesh.a, 1, "/stats/prometheus").await?.body;
    assert!(metrics.contains("\nsluice_standby 1\n"), "{metrics}");
    assert_eq!(Agent::status(&mesh.a)?["standby"], false);
    assert!(Agent::metrics(&mesh.a).await?.contains("\nsluice_standby 0\n"));

    let mut third = Agent::launch(&mesh.a, &mesh.config, mesh.agent_options(&[]))?;
    assert_eq!(third.process_mut().exit(PATIENCE).await?.code(), Some(1));
    let said = third.process().output().tail(1);
    let path = mesh.a.bpffs().to_string_lossy().into_owned();
    for words in ["another agent is about to take over", &path, "(hint: ", "--bpffs"] {
        assert!(said.contains(words), "`{words}` is not in `{said}`");
    }

    // Whoever stands by can go, and the next may come.
    second.terminate(PATIENCE).await?;
    let listener = mesh.near.listen(Mesh::TCP_TARGET)?;
    let to = SocketAddr::new(mesh.near.ip(), Mesh::TCP_TARGET);
    let steered = capture_events(&mesh.a, "steered_out")?;
    Talk::start(&mesh.client, to, &listener).await?;
    assert_eq!(capture_events(&mesh.a, "steered_out")?, steered + 1, "the first is in charge");
    let second = agent_at_other_ports(&mesh, &mesh.a, &[]).await?;
    first.terminate(PATIENCE).await?;
    wait_for_line(&second, "agent started").await?;
    Talk::start(&mesh.client, to, &listener).await?;
    let metrics = ask_second(&mesh.a, 1, "/stats/prometheus").await?.body;
    assert!(metrics.contains("\nsluice_standby 0\n"), "{metrics}");
    Ok(())
}

/// Dials again and again and tells of each time whether it was answered, and when that was known.
async fn keep_dialling(
    client: &Pod,
    to: SocketAddr,
    dialled: &watch::Sender<Vec<(bool, Instant)>>,
) {
    for number in 0.. {
        let answered = timeout(PATIENCE, connect_once(client, to, number)).await;
        let answered = matches!(answered, Ok(Ok(())));
        dialled.send_modify(|dialled| dialled.push((answered, Instant::now())));
        if !answered {
            // As clients do: a refusal comes at once.
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stands_by_takes_over_at_once_from_an_agent_that_is_killed() -> anyhow::Result<()> {
    let mesh = Arc::new(Mesh::new()?);
    let [mut first, _other] = mesh.start_agents(&[]).await?;
    let second = agent_at_other_ports(&mesh, &mesh.a, &[]).await?;
    let _serving = serve(&mesh.far)?;
    let to = SocketAddr::new(mesh.service_ips(&mesh.far)[0], Mesh::TCP);
    let (dialling, mut dialled) = watch::channel(Vec::new());
    let mut client = JoinSet::new();
    let pods = mesh.clone();
    client.spawn(async move { keep_dialling(&pods.client, to, &dialling).await });
    let answers = |dialled: &[(bool, Instant)]| dialled.iter().filter(|(ok, _)| *ok).count();
    timeout(PATIENCE, dialled.wait_for(|dialled| answers(dialled) >= 10)).await??;

    first.kill9();
    wait_for_line(&second, "agent started").await?;
    let before = answers(&dialled.borrow_and_update());
    let all = timeout(PATIENCE, dialled.wait_for(|dialled| answers(dialled) > before + 10));
    let all = all.await??.clone();
    client.shutdown().await;
    let failed: Vec<_> = (0..all.len()).filter(|&index| !all[index].0).collect();
    if let [first, .., last] | [first @ last] = failed.as_slice() {
        // The first was not, and the last was followed by one that was answered.
        let gap = all[last + 1].1 - all[first - 1].1;
        println!(
            "{} of {} connects failed, none was answered for {gap:?}",
            failed.len(),
            all.len()
        );
        assert_eq!(last - first + 1, failed.len(), "in one piece: {all:?}");
    }

    let listener = mesh.near.listen(Mesh::TCP_TARGET)?;
    for to in mesh.near.ips() {
        Talk::start(&mesh.client, SocketAddr::new(to, Mesh::TCP_TARGET), &listener).await?;
        Talk::start(&mesh.outsider, SocketAddr::new(to, Mesh::TCP_TARGET), &listener).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_contained_agent_captures_though_its_proc_sys_is_read_only() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agent = Agent::start_contained(&mesh.a, &mesh.config, mesh.agent_options(&[])).await?;
    let listener = mesh.near.listen(Mesh::TCP_TARGET)?;
    for to in mesh.near.ips() {
        let steered = capture_events(&mesh.a, "steered_out")?;
        Talk::start(&mesh.client, SocketAddr::new(to, Mesh::TCP_TARGET), &listener).await?;
        assert_eq!(capture_events(&mesh.a, "steered_out")?, steered + 1);
    }
    Ok(())
}

/// As agents are in a cluster: each in a network of its own.
fn agent_in(pod: &Pod, mesh: &Mesh, flags: &[&str]) -> anyhow::Result<Process> {
    let mut command = Command::new(agent_program()?);
    command.args(["agent", "--node-name", mesh.a.name()]).args(flags);
    command.arg("--config-dir").arg(mesh.config.directory());
    command.arg("--ca-dir").arg(mesh.lab.directory().join("ca"));
    command.arg("--bpffs").arg(mesh.a.bpffs()).arg("--cgroup").arg(mesh.a.cgroup());
    pod.spawn("agent", command)
}

#[tokio::test]
async fn an_agent_may_connect_while_it_stands_by_though_unknown_pods_may_not() -> anyhow::Result<()>
{
    let mesh = Mesh::new()?;
    let flags = ["--unknown-pods", "deny"];
    let mut first = mesh.start_agent(&mesh.a, &flags).await?;
    let _listener = mesh.b.listen(Mesh::TCP_TARGET)?;
    let to = SocketAddr::new(mesh.b.ips()[0], Mesh::TCP_TARGET);
    let connect = || async { timeout(PATIENCE, mesh.outsider.connect(to)).await };
    let refused = connect().await?.expect_err("nobody knows the pod").kind();
    assert_eq!(refused, std::io::ErrorKind::PermissionDenied);

    let second = agent_in(&mesh.outsider, &mesh, &flags)?;
    eventually("the second agent is ready", || async {
        ensure!(!second.output().has_ended(), "it has ended:\n{}", second.output().tail(20));
        let (netns, health) = (mesh.outsider.netns(), "127.0.0.1:15021".parse()?);
        let answer = ask(netns, health, "/healthz/ready", PATIENCE).await;
        Ok(answer.is_ok_and(|answer| answer.status == 200).then_some(()))
    })
    .await?;
    connect().await?.context("from where an agent stands by")?;
    first.terminate(PATIENCE).await?;
    second.output().line(PATIENCE, |said| said.contains("agent started")).await?;
    connect().await?.context("from where the agent in charge is")?;
    Ok(())
}
