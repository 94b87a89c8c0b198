//! What a cluster leaves on the machine: nothing, however it came to its end.
//!
//! Makes clusters of its own, so none may be up; `cargo xtask kube test` runs it first.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use sluice_kube::{Bed, Tenant, image};

const MAKER: &str = env!("CARGO_BIN_EXE_kube-bed");
const PROGRAMS: &str = "SLUICE_KUBE_PROGRAMS";
const IMAGES: &str = "SLUICE_KUBE_IMAGES";

/// What `up` is seen to have done when it is killed; nothing yet, first.
const MOMENTS: [&str; 4] =
    ["", "the API server answers", "names resolve", "containerd runs on both nodes"];

#[test]
fn nothing_is_left_of_a_cluster_whether_it_was_completed_or_its_maker_was_killed()
-> anyhow::Result<()> {
    ensure!(Bed::find()?.is_none(), "a cluster is up (hint: cargo xtask kube down)");
    Bed::down()?;
    let before = Machine::look()?;
    for moment in MOMENTS {
        die_at(moment)?;
        Bed::down()?;
        before.is_as_now().with_context(|| format!("killed at {moment:?}"))?;
    }
    let (programs, images) = materials()?;
    Bed::up(MAKER.as_ref(), &programs, images.as_ref())?;
    let tenant = Tenant::new("death")?;
    let image = format!("--image={}", image("sluice-sample"));
    tenant.kubectl([
        "create",
        "deployment",
        "shop",
        "--replicas=4",
        &image,
        "--",
        "/sluice-sample",
        "order",
    ])?;
    tenant.await_deployment("shop")?;
    Bed::down()?;
    before.is_as_now().context("completed, with pods")?;
    Bed::down().context("a second time")
}

fn materials() -> anyhow::Result<(OsString, OsString)> {
    let variable = |name: &str| {
        env::var_os(name)
            .with_context(|| format!("{name} is not set (hint: cargo xtask kube test)"))
    };
    Ok((variable(PROGRAMS)?, variable(IMAGES)?))
}

/// Starts `up`, and kills it once it has said `moment`.
fn die_at(moment: &str) -> anyhow::Result<()> {
    let (programs, images) = materials()?;
    let mut up = Command::new(MAKER)
        .args(["up", "--programs"])
        .arg(programs)
        .arg("--images")
        .arg(images)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(up.stdout.take().expect("stdout is piped")).lines();
    if !moment.is_empty() {
        let said = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with(moment)));
        said.with_context(|| format!("`up` never said {moment:?}"))??;
    }
    up.kill()?;
    up.wait()?;
    Ok(())
}

/// What of a machine a cluster could change for good.
#[derive(Debug, Eq, PartialEq)]
struct Machine {
    mounts: Vec<String>,
    named_namespaces: Vec<String>,
    settings: Vec<String>,
    firewall: String,
}

impl Machine {
    fn look() -> anyhow::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        // Other tests of this machine mount and make namespaces too.
        let kept = |line: &&str| !line.contains("sluice-lab") && !line.contains("/run/netns");
        let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let ours = |name: &String| name.starts_with("node-");
        let setting = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name));
        let settings = [
            "kernel/keys/root_maxbytes",
            "kernel/keys/root_maxkeys",
            "kernel/panic",
            "kernel/panic_on_oops",
            "net/ipv4/ip_forward",
            "vm/overcommit_memory",
        ];
        let firewall = Command::new("nft").args(["list", "tables"]).output()?;
        Ok(Self {
            mounts: mounts.lines().filter(kept).map(str::to_owned).collect(),
            named_namespaces: names.filter(ours).collect(),
            settings: settings.iter().map(|name| setting(name)).collect::<Result<_, _>>()?,
            firewall: String::from_utf8_lossy(&firewall.stdout).into_owned(),
        })
    }

    fn is_as_now(&self) -> anyhow::Result<()> {
        let now = Self::look()?;
        ensure!(*self == now, "before: {self:#?}\nnow: {now:#?}");
        ensure!(!Path::new("/var/lib/sluice-kube").exists(), "its folder is there");
        for mount in fs::read_to_string("/proc/self/mounts")?.lines() {
            let root = mount.split(' ').nth(1).unwrap_or_default();
            let group = Path::new(root).join("sluice-kube");
            ensure!(!group.exists(), "{} is there", group.display());
        }
        let left = processes();
        ensure!(left.is_empty(), "processes are there: {left:#?}");
        Ok(())
    }
}

/// The arguments of a cluster's own processes, all of which are at home in its folder. Those of
/// pods are in its cgroups, which could not be gone otherwise.
fn processes() -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let arguments = |entry: fs::DirEntry| {
        let environment = fs::read(entry.path().join("environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        variables.find(|variable| *variable == b"HOME=/var/lib/sluice-kube")?;
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&arguments).replace('\0', " "))
    };
    entries.filter_map(arguments).collect()
}
