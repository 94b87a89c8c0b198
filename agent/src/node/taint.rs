//! The taint that keeps pods away from a node until its agent is ready.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::sleep;

use crate::admin::Readiness;

/// How soon the API server is asked again that did not take the taint away.
const RETRY: Duration = Duration::from_secs(2);

/// Takes every taint with the key `taint` off `node` once the agent is ready. Whoever adds nodes
/// to the cluster put it there.
pub(super) async fn take_off(client: Client, node: String, taint: String, readiness: Readiness) {
    readiness.reached().await;
    let nodes: Api<Node> = Api::all(client);
    loop {
        match once(&nodes, &node, &taint).await {
            Ok(true) => return tracing::info!(node, taint, "the taint is off: pods may come"),
            Ok(false) => return,
            Err(error) => tracing::warn!(node, taint, %error, "could not take the taint off"),
        }
        sleep(RETRY).await;
    }
}

/// Whether there was one to take off.
async fn once(nodes: &Api<Node>, node: &str, taint: &str) -> Result<bool, kube::Error> {
    let found = nodes.get(node).await?;
    let taints = found.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let staying: Vec<_> = taints.iter().filter(|one| one.key != taint).collect();
    if staying.len() == taints.len() {
        return Ok(false);
    }
    // With the version, so that a taint somebody else adds meanwhile is not lost.
    let version = found.metadata.resource_version;
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": staying}});
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(true)
}
