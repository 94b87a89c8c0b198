//! Tells of pods' troubles where their owners look: as Events of the API server, which
//! `kubectl describe pod` and `kubectl get events` show.

use std::time::Duration;

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::mesh::Workload;

/// Whose the events are, by Kubernetes' form of a name.
const CONTROLLER: &str = "sluice.dev/agent";
/// News that wait to be told. More at once are one cause's, which the first of them name.
const WAITING: usize = 256;
/// How long the API server may take to accept one.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest note that the API server accepts, in bytes.
const LONGEST: usize = 1024;

/// The news of this node's pods; kept to itself where there is no API server.
#[derive(Debug, Default)]
pub(super) struct Events {
    news: Option<mpsc::Sender<(Event, String)>>,
    _telling: Option<AbortOnDropHandle<()>>,
}

impl Events {
    /// Tells the API server behind `client`, in the name of the agent of `node`. To be called
    /// inside a tokio runtime.
    pub(super) fn start(client: Client, node: String) -> Self {
        let (news, waiting) = mpsc::channel(WAITING);
        let telling = tokio::spawn(tell(client, node, waiting));
        Self { news: Some(news), _telling: Some(AbortOnDropHandle::new(telling)) }
    }

    /// A pod is not captured, and why.
    pub(super) fn not_captured(&self, pod: &Workload, why: &str) {
        self.post(pod, "Warning", "NotCaptured", why);
    }

    /// A pod that was told of as not captured is captured.
    pub(super) fn captured_at_last(&self, pod: &Workload) {
        self.post(pod, "Normal", "Captured", "its traffic passes through the mesh now");
    }

    /// A captured pod has no certificate, and why.
    pub(super) fn uncertified(&self, pod: &Workload, why: &str) {
        let note = format!("its connections are refused: {why}");
        self.post(pod, "Warning", "NoCertificate", &note);
    }

    /// A pod that was told of as having no certificate has one.
    pub(super) fn certified_at_last(&self, pod: &Workload) {
        self.post(pod, "Normal", "Certified", "it has its certificate");
    }

    /// NetworkPolicies keep clients in the mesh from a captured pod.
    pub(super) fn cut_off(&self, pod: &Workload, why: &str) {
        self.post(pod, "Warning", "PortNotAllowed", why);
    }

    /// A pod that was told of as cut off is not any more.
    pub(super) fn cut_off_no_more(&self, pod: &Workload) {
        self.post(pod, "Normal", "PortAllowed", "NetworkPolicies let the mesh reach it");
    }

    fn post(&self, pod: &Workload, kind: &str, reason: &str, note: &str) {
        let Some(news) = &self.news else { return };
        let regarding = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod.namespace.to_string()),
            name: Some(pod.name.to_string()),
            uid: Some(pod.uid.to_string()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: Some(kind.into()),
            reason: Some(reason.into()),
            action: Some("Capture".into()),
            note: Some(note[..note.floor_char_boundary(LONGEST)].into()),
            regarding: Some(regarding),
            ..Event::default()
        };
        // Whoever is told too much at once hears of the first.
        let _ = news.try_send((event, pod.namespace.to_string()));
    }
}

/// Tells of one after the other. What the API server does not take is said in the log anyway.
async fn tell(client: Client, node: String, mut waiting: mpsc::Receiver<(Event, String)>) {
    while let Some((mut event, namespace)) = waiting.recv().await {
        let now = Timestamp::now();
        let pod = event.regarding.as_ref().and_then(|pod| pod.name.as_deref()).unwrap_or_default();
        event.metadata = ObjectMeta {
            // As kubelet's are: unique among those of the pod.
            name: Some(format!("{pod}.{:x}", now.as_nanosecond())),
            ..ObjectMeta::default()
        };
        event.event_time = Some(MicroTime(now));
        event.reporting_controller = Some(CONTROLLER.into());
        event.reporting_instance = Some(node.clone());
        let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let refused = match timeout(PATIENCE, events.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        tracing::debug!(pod, refused, "the API server took no event");
    }
}
