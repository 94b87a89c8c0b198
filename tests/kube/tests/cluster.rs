//! The cluster itself, without a mesh: what every other test in it takes for granted.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sluice_kube::{NODES, Tenant, Workload};

const SHOP: &str = "shop";
const PORT: u16 = 8080;

/// Two replicas of the sample's order service, a node each, and a Service in front.
fn shop(tenant: &Tenant) -> anyhow::Result<()> {
    let probe = json!({"readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1}});
    let shop = Workload::new(SHOP, &["order"], PORT).spread(2).container(probe);
    tenant.deploy([shop])?;
    tenant.await_deployment(SHOP)
}

/// The pods, as the API server tells of them.
fn pods(tenant: &Tenant) -> anyhow::Result<Vec<Value>> {
    let list: Value = serde_json::from_str(&tenant.kubectl(["get", "pods", "--output=json"])?)?;
    Ok(list["items"].as_array().context("not a list")?.clone())
}

/// One order, placed from inside `pod`: the answer of the replica that took it.
fn order(tenant: &Tenant, pod: &str, host: &str) -> anyhow::Result<Value> {
    let url = format!("http://{host}:{PORT}/api/order");
    let said = tenant.kubectl(["exec", pod, "--", "/sluice-sample", "client", "--url", &url])?;
    let (_, answer) = said.split_once(": ").with_context(|| said.clone())?;
    Ok(serde_json::from_str(answer)?)
}

/// Places orders from the first replica until both have answered; checks that pods keep their
/// own addresses on the way.
fn both_answer(tenant: &Tenant, host: &str) -> anyhow::Result<()> {
    let pods = pods(tenant)?;
    let names: BTreeSet<_> =
        pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
    let (client, address) = (&pods[0]["metadata"]["name"], &pods[0]["status"]["podIP"]);
    let client = client.as_str().context("a pod without a name")?;
    let address = address.as_str().context("a pod without an address")?;
    let mut answered = BTreeSet::new();
    tenant.eventually("both replicas answer", || {
        let answer = order(tenant, client, host)?;
        let replica = answer["replica"].as_str().context("no replica")?.to_owned();
        let from = answer["client"].as_str().unwrap_or_default();
        // One that reaches itself through a Service is masqueraded, by Kubernetes' rule.
        ensure!(replica == client || from.contains(address), "{replica} saw {from}, not {address}");
        answered.insert(replica);
        ensure!(answered.len() == 2, "so far {answered:?}");
        Ok(())
    })?;
    ensure!(answered.iter().map(String::as_str).eq(names), "{answered:?} are not the pods");
    Ok(())
}

#[test]
fn replicas_are_spread_over_both_nodes() -> anyhow::Result<()> {
    let tenant = Tenant::new("spread")?;
    shop(&tenant)?;
    let pods = pods(&tenant)?;
    let nodes: BTreeSet<_> =
        pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
    let expected = NODES.map(|node| node.to_string());
    assert!(nodes.iter().eq(&expected), "{nodes:?}");
    Ok(())
}

#[test]
fn pods_reach_both_replicas_across_nodes_by_the_services_address() -> anyhow::Result<()> {
    let tenant = Tenant::new("address")?;
    shop(&tenant)?;
    let service = ["get", "service", SHOP, "--output=jsonpath={.spec.clusterIP}"];
    let address = tenant.kubectl(service)?;
    both_answer(&tenant, &address)
}

#[test]
fn pods_reach_both_replicas_across_nodes_by_the_services_name() -> anyhow::Result<()> {
    let tenant = Tenant::new("name")?;
    shop(&tenant)?;
    both_answer(&tenant, SHOP)?;
    both_answer(&tenant, &format!("{SHOP}.{}.svc.cluster.local", tenant.namespace()))
}

#[test]
fn what_a_pod_prints_is_read_through_the_api_server() -> anyhow::Result<()> {
    let tenant = Tenant::new("logs")?;
    shop(&tenant)?;
    let deployment = format!("deployment/{SHOP}");
    let logs = tenant.kubectl(["logs", &deployment])?;
    assert!(logs.contains("listening on [::]:8080"), "{logs}");
    Ok(())
}

#[test]
fn a_kubelet_may_change_its_own_node_alone() -> anyhow::Result<()> {
    let tenant = Tenant::new("restriction")?;
    let [own, other] = NODES;
    let label = |node: &str| {
        let mut command = tenant.bed().node_command(own, "kubectl")?;
        command.args(["--kubeconfig", "/var/lib/credentials/kubelet.kubeconfig"]);
        command.args(["--cache-dir", "/run/kubectl", "label", "--overwrite", "node", node]);
        let output = command.arg("sluice.test/tried=yes").output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::Ok((output.status.success(), said))
    };
    let (allowed, said) = label(&own.to_string())?;
    assert!(allowed, "{said}");
    let (allowed, said) = label(&other.to_string())?;
    assert!(!allowed && said.contains("Forbidden"), "{said}");
    Ok(())
}
