//! The annotation by which an agent tells of the pods that it has captured.

use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;
use sluice_kube::{Mesh, NODES, Tenant, Workload, text};

const AGENT: &str = "/sluice agent";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const REDIRECTION: &str = "ambient.istio.io/redirection";

/// The one pod of an app: its name, and whether it is annotated.
fn pod(tenant: &Tenant, app: &str) -> anyhow::Result<(String, bool)> {
    let pods = ["get", "pods", &format!("--selector=app={app}"), "--output=json"];
    let pods: Value = serde_json::from_str(&tenant.kubectl(pods)?)?;
    let pod = pods["items"].get(0).with_context(|| format!("there is no pod of {app}"))?;
    let annotated = pod["metadata"]["annotations"][REDIRECTION] == "enabled";
    Ok((text(pod, "/metadata/name")?.to_owned(), annotated))
}

#[test]
fn captured_pods_are_annotated_and_an_agent_may_change_nothing_else_of_pods() -> anyhow::Result<()>
{
    let mesh = Mesh::find()?;
    let tenant = Tenant::new("annotation")?;
    let [other, own] = NODES;
    tenant.deploy([
        Workload::new("here", &["order"], 8080).on(own),
        Workload::new("there", &["order"], 8080).on(other),
    ])?;
    tenant.await_deployment("here")?;
    tenant.await_deployment("there")?;
    let label = |mode: &str| {
        tenant.kubectl(["label", "namespace", tenant.namespace(), "--overwrite", mode]).map(drop)
    };
    let annotated = |expected: bool| {
        tenant.eventually("the annotations of both pods", || {
            for app in ["here", "there"] {
                let (name, annotated) = pod(&tenant, app)?;
                ensure!(annotated == expected, "{name} is annotated: {annotated}");
            }
            Ok(())
        })
    };
    label("istio.io/dataplane-mode=ambient")?;
    annotated(true)?;
    may_do_nothing_else(&mesh, &tenant)?;
    annotated(true)?;
    label("istio.io/dataplane-mode-")?;
    annotated(false)
}

fn may_do_nothing_else(mesh: &Mesh, tenant: &Tenant) -> anyhow::Result<()> {
    let [_, own] = NODES;
    // The agent's very own: what whoever takes the agent over has.
    let token = mesh.bed().file_of(own, AGENT, TOKEN)?;
    let namespace = format!("--namespace={}", tenant.namespace());
    let as_agent = |arguments: &[&str]| -> anyhow::Result<(bool, String)> {
        let output =
            Command::output(mesh.bed().kubectl_as(&token).arg(&namespace).args(arguments))?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };
    let ((here, _), (there, _)) = (pod(tenant, "here")?, pod(tenant, "there")?);
    let off = format!("{REDIRECTION}-");
    let (own_node, nothing_else) = ("its own node alone", "change nothing else");
    let deadline = r#"{"spec":{"activeDeadlineSeconds":1}}"#;
    let refused: [(&[&str], &str); 6] = [
        (&["annotate", "pod", &there, &off], own_node),
        (&["label", "pod", &there, "sluice.test/agent=was-here"], own_node),
        (&["label", "pod", &here, "sluice.test/agent=was-here"], nothing_else),
        (&["annotate", "pod", &here, "sluice.test/agent=was-here"], nothing_else),
        (&["patch", "pod", &here, "--patch", deadline], nothing_else),
        (&["delete", "pod", &here], "Forbidden"),
    ];
    for (arguments, why) in refused {
        let (done, said) = as_agent(arguments)?;
        println!("{}: {}", arguments.join(" "), said.trim());
        ensure!(!done && said.contains(why), "{arguments:?}: {said}");
    }
    let (done, said) = as_agent(&["annotate", "pod", &here, &off])?;
    ensure!(done, "an agent may not take the annotation off: {said}");
    Ok(())
}
