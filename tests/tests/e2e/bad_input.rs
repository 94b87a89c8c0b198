//! What is wrong is said in one line, with what to do about it.

use std::{net::TcpListener, path::Path, process::Command};

use sluice_tests::{
    Agent, AgentOptions, Mesh, NetnsState, PATIENCE, PublicProgram, Talk, agent_program, ask,
    eventually,
};

/// Starts an agent on node `a` with `flags` after its usual ones, waits until it has failed, and
/// returns what it says: one line.
async fn error_of(mesh: &Mesh, flags: &[&str]) -> anyhow::Result<String> {
    let mut agent = Agent::launch(&mesh.a, &mesh.config, mesh.agent_options(flags))?;
    let status = agent.process_mut().exit(PATIENCE).await?;
    assert_eq!(status.code(), Some(1), "{}", agent.process().output().tail(10));
    let lines = agent.process().output().lines();
    let said: Vec<_> = lines.iter().filter(|line| !is_log(line)).collect();
    let [error] = said.as_slice() else { panic!("not one line: {said:#?}") };
    assert!(error.starts_with("error: "), "{error}");
    Ok(error.to_string())
}

/// As [`error_of`], and the line says what to do.
async fn hinted_error_of(mesh: &Mesh, flags: &[&str]) -> anyhow::Result<String> {
    let error = error_of(mesh, flags).await?;
    assert!(error.contains("(hint: "), "no hint: {error}");
    Ok(error)
}

/// Log lines begin with the year.
fn is_log(line: &str) -> bool {
    line.starts_with("20")
}

fn assert_says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "`{word}` is not in `{error}`");
    }
}

#[tokio::test]
async fn a_directory_that_is_missing_is_named() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let error = hinted_error_of(&mesh, &["--config-dir", "/nowhere/config"]).await?;
    assert_says(&error, &["/nowhere/config", "no such file or directory", "--config-dir"]);
    Ok(())
}

#[tokio::test]
async fn yaml_that_cannot_be_read_is_shown_where_it_breaks() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("broken", "apiVersion: v1\nkind: Service\nmetadata: {name: x\n")?;
    let error = error_of(&mesh, &[]).await?;
    let (_, place) = error.split_once("broken.yaml:").expect("the file is named");
    let numbers: Vec<_> = place.split(':').take(2).map(str::parse::<u32>).collect();
    assert!(numbers.iter().all(Result::is_ok), "no line and column: {error}");
    Ok(())
}

#[tokio::test]
async fn an_unknown_field_is_shown_with_the_one_that_was_meant() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec:\n  clusterIp: None\n";
    mesh.config.write("typo", service)?;
    let error = hinted_error_of(&mesh, &[]).await?;
    assert_says(&error, &["typo.yaml:5:3", "clusterIp", "clusterIP"]);
    Ok(())
}

#[tokio::test]
async fn without_root_it_says_that_it_needs_root() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let program = PublicProgram::copy()?;
    for command in ["agent", "uninstall"] {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        setpriv.arg(program.path()).arg(command).arg("--bpffs").arg(mesh.a.bpffs());
        if command == "agent" {
            setpriv.arg("--config-dir").arg(mesh.config.directory());
        }
        let mut process = mesh.a.spawn(command, setpriv)?;
        assert_eq!(process.exit(PATIENCE).await?.code(), Some(1));
        let said = process.output().lines();
        assert_eq!(said, ["error: capture needs root (hint: run as root, e.g. with sudo)"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_cgroup_of_another_kind_is_refused() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let error = hinted_error_of(&mesh, &["--cgroup", "/tmp"]).await?;
    assert_says(&error, &["/tmp is not a cgroup2 directory", "findmnt -t cgroup2"]);
    Ok(())
}

#[tokio::test]
async fn a_cgroup_that_does_not_hold_the_agent_is_refused() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let of_client = mesh.client.cgroup().path().to_string_lossy();
    let error = hinted_error_of(&mesh, &["--cgroup", &of_client]).await?;
    assert_says(&error, &["the agent runs outside the cgroup it captures", "start it inside"]);
    Ok(())
}

#[tokio::test]
async fn pins_outside_a_bpf_file_system_are_refused() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let before = NetnsState::of(&mesh.near)?;
    let path = mesh.lab.directory().join("pins");
    let error = hinted_error_of(&mesh, &["--bpffs", &path.to_string_lossy()]).await?;
    assert_says(&error, &["is not inside a BPF file system", "mount -t bpf"]);
    assert!(!path.exists());
    before.is_back(&mesh.near).await
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_flag() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    for (address, flag) in [
        ("[::]:15021", "--ready-addr"),
        ("[::]:15020", "--stats-addr"),
        ("127.0.0.1:15000", "--admin-addr"),
    ] {
        let _taken = mesh.a.netns().run(|| TcpListener::bind(address))??;
        let error = hinted_error_of(&mesh, &[]).await?;
        assert_says(&error, &[address, flag, "in use"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_broken_change_is_shown_and_the_last_good_state_stays() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let configuration = || anyhow::Ok(Agent::status(&mesh.a)?["configuration"].clone());
    let good = configuration()?;
    assert!(good["error"].is_null());

    mesh.config.write("broken", "apiVersion: v1\nkind: [\n")?;
    let error = eventually("the error is shown", || async {
        Ok(configuration()?["error"].as_str().map(str::to_owned))
    })
    .await?;
    assert_says(&error, &["broken.yaml:"]);
    assert_eq!(configuration()?["version"], good["version"]);
    let text = status_text(&mesh)?;
    assert_says(&text, &["newest change not in force", "broken.yaml:"]);
    assert_says(&Agent::metrics(&mesh.a).await?, &["sluice_snapshot_rejected 1"]);
    let listener = mesh.far.listen(9999)?;
    Talk::start(&mesh.client, (mesh.far.ip(), 9999).into(), &listener).await?;
    let ready = ask(mesh.a.netns(), ([127, 0, 0, 1], 15021).into(), "/healthz/ready", PATIENCE);
    assert_eq!(ready.await?.status, 200, "it serves what it has");

    mesh.config.write("broken", "apiVersion: v1\nkind: Namespace\nmetadata: {name: mended}\n")?;
    eventually("the error is gone", || async {
        Ok(configuration()?["error"].is_null().then_some(()))
    })
    .await?;
    assert_says(&Agent::metrics(&mesh.a).await?, &["sluice_snapshot_rejected 0"]);
    Ok(())
}

#[tokio::test]
async fn a_pod_that_cannot_be_captured_is_shown_with_the_reason_and_others_are()
-> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let name = format!("pod-{}-{}", mesh.near.namespace(), mesh.near.name());
    let path = mesh.config.directory().join(format!("{name}.yaml"));
    let wrong = std::fs::read_to_string(&path)?
        .replace(&mesh.near.netns_path().display().to_string(), "/run/netns/no-such-pod");
    mesh.config.write(&name, &wrong)?;
    let _agent = Agent::start(&mesh.a, &mesh.config, AgentOptions::default()).await?;
    let status = Agent::status(&mesh.a)?;
    let error = |name: &str| {
        let mut pods = status["pods"].as_array().into_iter().flatten();
        pods.find(|pod| pod["name"] == name).map(|pod| pod["error"].clone())
    };
    assert_eq!(error("default/client"), Some(serde_json::Value::Null));
    let why = error("default/near").unwrap_or_default();
    assert_says(why.as_str().unwrap_or_default(), &["/run/netns/no-such-pod", "(hint: "]);
    assert!(!Path::new("/run/netns/no-such-pod").exists());
    Ok(())
}

#[tokio::test]
async fn a_pod_that_is_a_virtual_machine_is_not_captured_and_status_says_why() -> anyhow::Result<()>
{
    let mesh = Mesh::new()?;
    // What Kata Containers and KubeVirt call theirs.
    for (pod, interface) in [(&mesh.client, "tap0_kata"), (&mesh.near, "k6t-eth0")] {
        let mut ip = Command::new("ip");
        ip.args(["link", "add", interface, "type", "veth"]);
        pod.run(ip)?.success()?;
    }
    let _agent = Agent::start(&mesh.a, &mesh.config, AgentOptions::default()).await?;
    let status = status_text(&mesh)?;
    assert_says(&status, &["virtual machine", "tap0_kata", "k6t-eth0", "(hint: "]);
    Ok(())
}

fn status_text(mesh: &Mesh) -> anyhow::Result<String> {
    let mut command = Command::new(agent_program()?);
    command.arg("status");
    mesh.a.run(command)?.success()
}

#[tokio::test]
async fn without_a_directory_and_without_a_cluster_both_ways_out_are_named() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let kubeconfig = mesh.lab.directory().join("kubeconfig");
    let options = AgentOptions { kubeconfig: Some(kubeconfig.clone()), ..mesh.agent_options(&[]) };
    let mut agent = Agent::launch(&mesh.a, &mesh.config, options)?;
    assert_eq!(agent.process_mut().exit(PATIENCE).await?.code(), Some(1));
    let said = agent.process().output().tail(1);
    assert_says(&said, &["which API server", &kubeconfig.to_string_lossy(), "--config-dir"]);
    Ok(())
}
