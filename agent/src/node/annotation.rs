//! Tells peers which pods of this node are captured, where they see it: by an annotation of the
//! pod, as Istio does. A label says what is wanted; whoever tunnelled to a pod for its label alone
//! would be refused until its turn has come, or for ever where nobody captures it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Error,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::enrolment::Enrolment;
use crate::mesh::{PodUid, REDIRECTION, REDIRECTION_ENABLED, SnapshotStore, Workload};

/// How soon the API server is asked again that took something not.
const RETRY: Duration = Duration::from_secs(2);
/// How long the watch may take to show what the API server has taken. After that it is told
/// again: somebody may have changed it back.
const ECHO: Duration = Duration::from_secs(5);
/// How long the API server may take for one pod.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pods told of at once: a namespace that joins has many.
const AT_ONCE: usize = 8;

/// Keeps the annotations of one node's pods what enrolment says, until dropped.
pub(super) struct Annotations {
    pub(super) client: Client,
    pub(super) enrolment: Arc<Enrolment>,
    pub(super) snapshots: Arc<SnapshotStore>,
}

/// What the API server has taken and the watch has not shown yet.
struct Told {
    captured: bool,
    at: Instant,
}

impl Annotations {
    pub(super) async fn keep(self) {
        let mut progress = self.enrolment.progress();
        let mut certificates = self.enrolment.certificates();
        let mut changed = self.snapshots.subscribe();
        let mut told: HashMap<PodUid, Told> = HashMap::new();
        let mut complained = None;
        loop {
            progress.mark_unchanged();
            certificates.mark_unchanged();
            changed.mark_unchanged();
            let due = self.due(&mut told);
            let patches = due.into_iter().map(|(pod, captured)| self.tell(pod, captured));
            let results: Vec<_> = stream::iter(patches).buffer_unordered(AT_ONCE).collect().await;
            let mut failure = None;
            for (pod, captured, result) in results {
                match result {
                    Ok(()) => {
                        told.insert(pod.uid.clone(), Told { captured, at: Instant::now() });
                    }
                    Err(error) => failure = Some(error),
                }
            }
            if failure.is_some() && failure != complained {
                let error = failure.as_deref().unwrap_or_default();
                tracing::warn!(
                    error,
                    "peers are not told which pods are captured, and dial those in plaintext (hint: \
                     the agent needs to patch pods, and Kubernetes 1.32 for the policy that narrows it)"
                );
            }
            complained = failure;
            let wait = if complained.is_some() { RETRY } else { ECHO };
            tokio::select! {
                news = progress.changed() => if news.is_err() { return },
                news = certificates.changed() => if news.is_err() { return },
                news = changed.changed() => if news.is_err() { return },
                () = sleep(wait), if complained.is_some() || !told.is_empty() => {}
            }
        }
    }

    /// The pods whose annotation is not what it should be, with what it should be. Forgets what was
    /// told of pods where the watch has shown it, or that are gone.
    fn due(&self, told: &mut HashMap<PodUid, Told>) -> Vec<(Arc<Workload>, bool)> {
        let snapshot = self.snapshots.load();
        let wrong = snapshot.local().filter_map(|pod| {
            let captured = match self.enrolment.is_captured(&pod.uid) {
                // Before it was tried, it may be captured by a former agent.
                None if pod.meshed => return None,
                known => known.unwrap_or(false),
            };
            (captured != pod.captured).then(|| (pod.clone(), captured))
        });
        let wrong: Vec<_> = wrong.collect();
        told.retain(|uid, told| {
            told.at.elapsed() < ECHO
                && wrong.iter().any(|(pod, now)| pod.uid == *uid && *now == told.captured)
        });
        wrong.into_iter().filter(|(pod, _)| !told.contains_key(&pod.uid)).collect()
    }

    /// Tells of one pod; the error in words.
    async fn tell(
        &self,
        pod: Arc<Workload>,
        captured: bool,
    ) -> (Arc<Workload>, bool, Result<(), String>) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let patch = Patch::Merge(json!({"metadata": metadata(&pod.uid, captured)}));
        let parameters = PatchParams::default();
        let answer = timeout(PATIENCE, pods.patch_metadata(&pod.name, &parameters, &patch)).await;
        let result = match answer {
            Ok(Ok(_)) => Ok(()),
            // It is gone, or another one.
            Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the API server does not answer within {PATIENCE:?}")),
        };
        (pod, captured, result)
    }
}

/// What is to be changed of a pod's metadata. With the UID, so that a pod of the same name that came
/// after it is not meant; but for static pods, whose objects have another one.
fn metadata(uid: &PodUid, captured: bool) -> Value {
    let value = captured.then_some(REDIRECTION_ENABLED);
    let mut metadata = json!({"annotations": {REDIRECTION: value}});
    if !uid.is_static() {
        metadata["uid"] = uid.as_str().into();
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_meant_by_its_uid_unless_only_its_node_knows_that() {
        let uid = |text| PodUid::new(text).unwrap();
        let object = uid("6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11");
        assert_eq!(metadata(&object, true)["uid"], object.as_str());
        let of_file = uid("0a1b2c3d4e5f60718293a4b5c6d7e8f9");
        let expected = json!({"annotations": {"ambient.istio.io/redirection": "enabled"}});
        assert_eq!(metadata(&of_file, true), expected);
        assert_eq!(metadata(&of_file, false)["annotations"][REDIRECTION], Value::Null);
    }
}
