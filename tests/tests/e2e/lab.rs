//! The lab itself, without an agent: what other tests stand on must hold.

use std::{
    fs,
    io::Read,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
};

use sluice_tests::{Lab, Netns, PATIENCE, Pod, Registry, Tcpdump, firewall_rules};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Set for a copy of this program that makes a lab and waits to be killed.
const HOLD: &str = "SLUICE_TEST_HOLD_LAB";

/// Sends `text` from `client` to a listener in `server`; returns who the listener saw.
async fn send(client: &Pod, server: &Pod, to: IpAddr, text: &str) -> anyhow::Result<IpAddr> {
    let listener = server.listen(0)?;
    let to = SocketAddr::new(to, listener.local_addr()?.port());
    let mut stream = client.connect(to).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let (mut accepted, from) = listener.accept().await?;
    let mut received = String::new();
    accepted.read_to_string(&mut received).await?;
    assert_eq!(received, text);
    Ok(from.ip().to_canonical())
}

#[tokio::test]
async fn pods_reach_each_other_over_both_families_on_one_node_and_across() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let (client, near, far) = (a.pod("client")?, a.pod("near")?, b.pod("far")?);
    for server in [&near, &far] {
        assert_eq!(send(&client, server, server.ip(), "v4").await?, client.ip());
        assert_eq!(send(&client, server, server.ipv6(), "v6").await?, client.ipv6());
    }
    Ok(())
}

#[tokio::test]
async fn sockets_of_a_test_belong_to_the_pods_cgroup() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("a")?;
    let (client, server) = (node.pod("client")?, node.pod("server")?);
    let listener = server.listen(80)?;
    let _stream = client.connect(listener_address(&server, 80)).await?;
    let mut ss = Command::new("ss");
    ss.args(["-tnH", "--cgroup", "state", "established"]);
    let shown = client.run(ss)?.success()?;
    let cgroup = format!("{}/a/kubepods/besteffort/pod{}/client", lab.name(), client.uid());
    assert!(client.cgroup().path().ends_with(&cgroup) && shown.contains(&cgroup), "{shown}");
    drop(listener);
    Ok(())
}

fn listener_address(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.ip(), port)
}

#[tokio::test]
async fn a_recording_between_nodes_shows_what_crossed_in_plaintext() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    let (client, near, far) = (a.pod("client")?, a.pod("near")?, b.pod("far")?);
    let recording = Tcpdump::on_node(&a, "link", "tcp").await?;
    send(&client, &far, far.ip(), "crosses the link").await?;
    send(&client, &near, near.ip(), "stays on the node").await?;
    let recording = recording.stop().await?;
    assert!(recording.contains("crosses the link"));
    assert!(!recording.contains("stays on the node"));
    assert!(recording.packets > 5, "{}", recording.packets);
    Ok(())
}

#[tokio::test]
async fn a_recording_that_begins_amid_other_traffic_comes_to_its_end() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let pod = lab.node("a")?.pod("pod")?;
    let mut flood = Command::new("bash");
    let script = "exec 3>/dev/udp/127.0.0.1/9; echo begun; while :; do echo noise >&3; done";
    flood.args(["-c", &format!("{script} 2>/dev/null")]);
    let flood = pod.spawn("flood", flood)?;
    flood.output().line(PATIENCE, |line| line == "begun").await?;
    let recording = Tcpdump::in_pod(&pod, "lo", "tcp").await?;
    send(&pod, &pod, pod.ip(), "wanted").await?;
    let recording = recording.stop().await?;
    assert!(recording.contains("wanted"));
    assert!(!recording.contains("noise"));
    Ok(())
}

#[test]
fn firewall_rules_of_a_pod_are_seen() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let pod = lab.node("a")?.pod("pod")?;
    assert_eq!(firewall_rules(&pod)?, Vec::<String>::new());
    let mut nft = Command::new("nft");
    nft.args(["add", "table", "inet", "noticed"]);
    pod.run(nft)?.success()?;
    assert!(firewall_rules(&pod)?.iter().any(|line| line.contains("noticed")));
    Ok(())
}

#[tokio::test]
async fn output_is_awaited_and_a_process_ends_with_its_handle() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let pod = lab.node("a")?.pod("pod")?;
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo one; echo two >&2; exec sleep 1000"]);
    let process = pod.spawn("shell", shell)?;
    process.output().line(PATIENCE, |line| line == "two").await?;
    assert_eq!(process.output().lines(), ["one", "two"]);
    let id = process.id();
    assert!(is_running(id));
    drop(process);
    assert!(!is_running(id));
    Ok(())
}

#[test]
fn a_process_outlives_the_thread_that_started_it() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let pod = lab.node("a")?.pod("pod")?;
    let start = || {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        pod.spawn("sleep", sleep)
    };
    let process = std::thread::scope(|scope| scope.spawn(start).join().unwrap())?;
    // A second command's whole life gives the first thread's death time to be noticed.
    pod.run(Command::new("true"))?.success()?;
    assert!(is_running(process.id()));
    Ok(())
}

#[test]
fn labs_coexist_and_leave_nothing_behind() -> anyhow::Result<()> {
    let (one, other) = (Lab::new()?, Lab::new()?);
    let (pod, same) = (one.node("a")?.pod("pod")?, other.node("a")?.pod("pod")?);
    assert_eq!(pod.ip(), same.ip());
    assert_ne!(pod.uid(), same.uid());
    let (name, directory) = (one.name().to_owned(), one.directory().to_owned());
    let netns = pod.netns_path();
    assert!(netns.exists() && directory.exists());
    drop(one);
    assert!(netns.exists(), "its pod still needs the lab");
    drop(pod);
    assert_eq!(traces_of(&name, &directory), Vec::<String>::new());
    assert!(same.netns_path().exists());
    Ok(())
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next_lab() -> anyhow::Result<()> {
    if std::env::var_os(HOLD).is_some() {
        return hold_a_lab();
    }
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "--nocapture", "lab::what_a_killed_run_left_is_removed_by_the_next_lab"])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let mut printed = String::new();
    while !printed.contains("holding\n") {
        let mut byte = [0];
        stdout.read_exact(&mut byte)?;
        printed.push(byte[0].into());
    }
    let value = |key: &str| {
        let line = printed.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("no {key} in {printed}")).to_owned()
    };
    let (name, directory, orphan) = (value("lab="), value("directory="), value("orphan="));
    // Or the lab of another test is the next.
    let registry = Registry::hold()?;
    child.kill()?;
    child.wait()?;
    let orphan = orphan.parse()?;
    assert!(is_running(orphan), "nothing is left to remove");
    assert_ne!(traces_of(&name, Path::new(&directory)), Vec::<String>::new());
    drop(registry);

    let _next = Lab::new()?;
    assert!(!is_running(orphan));
    assert_eq!(traces_of(&name, Path::new(&directory)), Vec::<String>::new());
    Ok(())
}

/// Makes a lab with a process that survives its parent, says so, and waits to be killed.
fn hold_a_lab() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let pod = lab.node("a")?.pod("pod")?;
    let mut shell = Command::new("sh");
    shell.args(["-c", "sleep 1000 & echo $!; wait"]);
    let process = pod.spawn("shell", shell)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let orphan = runtime.block_on(process.output().line(PATIENCE, |_| true))?;
    println!("\nlab={}\ndirectory={}", lab.name(), lab.directory().display());
    println!("orphan={orphan}\nholding");
    loop {
        std::thread::park();
    }
}

/// What exists of a lab: namespaces, cgroups, pins, its directory.
fn traces_of(lab: &str, directory: &Path) -> Vec<String> {
    let named = |folder: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| *name == lab || name.starts_with(&format!("{lab}-"))).collect()
    };
    let cgroups = ["/sys/fs/cgroup/sluice-lab", "/sys/fs/cgroup/unified/sluice-lab"];
    let mut found: Vec<String> = named("/run/netns");
    found.extend(cgroups.into_iter().flat_map(named));
    found.extend(named("/sys/fs/bpf/sluice-lab"));
    found.extend(directory.exists().then(|| directory.display().to_string()));
    found
}

/// A process that ended but was not waited for does not run.
fn is_running(id: u32) -> bool {
    fs::read_to_string(format!("/proc/{id}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

#[test]
fn the_machines_own_network_is_left_alone() -> anyhow::Result<()> {
    let links = || Command::new("ip").args(["-o", "link"]).output().map(|o| o.stdout);
    let forward = || fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    let before = (links()?, forward()?);
    let lab = Lab::new()?;
    let node = lab.node("a")?;
    let pod = node.pod("pod")?;
    assert_eq!((links()?, forward()?), before);
    assert_ne!(inode_of(node.netns()), inode_of(pod.netns()));
    Ok(())
}

fn inode_of(netns: &Netns) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(netns.path()).expect("a lab's namespaces have files").ino()
}
