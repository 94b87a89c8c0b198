//! How far each pod of the node has come.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::events::Events;
use crate::{
    capture::Netns,
    mesh::{DATAPLANE_MODE, Workload},
    proxy::{LocalPod, Serving},
};

/// How long after a failed enrolment it is tried again: doubled each time, up to the second. News
/// of the pod itself come first; this is for what nobody tells, such as a namespace that gets its
/// address a moment later.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// A pod that lacks something for so long is no event: while it starts, much is not there yet.
const TRIFLE: Duration = Duration::from_secs(2);

/// One pod that belongs to the mesh.
pub(super) enum State {
    Captured(Captured),
    Failed(Failed),
}

pub(super) struct Captured {
    pub(super) pod: Arc<LocalPod>,
    /// Where its source says that its namespace is, if it does.
    pub(super) told: Option<PathBuf>,
    /// The namespace it is captured in.
    pub(super) netns: u64,
    /// It has no certificate.
    pub(super) uncertified: Option<Uncertified>,
    /// What its owner was told of why clients in the mesh do not reach it.
    pub(super) cut: Option<String>,
    pub(super) _serving: Serving,
}

/// Since when a captured pod has no certificate, and what its owner was told.
pub(super) struct Uncertified {
    since: Instant,
    told: Option<String>,
}

pub(super) struct Failed {
    pub(super) workload: Arc<Workload>,
    pub(super) error: String,
    delay: Duration,
    pub(super) again: Instant,
    since: Instant,
    /// What its owner was told.
    pub(super) told: Option<String>,
}

impl Captured {
    /// Whether the path it was told to be at leads to another namespace, as when its sandbox was
    /// made anew. A path that leads nowhere says nothing.
    pub(super) fn has_moved(&self) -> bool {
        let elsewhere = |found: Netns| found.inode() != self.netns;
        self.told.as_ref().is_some_and(|told| Netns::of_pod(told).is_ok_and(elsewhere))
    }

    /// Takes in why the pod has no certificate, or that it has one; says so when that is news.
    pub(super) fn certificate(&mut self, missing: Option<String>, events: &Events) {
        let pod = self.pod.workload();
        let Some(why) = missing else {
            if self.uncertified.take().is_some_and(|lacking| lacking.told.is_some()) {
                tracing::info!(pod = name_of(&pod), "a captured pod has its certificate at last");
                events.certified_at_last(&pod);
            }
            return;
        };
        let new = Uncertified { since: Instant::now(), told: None };
        let lacking = self.uncertified.get_or_insert(new);
        if lacking.since.elapsed() > TRIFLE && lacking.told.as_ref() != Some(&why) {
            tracing::warn!(
                pod = name_of(&pod),
                why,
                "the connections of a captured pod are refused: it has no certificate"
            );
            events.uncertified(&pod, &why);
            lacking.told = Some(why);
        }
    }
}

impl Captured {
    /// Says so when NetworkPolicies have come to keep the mesh from the pod, or do no more.
    pub(super) fn policies(&mut self, events: &Events) {
        let pod = self.pod.workload();
        let why = pod.cut_by_policy();
        if why == self.cut {
            return;
        }
        match &why {
            Some(why) => {
                tracing::warn!(pod = name_of(&pod), why, "clients in the mesh do not reach a pod");
                events.cut_off(&pod, why);
            }
            None => events.cut_off_no_more(&pod),
        }
        self.cut = why;
    }
}

impl Failed {
    /// A pod that could not be captured, after `former`; says so when that is news.
    pub(super) fn new(
        workload: &Arc<Workload>,
        error: String,
        former: Option<&Failed>,
        events: &Events,
    ) -> Self {
        let now = Instant::now();
        let (mut delay, mut is_news, mut since, mut told) = (RETRY.0, true, now, None);
        if let Some(former) = former {
            is_news = former.error != error;
            (since, told) = (former.since, former.told.clone());
            if *former.workload == **workload {
                delay = (former.delay * 2).min(RETRY.1);
            }
        }
        if is_news {
            tracing::warn!(pod = name_of(workload), error, "could not capture a pod");
        }
        if since.elapsed() > TRIFLE && told.as_ref() != Some(&error) {
            events.not_captured(workload, &error);
            told = Some(error.clone());
        }
        let again = now + delay;
        Failed { workload: workload.clone(), error, delay, again, since, told }
    }
}

pub(super) fn name_of(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

/// Why a pod does not belong to the mesh.
pub(super) fn outside_because(workload: &Workload) -> String {
    let label = workload.labels.get(DATAPLANE_MODE);
    match label {
        _ if workload.ips.is_empty() => "it uses the node's network".to_owned(),
        _ if workload.sidecar => "it has a sidecar, a proxy of its own (annotation \
            sidecar.istio.io/status; hint: restart it without injection)"
            .to_owned(),
        Some(mode) => format!("its label {DATAPLANE_MODE} is {mode}"),
        None => format!("neither it nor its namespace has the label {DATAPLANE_MODE}=ambient"),
    }
}
