//! The taint that keeps pods away from a node until its agent is ready.

use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;
use sluice_kube::{Mesh, NODES, NodeName, Tenant, Workload, text};

/// What the chart's documentation calls it.
const TAINT: &str = "sluice.dev/agent-not-ready";
/// Somebody else's.
const OTHER: &str = "sluice.test/other";
const AGENT: &str = "/sluice agent";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// A taint that an administrator gave a node, until this is dropped.
struct Tainted<'a> {
    tenant: &'a Tenant,
    node: NodeName,
    key: &'static str,
}

impl<'a> Tainted<'a> {
    fn new(tenant: &'a Tenant, node: NodeName, key: &'static str) -> anyhow::Result<Self> {
        let tainted = Self { tenant, node, key };
        tenant.kubectl(["taint", "node", &node.to_string(), &format!("{key}=:NoSchedule")])?;
        Ok(tainted)
    }
}

impl Drop for Tainted<'_> {
    fn drop(&mut self) {
        // It may be off already.
        let (node, taint) = (self.node.to_string(), format!("{}-", self.key));
        let _ = self.tenant.kubectl(["taint", "node", &node, &taint]);
    }
}

fn has_taint(tenant: &Tenant, node: NodeName, key: &str) -> anyhow::Result<bool> {
    let node = tenant.kubectl(["get", "node", &node.to_string(), "--output=json"])?;
    let node: Value = serde_json::from_str(&node)?;
    Ok(node["spec"]["taints"].as_array().into_iter().flatten().any(|taint| taint["key"] == key))
}

#[test]
fn pods_stay_away_until_the_agent_is_ready_and_it_may_change_nothing_else_of_its_node()
-> anyhow::Result<()> {
    let mesh = Mesh::find()?;
    let changed = mesh.change(&[&format!("startupTaint={TAINT}")])?;
    let tenant = Tenant::new("taint")?;
    keeps_pods_away(&mesh, &tenant)?;
    may_do_nothing_else(&mesh, &tenant)?;
    changed.undo()
}

fn keeps_pods_away(mesh: &Mesh, tenant: &Tenant) -> anyhow::Result<()> {
    let [_, node] = NODES;
    let order_service = |name: &str| Workload::new(name, &["order"], 8080).on(node);
    let label = ["label", "namespace", tenant.namespace(), "istio.io/dataplane-mode=ambient"];
    tenant.kubectl(label)?;
    // An agent that is to have pods and no certificates for them is not ready.
    tenant.deploy([order_service("earlier")])?;
    tenant.await_deployment("earlier")?;
    let _tainted = Tainted::new(tenant, node, TAINT)?;
    mesh.without_ca(|| {
        mesh.bed().kill(node, AGENT)?;
        tenant.eventually("an agent that waits for certificates", || {
            let pending = &mesh.status(node)?["pending"];
            let waits =
                pending.as_array().is_some_and(|all| all.iter().any(|one| one == "identity"));
            ensure!(waits, "it waits for {pending}");
            Ok(())
        })?;
        tenant.deploy([order_service("late")])?;
        let why = tenant.eventually("the pod is nowhere", || {
            let pods = ["get", "pods", "--selector=app=late", "--output=json"];
            let pods: Value = serde_json::from_str(&tenant.kubectl(pods)?)?;
            let conditions = pods["items"][0]["status"]["conditions"].as_array();
            let mut conditions = conditions.context("no conditions")?.iter();
            let scheduled = conditions.find(|condition| condition["type"] == "PodScheduled");
            let scheduled = scheduled.context("not looked at yet")?;
            ensure!(scheduled["status"] == "False", "it was let onto the node");
            Ok(text(scheduled, "/message")?.to_owned())
        })?;
        println!("kept away: {why}");
        ensure!(why.contains("untolerated taint"), "{why}");
        ensure!(has_taint(tenant, node, TAINT)?, "the taint is off, and the agent not ready");
        Ok(())
    })?;
    tenant.await_deployment("late")?;
    ensure!(!has_taint(tenant, node, TAINT)?, "the taint is still there");
    tenant.eventually("the pod is captured", || {
        let captured = mesh.captured(node, tenant.namespace())?;
        ensure!(captured.iter().any(|pod| pod.starts_with("late-")), "{captured:?} are");
        Ok(())
    })
}

fn may_do_nothing_else(mesh: &Mesh, tenant: &Tenant) -> anyhow::Result<()> {
    let [other, own] = NODES;
    // The agent's very own: what whoever takes the agent over has.
    let token = mesh.bed().file_of(own, AGENT, TOKEN)?;
    let _tainted = [
        Tainted::new(tenant, own, TAINT)?,
        Tainted::new(tenant, own, OTHER)?,
        Tainted::new(tenant, other, TAINT)?,
    ];
    let as_agent = |arguments: &[&str]| -> anyhow::Result<(bool, String)> {
        let output = Command::output(mesh.bed().kubectl_as(&token).args(arguments))?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };
    let (own, other) = (own.to_string(), other.to_string());
    let (taint, someone_elses) = (format!("{TAINT}-"), format!("{OTHER}-"));
    let only_taint = "change nothing else";
    let cordon = r#"{"spec":{"unschedulable":true}}"#;
    let status = r#"{"status":{"capacity":{"cpu":"1000"}}}"#;
    let refused: [(&[&str], &str); 9] = [
        (&["taint", "node", &other, &taint], "its own node alone"),
        (&["label", "node", &other, "sluice.test/agent=was-here"], "its own node alone"),
        (&["label", "node", &own, "sluice.test/agent=was-here"], only_taint),
        (&["annotate", "node", &own, "sluice.test/agent=was-here"], only_taint),
        (&["patch", "node", &own, "--patch", cordon], only_taint),
        (&["taint", "node", &own, &someone_elses], only_taint),
        (&["taint", "node", &own, "sluice.test/new=:NoExecute"], only_taint),
        (&["patch", "node", &own, "--subresource=status", "--patch", status], "Forbidden"),
        (&["delete", "node", &other], "Forbidden"),
    ];
    for (arguments, why) in refused {
        let (done, said) = as_agent(arguments)?;
        println!("{}: {}", arguments.join(" "), said.trim());
        ensure!(!done && said.contains(why), "{arguments:?}: {said}");
    }
    let (done, said) = as_agent(&["taint", "node", &own, &taint])?;
    ensure!(done, "an agent may not take off its own node's taint: {said}");
    Ok(())
}
