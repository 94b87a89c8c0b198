//! What enforces NetworkPolicies on the bed's nodes, for as long as a test wants it: kube-router's
//! controller, which makes rules of iptables and sets of ipset of them, as a CNI does.

use std::process::{Child, Stdio};

use anyhow::Context;

use crate::{
    Bed, NODES,
    component::log,
    place::{SERVICES, log_folder},
};

/// Runs the engine in a node's network until nobody holds the standard input any more, and removes
/// what it made once it has ended. nsenter becomes the engine, so that `$!` is its number: that of
/// a function is a shell's around it.
const SCRIPT: &str = r#"
    node=$1 services=$2
    inside() { nsenter --net="/run/netns/$node" "$@"; }
    nsenter --net="/run/netns/$node" kube-router --kubeconfig="$KUBECONFIG" --hostname-override="$node" \
        --service-cluster-ip-range="$services" &
    read -r _
    kill $!
    wait
    inside iptables --flush
    inside iptables --delete-chain
    inside ipset destroy
"#;

/// The engine on both nodes. Without it the bed has no rules between pods.
#[derive(Debug)]
pub struct PolicyEngine(Vec<Child>);

impl PolicyEngine {
    /// Starts it. Policies are in force a moment later.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(bed: &Bed) -> anyhow::Result<Self> {
        let mut engine = Self(Vec::new());
        for node in NODES.map(|node| node.to_string()) {
            let log = log(&log_folder(), &format!("kube-router-{node}"))?;
            let mut shell = bed.command("sh");
            shell.args(["-c", SCRIPT, "sh", &node, SERVICES]);
            shell.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
            let child = shell.spawn().with_context(|| format!("could not run {shell:?}"))?;
            engine.0.push(child);
        }
        Ok(engine)
    }
}

impl Drop for PolicyEngine {
    fn drop(&mut self) {
        for shell in &mut self.0 {
            drop(shell.stdin.take());
            // It may be gone with the cluster.
            let _ = shell.wait();
        }
    }
}
