//! The node's own network: what runs there is never captured.

use std::net::SocketAddr;

use serde_json::Value;
use sluice_tests::{Agent, Mesh, Talk, capture_events, eventually};

const PORT: u16 = 9999;

/// A pod on the network of node `a`, as its manifest says or as its namespace shows.
fn pod_on_the_host(mesh: &Mesh, name: &str, host_network: bool) -> String {
    let [ip, _] = mesh.a.ips();
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata:\n  name: {name}\n  namespace: default\n  \
         labels: {{istio.io/dataplane-mode: ambient}}\n  \
         annotations: {{sluice.dev/netns: {netns}}}\n\
         spec: {{nodeName: {node}, hostNetwork: {host_network}, containers: [{{name: app}}]}}\n\
         status: {{phase: Running, podIP: {ip}}}\n",
        netns = mesh.a.netns().path().display(),
        node = mesh.a.name(),
    )
}

/// What node `a`'s agent says about a pod; null when it has nothing to do with it.
fn status_of(mesh: &Mesh, name: &str) -> anyhow::Result<Value> {
    let status = Agent::status(&mesh.a)?;
    let mut pods = status["pods"].as_array().into_iter().flatten();
    let name = format!("default/{name}");
    Ok(pods.find(|pod| pod["name"] == name.as_str()).cloned().unwrap_or_default())
}

/// The node dials pods and another node, as ever.
async fn the_node_dials_unnoticed(mesh: &Mesh) -> anyhow::Result<()> {
    let events = || -> anyhow::Result<[u64; 2]> {
        Ok([capture_events(&mesh.a, "marked")?, capture_events(&mesh.a, "steered_out")?])
    };
    let before = events()?;
    for server in [&mesh.near, &mesh.far, &mesh.outsider] {
        let listener = server.listen(PORT)?;
        for (to, from) in server.ips().into_iter().zip(mesh.a.ips()) {
            let stream = mesh.a.connect(SocketAddr::new(to, PORT)).await?;
            let talk = Talk::over(stream, &listener).await?;
            assert_eq!(talk.seen_client()?.ip(), from);
            assert_eq!(talk.seen_server()?.ip(), to);
        }
    }
    let outside = mesh.b.listen(PORT)?;
    for to in mesh.b.ips() {
        let talk = Talk::over(mesh.a.connect(SocketAddr::new(to, PORT)).await?, &outside).await?;
        assert_eq!(talk.seen_client()?, talk.client.local_addr()?, "nobody is in between");
    }
    assert_eq!(events()?, before, "the node was taken for a pod");
    Ok(())
}

/// A pod dials the node, as ever.
async fn the_node_listens_unnoticed(mesh: &Mesh) -> anyhow::Result<()> {
    let marked = capture_events(&mesh.a, "marked")?;
    let into = capture_events(&mesh.a, "steered_in")?;
    let listener = mesh.a.listen(PORT)?;
    for (to, from) in mesh.a.ips().into_iter().zip(mesh.client.ips()) {
        let talk = Talk::start(&mesh.client, SocketAddr::new(to, PORT), &listener).await?;
        assert_eq!(talk.seen_client()?.ip(), from);
    }
    assert_eq!(capture_events(&mesh.a, "steered_in")?, into, "the node was taken for a pod");
    assert_eq!(capture_events(&mesh.a, "marked")?, marked + 2, "the pod is captured");
    Ok(())
}

#[tokio::test]
async fn what_runs_on_the_nodes_network_is_not_captured() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    the_node_dials_unnoticed(&mesh).await?;
    the_node_listens_unnoticed(&mesh).await
}

#[tokio::test]
async fn a_host_network_pod_is_no_pod_of_the_mesh_whatever_its_labels_say() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("pod-honest", &pod_on_the_host(&mesh, "honest", true))?;
    let _agents = mesh.start_agents(&[]).await?;
    assert_eq!(status_of(&mesh, "honest")?, Value::Null);
    the_node_dials_unnoticed(&mesh).await?;
    the_node_listens_unnoticed(&mesh).await
}

#[tokio::test]
async fn a_pod_whose_namespace_is_the_nodes_is_refused_and_status_says_why() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    mesh.config.write("pod-pretender", &pod_on_the_host(&mesh, "pretender", false))?;
    let _agents = mesh.start_agents(&[]).await?;
    let refused = eventually("the pretender is refused", || async {
        let error = status_of(&mesh, "pretender")?["error"].as_str().map(str::to_owned);
        Ok(error)
    });
    let why = refused.await?;
    assert!(why.contains("it is the node's own (hint: host-network pods are never"), "{why}");
    the_node_dials_unnoticed(&mesh).await
}
