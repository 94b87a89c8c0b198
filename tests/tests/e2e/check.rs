//! `sluice check`: what it finds, what it says is missing, and that it is in nobody's way.

use std::{fs, io, net::SocketAddr, process::Command};

use serde_json::Value;
use sluice_tests::{
    Finished, Lab, Mesh, NetnsState, Node, PublicProgram, Talk, agent_program, capture_events,
};

const PORT: u16 = 9999;
/// What a node may lack or have, and capture works all the same.
const OPTIONAL: [&str; 10] = [
    "BTF",
    "CAP_SYS_PTRACE",
    "locked memory",
    "JIT",
    "sock_diag",
    "IPv6",
    "backlog",
    "Multipath TCP",
    "TCP Fast Open",
    "ingress_ifindex",
];

/// Runs it on `node` by way of `command`, which ends with the program.
fn check(node: &Node, mut command: Command, flags: &[&str]) -> anyhow::Result<Finished> {
    command.arg("check");
    for (flag, usual) in [("--cgroup", node.cgroup()), ("--bpffs", node.bpffs())] {
        if !flags.contains(&flag) {
            command.arg(flag).arg(usual);
        }
    }
    command.args(flags);
    node.run(command)
}

fn program() -> anyhow::Result<Command> {
    Ok(Command::new(agent_program()?))
}

/// Everything found, each as its name and state.
fn states(report: &str) -> anyhow::Result<Vec<(String, String)>> {
    let report: Value = serde_json::from_str(report)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = report["findings"].as_array().into_iter().flatten();
    Ok(findings.map(|finding| (text(&finding["name"]), text(&finding["state"]))).collect())
}

/// The line about `name`.
fn line<'a>(finished: &'a Finished, name: &str) -> &'a str {
    let of = |line: &&str| line.split_whitespace().nth(1) == Some(name);
    finished.stdout.lines().find(of).unwrap_or_else(|| panic!("no {name}: {}", finished.stdout))
}

/// Fails with 1, and its last words are how much is missing.
fn assert_fails(finished: &Finished, missing: &str) {
    assert_eq!(finished.status.code(), Some(1), "{}", finished.stdout);
    let last = finished.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with(&format!("error: {missing}")), "{last}");
    assert!(last.contains("(hint: "), "{last}");
}

#[tokio::test]
async fn a_node_where_capture_works_passes_line_by_line() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    let report = check(&node, program()?, &["--output", "json"])?.success()?;
    let states = states(&report)?;
    for needed in ["CAP_NET_ADMIN", "cgroup2", "sluice_connect4", "sluice_steer", "steering"] {
        assert!(states.iter().any(|(name, _)| name == needed), "{needed} is not in {report}");
    }
    for (name, state) in states {
        let optional = OPTIONAL.contains(&name.as_str()) && state == "falls_back";
        assert!(state == "ok" || optional, "{name}: {state}\n{report}");
    }
    let text = check(&node, program()?, &[])?.success()?;
    assert!(text.ends_with("\nCapture can work on this node.\n"), "{text}");
    Ok(())
}

/// As with `sluice check | head -1`.
#[tokio::test]
async fn a_reader_that_has_enough_is_no_failure() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    let (reader, writer) = io::pipe()?;
    drop(reader);
    let mut check = program()?;
    check.arg("check").arg("--cgroup").arg(node.cgroup()).arg("--bpffs").arg(node.bpffs());
    let ended = check.stdout(writer).output()?;
    let complaint = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{}: {complaint}", ended.status);
    assert_eq!(complaint, "");
    Ok(())
}

/// As container runtimes mount it, unless a container is privileged.
#[tokio::test]
async fn a_proc_sys_that_is_read_only_is_none_the_less_written_to() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    let mut unshare = Command::new("unshare");
    let script = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
                  ! (echo 1 >/proc/sys/net/ipv4/fwmark_reflect) 2>/dev/null && exec \"$@\"";
    unshare.args(["--mount", "sh", "-c", script, "sh"]).arg(agent_program()?);
    let text = check(&node, unshare, &[])?.success()?;
    assert!(text.contains("✔ answers keep the mark"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_check_leaves_no_pins_and_nothing_attached() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    check(&node, program()?, &[])?.success()?;
    assert_eq!(fs::read_dir(node.bpffs())?.count(), 0, "pins are left");
    let attached = Command::new("bpftool").args(["cgroup", "show"]).arg(node.cgroup()).output()?;
    assert!(attached.stdout.is_empty(), "{}", String::from_utf8_lossy(&attached.stdout));
    Ok(())
}

#[tokio::test]
async fn an_agent_at_work_does_not_notice_a_check() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.far.listen(PORT)?;
    let to = SocketAddr::new(mesh.far.ip(), PORT);
    let mut talk = Talk::start(&mesh.client, to, &listener).await?;
    let (before, steered) =
        (NetnsState::of(&mesh.client)?, capture_events(&mesh.a, "steered_out")?);
    check(&mesh.a, program()?, &[])?.success()?;
    before.is_back(&mesh.client).await?;
    talk.exchange().await?;
    assert_eq!(capture_events(&mesh.a, "steered_out")?, steered, "it counted in the agent's maps");
    Talk::start(&mesh.client, to, &listener).await?;
    assert_eq!(capture_events(&mesh.a, "steered_out")?, steered + 1);
    Ok(())
}

#[tokio::test]
async fn without_root_it_says_so_and_tells_what_it_can() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    let public = PublicProgram::copy()?;
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(public.path());
    let finished = check(&node, setpriv, &[])?;
    assert_fails(&finished, "3 things that capture needs are missing, and ");
    for (name, words) in [
        ("root", "✘ root"),
        ("root", "capture needs root (hint: run as root, e.g. with sudo)"),
        ("CAP_NET_ADMIN", "✘ CAP_NET_ADMIN"),
        ("release", "✔ release"),
        ("cgroup2", "✔ cgroup2"),
        ("sockmaps", "? sockmaps"),
    ] {
        let line = line(&finished, name);
        assert!(line.contains(words), "`{words}` is not in `{line}`");
    }
    Ok(())
}

#[tokio::test]
async fn a_capability_that_is_dropped_is_named_as_the_agent_names_it() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    let without = || -> anyhow::Result<Command> {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]);
        setpriv.arg(agent_program()?);
        Ok(setpriv)
    };
    let finished = check(&node, without()?, &[])?;
    assert_fails(&finished, "1 thing that capture needs is missing");
    assert!(line(&finished, "CAP_SYS_ADMIN").contains('✔'), "{}", finished.stdout);
    let mut agent = without()?;
    agent.args(["agent", "--config-dir", "/nowhere"]);
    let said = node.run(agent)?.stderr;
    let why = said.trim().strip_prefix("error: ").unwrap_or_default();
    assert!(why.contains("CAP_NET_ADMIN") && why.contains("(hint: "), "{said}");
    assert!(line(&finished, "CAP_NET_ADMIN").contains(why), "{}", finished.stdout);
    Ok(())
}

#[tokio::test]
async fn pins_that_have_no_place_are_missing_one_and_nothing_is_made() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    let path = lab.directory().join("pins");
    let finished = check(&node, program()?, &["--bpffs", &path.to_string_lossy()])?;
    assert_fails(&finished, "1 thing that capture needs is missing (hint");
    let line = line(&finished, "bpffs");
    assert!(line.contains("✘") && line.contains("(hint: `mount -t bpf bpf"), "{line}");
    assert!(!path.exists());
    Ok(())
}

#[tokio::test]
async fn a_cgroup_of_another_kind_is_missing_one() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    let finished = check(&node, program()?, &["--cgroup", "/tmp"])?;
    assert_fails(&finished, "1 thing that capture needs is missing (hint");
    let line = line(&finished, "cgroup2");
    assert!(line.contains("✘") && line.contains("/tmp is not a cgroup2 directory"), "{line}");
    Ok(())
}
