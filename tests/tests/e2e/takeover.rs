//! An agent that is gone, and the one that comes after it.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::Context;
use sluice_tests::{
    Mesh, NetnsState, Node, PATIENCE, Pod, Process, Talk, agent_program, bpftool, capture_events,
    eventually, refused, wait_until_captured,
};
use socket2::{Domain, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

const PORT: u16 = 9999;
/// How long a connection may stay unanswered before it counts as one that fails.
const SILENCE: Duration = Duration::from_secs(3);

/// Who dials whom in these tests, by pod address: within node `a`, out of it, into it.
fn ways(mesh: &Mesh) -> [(&Pod, &Pod); 4] {
    let Mesh { client, near, far, outsider, .. } = mesh;
    [(client, near), (client, far), (far, near), (outsider, near)]
}

async fn all_talk(mesh: &Mesh) -> anyhow::Result<()> {
    for (client, server) in ways(mesh) {
        let listener = server.listen(PORT)?;
        for to in server.ips() {
            Talk::start(client, SocketAddr::new(to, PORT), &listener).await?;
        }
    }
    Ok(())
}

async fn all_are_refused(mesh: &Mesh) -> anyhow::Result<()> {
    for (client, server) in ways(mesh) {
        let listener = server.listen(PORT)?;
        for to in server.ips() {
            refused(client, SocketAddr::new(to, PORT), &listener, SILENCE).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn without_its_agent_a_pod_reaches_nobody_and_nobody_reaches_it() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    all_talk(&mesh).await?;
    let [mut agent, _other] = mesh.start_agents(&[]).await?;
    all_talk(&mesh).await?;
    agent.kill9();
    all_are_refused(&mesh).await?;
    // What never belonged to the mesh is not held up.
    let listener = mesh.outsider.listen(PORT)?;
    let to = SocketAddr::new(mesh.outsider.ip(), PORT);
    Talk::start(&mesh.outsider, to, &listener).await?;
    Ok(())
}

#[tokio::test]
async fn an_agent_that_ended_in_order_leaves_its_pods_closed_too() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let [mut agent, _other] = mesh.start_agents(&[]).await?;
    agent.terminate(PATIENCE).await?;
    all_are_refused(&mesh).await
}

#[tokio::test]
async fn the_next_agent_takes_over_what_a_killed_one_left() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let [mut agent, _other] = mesh.start_agents(&[]).await?;
    all_talk(&mesh).await?;
    let steered = capture_events(&mesh.a, "steered_out")?;
    agent.kill9();
    let listener = mesh.far.listen(PORT)?;
    refused(&mesh.client, SocketAddr::new(mesh.far.ip(), PORT), &listener, SILENCE).await?;
    drop(listener);

    let _next = mesh.start_agent(&mesh.a, &[]).await?;
    all_talk(&mesh).await?;
    assert!(capture_events(&mesh.a, "steered_out")? > steered, "the maps are the same");
    assert!(capture_events(&mesh.a, "dropped_out")? > 0, "the refused connection was counted");
    Ok(())
}

/// Above those that the agent dials from.
const OWN_PORTS: std::ops::Range<u16> = 32_768..61_000;

/// How long a client that was refused waits before it tries again.
const PAUSE: Duration = Duration::from_millis(10);

/// Dials `to` again and again, each time from another of [`OWN_PORTS`], and counts how often it
/// was answered and how often not.
async fn keep_dialling(
    client: &Pod,
    from: IpAddr,
    to: SocketAddr,
    counts: &watch::Sender<[u64; 2]>,
) -> anyhow::Result<()> {
    for port in OWN_PORTS {
        let socket = client.socket(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, port).into())?;
        let asked = async {
            let mut stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
            stream.write_all(b"?").await?;
            stream.read_u8().await
        };
        let answered = matches!(timeout(SILENCE, asked).await, Ok(Ok(_)));
        counts.send_modify(|counts| counts[usize::from(!answered)] += 1);
        if !answered {
            // As clients do: a refusal comes at once, and ports would run out.
            sleep(PAUSE).await;
        }
    }
    anyhow::bail!("no port is left")
}

/// Answers whoever comes through the agent, which dials from a port of its own choice.
async fn answer_all(listener: TcpListener) -> anyhow::Result<()> {
    let mut answers = JoinSet::new();
    loop {
        let (mut stream, from) = listener.accept().await?;
        anyhow::ensure!(!OWN_PORTS.contains(&from.port()), "{from} came past the agent");
        answers.spawn(async move {
            // Whoever asks may be cut off.
            if stream.read_u8().await.is_ok() {
                let _ = stream.write_all(b"!").await;
            }
        });
        while answers.try_join_next().is_some() {}
    }
}

/// Waits until `which` of the counts has grown by `more`.
async fn grown(
    counts: &mut watch::Receiver<[u64; 2]>,
    which: usize,
    more: u64,
) -> anyhow::Result<()> {
    let enough = counts.borrow_and_update()[which] + more;
    timeout(PATIENCE, counts.wait_for(|counts| counts[which] >= enough)).await??;
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_on_dialling_never_gets_past_an_agent_that_is_gone() -> anyhow::Result<()>
{
    const ANSWERED: usize = 0;
    const FAILED: usize = 1;
    let mesh = Mesh::new()?;
    let [mut agent, _other] = mesh.start_agents(&[]).await?;
    let ways = [(&mesh.client, &mesh.far), (&mesh.outsider, &mesh.near)];
    for (client, server) in ways {
        let (counting, mut counts) = watch::channel([0, 0]);
        let to = SocketAddr::new(server.ip(), PORT);
        let test = async {
            grown(&mut counts, ANSWERED, 10).await?;
            assert_eq!(counts.borrow()[FAILED], 0);
            agent.kill9();
            // One may have been answered and not counted yet; no two.
            grown(&mut counts, FAILED, 1).await?;
            let answered = counts.borrow_and_update()[ANSWERED];
            grown(&mut counts, FAILED, 3).await?;
            assert_eq!(counts.borrow()[ANSWERED], answered, "nobody answers without the agent");
            agent = mesh.start_agent(&mesh.a, &[]).await?;
            grown(&mut counts, ANSWERED, 10).await
        };
        tokio::select! {
            done = test => done?,
            failed = answer_all(server.listen(PORT)?) => failed?,
            failed = keep_dialling(client, client.ip(), to, &counting) => failed?,
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_that_went_between_two_agents_is_let_go_by_the_second() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let before = NetnsState::of(&mesh.near)?;
    let [mut agent, _other] = mesh.start_agents(&[]).await?;
    assert_ne!(NetnsState::of(&mesh.near)?, before);
    agent.kill9();
    mesh.config.remove_pod(&mesh.near)?;
    let _next = mesh.start_agent(&mesh.a, &[]).await?;
    before.is_back(&mesh.near).await
}

fn uninstall(mesh: &Mesh) -> anyhow::Result<Process> {
    let mut command = Command::new(agent_program()?);
    command.arg("uninstall").arg("--bpffs").arg(mesh.a.bpffs());
    mesh.a.spawn("uninstall", command)
}

/// The number by which the file system of namespaces knows a pod's.
fn inode(pod: &Pod) -> anyhow::Result<u64> {
    Ok(fs::metadata(pod.netns().path())?.ino())
}

/// Has the pin of `former` say that its namespace has the number of `late`'s, as it would once the
/// kernel gave that to it. When it does is a matter of what else the machine makes and frees.
fn give_number(node: &Node, former: u64, late: &Pod) -> anyhow::Result<()> {
    let version = fs::read_dir(node.bpffs())?.next().context("nothing is pinned")??;
    let pods = version.path().join("pods");
    for pin in fs::read_dir(&pods)? {
        let name = pin?.file_name().into_string().ok().context("not UTF-8")?;
        let renamed = name.replace(&format!("_{former}_"), &format!("_{}_", inode(late)?));
        if renamed != name {
            return Ok(fs::rename(pods.join(name), pods.join(renamed))?);
        }
    }
    anyhow::bail!("no pin of {former}")
}

#[tokio::test]
async fn a_pod_whose_namespace_has_the_number_of_one_that_went_is_left_alone() -> anyhow::Result<()>
{
    let mesh = Mesh::new()?;
    let mut agent = mesh.start_agent(&mesh.a, &[]).await?;
    agent.kill9();
    let former = inode(&mesh.near)?;
    mesh.config.remove_pod(&mesh.near)?;
    mesh.a.remove_pod(&mesh.near)?;
    let late = mesh.a.pod("late")?;
    give_number(&mesh.a, former, &late)?;
    let mut sysctl = Command::new("sysctl");
    sysctl.args(["-w", "net.ipv4.tcp_fwmark_accept=1"]);
    late.run(sysctl)?.success()?;
    let before = NetnsState::of(&late)?;

    let agent = mesh.start_agent(&mesh.a, &[]).await?;
    let forgotten = |line: &str| line.contains("let go of a pod that a former agent captured");
    agent.process().output().line(PATIENCE, forgotten).await?;
    assert_eq!(NetnsState::of(&late)?, before);
    Ok(())
}

/// The names of the pins of pods.
fn pins(node: &Node) -> anyhow::Result<Vec<String>> {
    let name = |pin: &PathBuf| Some(pin.file_name()?.to_str()?.to_owned());
    let names = bpftool::pins(node, "pods")?;
    names.iter().map(|pin| name(pin).context("no name")).collect()
}

/// Which place in the maps a pin says that its pod has.
fn slot(pin: &str) -> anyhow::Result<u32> {
    Ok(pin.split('_').nth(1).context("no slot")?.parse()?)
}

#[tokio::test]
async fn a_pin_of_another_version_stays_and_nobody_gets_its_pods_slot() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let mut agent = mesh.start_agent(&mesh.a, &[]).await?;
    agent.kill9();
    let own = bpftool::pins(&mesh.a, "pods")?;
    let own = own.into_iter().find(|pin| pin.to_string_lossy().contains(&mesh.near.uid()));
    let own = own.context("it was pinned")?;
    let taken = slot(&own.file_name().context("no name")?.to_string_lossy())?;
    // As one that says other things about its pod.
    let other = format!("{}_{taken}_in_other_words", mesh.near.uid());
    fs::rename(&own, own.with_file_name(&other))?;
    mesh.config.remove_pod(&mesh.near)?;
    let late = [mesh.a.pod("late-1")?, mesh.a.pod("late-2")?];
    for pod in &late {
        mesh.config.pod(pod)?;
    }

    let agent = mesh.start_agent(&mesh.a, &[]).await?;
    let says = |line: &str| line.contains("a pin of another version is left alone");
    agent.process().output().line(PATIENCE, says).await?;
    let pins = pins(&mesh.a)?;
    assert!(pins.contains(&other), "{pins:?}");
    let mut slots = pins.iter().map(|pin| slot(pin)).collect::<anyhow::Result<Vec<_>>>()?;
    slots.sort_unstable();
    let count = slots.len();
    slots.dedup();
    assert_eq!((slots.len(), count), (4, 4), "one place for two: {pins:?}");
    // What that pin holds goes on: the pod is closed, as whoever made it wants it.
    let listener = mesh.near.listen(PORT)?;
    refused(&mesh.client, SocketAddr::new(mesh.near.ip(), PORT), &listener, SILENCE).await?;
    Ok(())
}

#[tokio::test]
async fn a_slot_is_free_again_when_its_pod_is_gone_and_not_before() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let slots = || -> anyhow::Result<Vec<u32>> {
        let mut slots =
            pins(&mesh.a)?.iter().map(|pin| slot(pin)).collect::<Result<Vec<_>, _>>()?;
        slots.sort_unstable();
        Ok(slots)
    };
    assert_eq!(slots()?, [0, 1]);
    let late = mesh.a.pod("late")?;
    mesh.config.pod(&late)?;
    wait_until_captured(&mesh.a, &late, true).await?;
    assert_eq!(slots()?, [0, 1, 2]);
    mesh.config.remove_pod(&mesh.near)?;
    wait_until_captured(&mesh.a, &mesh.near, false).await?;
    eventually("its slot is free", || async { Ok((slots()?.len() == 2).then_some(())) }).await?;
    mesh.config.pod(&mesh.near)?;
    wait_until_captured(&mesh.a, &mesh.near, true).await?;
    assert_eq!(slots()?, [0, 1, 2]);
    all_talk(&mesh).await
}

#[tokio::test]
async fn a_pod_that_the_next_agent_cannot_capture_is_let_go_by_it_all_the_same()
-> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let before = NetnsState::of(&mesh.near)?;
    let mut agent = mesh.start_agent(&mesh.a, &[]).await?;
    agent.kill9();
    let name = format!("pod-{}-{}", mesh.near.namespace(), mesh.near.name());
    let pod = fs::read_to_string(mesh.config.directory().join(format!("{name}.yaml")))?;
    let own = mesh.near.netns_path().display().to_string();
    mesh.config.write(&name, &pod.replace(&own, "/run/netns/no-such-pod"))?;
    let _next = mesh.start_agent(&mesh.a, &[]).await?;
    assert_ne!(NetnsState::of(&mesh.near)?, before, "it stays closed as long as it is to be");
    mesh.config.remove_pod(&mesh.near)?;
    before.is_back(&mesh.near).await
}

#[tokio::test]
async fn uninstalling_removes_every_trace_and_opens_the_pods_again() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let pods = [&mesh.client, &mesh.near, &mesh.outsider];
    let before = pods.map(NetnsState::of);
    let mut agent = mesh.start_agent(&mesh.a, &[]).await?;
    assert!(!bpftool::pinned_maps(&mesh.a)?.is_empty());
    agent.kill9();
    assert!(uninstall(&mesh)?.exit(PATIENCE).await?.success());
    for (pod, before) in pods.into_iter().zip(before) {
        before?.is_back(pod).await?;
    }
    assert!(!mesh.a.bpffs().exists(), "pins are left");
    all_talk(&mesh).await
}

#[tokio::test]
async fn uninstalling_under_a_running_agent_is_refused() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agent = mesh.start_agent(&mesh.a, &[]).await?;
    let mut uninstall = uninstall(&mesh)?;
    assert!(!uninstall.exit(PATIENCE).await?.success());
    let said = uninstall.output().tail(5);
    assert!(said.contains("another agent uses") && said.contains("(hint: "), "{said}");
    let listener = mesh.near.listen(PORT)?;
    let to = SocketAddr::new(mesh.near.ip(), PORT);
    let steered = capture_events(&mesh.a, "steered_out")?;
    Talk::start(&mesh.client, to, &listener).await?;
    eventually("the connection is counted", || async {
        Ok((capture_events(&mesh.a, "steered_out")? == steered + 1).then_some(()))
    })
    .await
}
