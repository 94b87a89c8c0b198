//! `--keep`: everything goes on, for people to play with.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use anyhow::Context;
use sluice_tests::{agent_program, sample_program};

use crate::world::World;

/// Prints what can be tried.
pub(crate) fn print_commands(world: &World) -> anyhow::Result<()> {
    let inside = script(world)?;
    let (inside, lab) = (inside.display(), world.lab.name());
    let (agent, sample) = (agent_program()?, sample_program()?);
    let (agent, sample) = (agent.display(), sample.display());
    let directory = world.lab.directory().display();
    println!(
        "\nEverything runs until Ctrl-C. Meanwhile, in another terminal:\n\n  \
         # what an agent is doing\n  \
         ip netns exec {lab}-node-a {agent} status\n  \
         ip netns exec {lab}-node-a curl -s localhost:15020/stats/prometheus\n\n  \
         # orders from the client's pod\n  \
         {inside} client {sample} client --url {url} --count 5\n  \
         {inside} client curl -s {url}\n\n  \
         # what crosses between the nodes\n  \
         ip netns exec {lab}-node-a tcpdump -i eth0 -nA port 15008\n\n  \
         # the agents' view of the mesh (changes are followed), and all logs\n  \
         ls {directory}/config\n  \
         tail -f {directory}/*.log\n",
        url = world.order_url(),
    );
    Ok(())
}

/// A script that runs a command as a process of a pod. `ip netns exec` alone would leave it in
/// the caller's cgroup, where no agent of the lab captures anything.
fn script(world: &World) -> anyhow::Result<PathBuf> {
    let path = world.lab.directory().join("in");
    let cgroup = world.a.cgroup().parent().context("a node's cgroup is in its lab's")?;
    let text = format!(
        "#!/bin/sh\n\
         # in POD COMMAND...: runs COMMAND in the pod's network namespace and cgroup\n\
         pod=$1; shift\n\
         for procs in {cgroup}/*/kubepods/*/pod*/\"$pod\"/cgroup.procs; do echo $$ > \"$procs\"; done\n\
         exec ip netns exec {lab}-\"$pod\" \"$@\"\n",
        cgroup = cgroup.display(),
        lab = world.lab.name(),
    );
    fs::write(&path, text)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("could not write {}", path.display()))?;
    Ok(path)
}
