//! Which identities run on which node, as the API server knows it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};
use tokio::time::Instant;

use crate::mesh::Principal;

/// How long a list of a node's pods says who *may* have a certificate. An agent that starts
/// asks for all its pods at once.
const FRESH: Duration = Duration::from_secs(10);

/// The pods of nodes whose agents ask, listed when they do. Who is *not* on a node is decided
/// only by a complete list that was begun after the question came: a pod that has just been bound is
/// never refused for an older view.
pub(super) struct NodePods {
    api: Api<Pod>,
    nodes: Mutex<HashMap<String, Arc<Node>>>,
}

/// One node. Whoever lists its pods holds the lock; those who wait use that list.
#[derive(Default)]
struct Node(tokio::sync::Mutex<Option<Listing>>);

struct Listing {
    begun: Instant,
    /// Whether it has all that was true when it was begun.
    complete: bool,
    /// Namespace and service account.
    accounts: HashSet<(String, String)>,
}

impl NodePods {
    pub(super) fn new(client: Client) -> Self {
        Self { api: Api::all(client), nodes: Mutex::default() }
    }

    /// Whether a pod of the mesh with the identity `who` runs on `node`.
    pub(super) async fn has(&self, node: &str, who: &Principal) -> Result<bool, kube::Error> {
        let asked = Instant::now();
        let account = (who.namespace().to_owned(), who.service_account().to_owned());
        let entry = self.entry(node);
        let mut listing = entry.0.lock().await;
        if let Some(Listing { begun, complete, accounts }) = &*listing {
            let known = accounts.contains(&account);
            if (known && begun.elapsed() < FRESH) || (*complete && *begun > asked) {
                return Ok(known);
            }
        }
        // An API server has an index of pods by node for what it remembers; before Kubernetes
        // 1.31 a list of what is true now has etcd read every pod of the cluster. So that is asked
        // only before somebody is told that there is no such pod.
        let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let remembered = on_node.clone().match_any();
        for (complete, list) in [(false, remembered), (true, on_node)] {
            let begun = Instant::now();
            let accounts: HashSet<_> =
                self.api.list(&list).await?.items.iter().filter_map(account_of).collect();
            let known = accounts.contains(&account);
            *listing = Some(Listing { begun, complete, accounts });
            if known {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn entry(&self, node: &str) -> Arc<Node> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        // Nodes that nobody asks about are forgotten, in use ones are held by their users.
        nodes.retain(|_, entry| {
            Arc::strong_count(entry) > 1
                || entry.0.try_lock().is_ok_and(|listing| {
                    listing.as_ref().is_some_and(|listing| listing.begun.elapsed() < FRESH)
                })
        });
        nodes.entry(node.to_owned()).or_default().clone()
    }
}

/// Whose identity a pod needs. Pods in the node's own network are never captured and need
/// none, and those that have ended need none any more.
fn account_of(pod: &Pod) -> Option<(String, String)> {
    let spec = pod.spec.as_ref()?;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if spec.host_network == Some(true) || matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty());
    Some((pod.metadata.namespace.clone()?, account.unwrap_or("default").to_owned()))
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use http_body_util::Full;
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// An API server that lists pods of these service accounts, and notes which lists were to be
    /// complete. What it remembers may be behind.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<Known>>);

    #[derive(Default)]
    struct Known {
        accounts: Vec<&'static str>,
        remembered: usize,
        complete: Vec<bool>,
    }

    impl Server {
        fn client(&self) -> Client {
            let server = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let query = request.uri().query().unwrap_or_default();
                assert!(query.contains("fieldSelector=spec.nodeName%3Dnode-a"), "{query}");
                let complete = !query.contains("resourceVersion=0");
                let known = &mut *server.0.lock().unwrap();
                known.complete.push(complete);
                let shown = if complete { known.accounts.len() } else { known.remembered };
                let pods: Vec<_> = known.accounts[..shown]
                    .iter()
                    .map(|account| {
                        json!({
                            "metadata": {"name": account, "namespace": "shop"},
                            "spec": {"containers": [], "serviceAccountName": account},
                        })
                    })
                    .collect();
                let list = json!({
                    "apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": pods,
                });
                let answer = Response::new(Full::new(bytes::Bytes::from(list.to_string())));
                std::future::ready(Ok::<_, std::convert::Infallible>(answer))
            });
            Client::new(service, "default")
        }

        fn binds(&self, account: &'static str) {
            self.0.lock().unwrap().accounts.push(account);
        }

        fn catches_up(&self) {
            let known = &mut *self.0.lock().unwrap();
            known.remembered = known.accounts.len();
        }

        /// Of each list so far, whether it was to be complete.
        fn lists(&self) -> Vec<bool> {
            std::mem::take(&mut self.0.lock().unwrap().complete)
        }
    }

    fn principal(account: &str) -> Principal {
        format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_list_serves_for_a_while_but_refuses_nobody_who_came_after_it() {
        let server = Server::default();
        let pods = NodePods::new(server.client());
        let has = async |account: &str| pods.has("node-a", &principal(account)).await.unwrap();
        server.binds("order");
        server.catches_up();
        assert!(has("order").await);
        assert!(has("order").await);
        assert_eq!(server.lists(), [false]);

        assert!(!has("user").await);
        assert_eq!(server.lists(), [false, true]);
        server.binds("user");
        server.catches_up();
        assert!(has("user").await);
        assert!(has("order").await);
        assert_eq!(server.lists(), [false]);

        tokio::time::advance(FRESH).await;
        assert!(has("order").await);
        assert_eq!(server.lists(), [false]);
    }

    #[tokio::test]
    async fn what_an_api_server_does_not_remember_yet_is_no_reason_to_refuse() {
        let server = Server::default();
        let pods = NodePods::new(server.client());
        server.binds("order");
        server.catches_up();
        server.binds("late");
        // Those who wait for a list that was not complete are not refused by it either.
        let (order, late) = (principal("order"), principal("late"));
        let (order, late) = tokio::join!(pods.has("node-a", &order), pods.has("node-a", &late));
        assert!(order.unwrap() && late.unwrap());
        assert_eq!(server.lists(), [false, false, true]);
    }

    #[tokio::test]
    async fn those_who_ask_together_wait_for_the_same_lists() {
        let server = Server::default();
        let pods = NodePods::new(server.client());
        let order = principal("order");
        let asked = (0..20).map(|_| pods.has("node-a", &order));
        let answers = futures_util::future::join_all(asked).await;
        assert!(answers.into_iter().all(|answer| !answer.unwrap()));
        let lists = server.lists();
        assert!(lists.len() <= 4, "{} lists", lists.len());
    }

    fn account(spec: serde_json::Value, phase: &str) -> Option<(String, String)> {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": spec,
            "status": {"phase": phase},
        });
        account_of(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_has_the_identity_of_its_service_account() {
        let spec = json!({"containers": [], "serviceAccountName": "order"});
        assert_eq!(account(spec, "Pending"), Some(("shop".into(), "order".into())));
        let spec = json!({"containers": []});
        assert_eq!(account(spec, "Running"), Some(("shop".into(), "default".into())));
    }

    #[test]
    fn pods_of_the_hosts_network_and_ended_ones_lend_their_identity_to_nobody() {
        let spec = json!({"containers": [], "serviceAccountName": "order", "hostNetwork": true});
        assert_eq!(account(spec, "Running"), None);
        let spec = json!({"containers": [], "serviceAccountName": "order"});
        assert_eq!(account(spec.clone(), "Succeeded"), None);
        assert_eq!(account(spec, "Failed"), None);
    }
}
