//! Addresses of pods that the API server does not tell yet.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{
        mpsc::UnboundedSender,
        oneshot,
        watch::{self, Receiver},
    },
    time::timeout,
};

use super::{kinds::Kind, tables::Tables};
use crate::{
    config::{
        compile::Compiler,
        facts::{NamespaceFacts, PodFacts},
        state::SourceState,
    },
    mesh::{PodUid, Workload},
};

/// How long the answer about a pod may take that is known, while the API server is away: much longer
/// than a snapshot takes.
const AT_HAND: Duration = Duration::from_millis(250);

/// Tells the source the addresses of pods whose sandbox was just made: the API server hears of
/// them from the kubelet, after the pod's containers have started. Nobody waits for the source
/// here, which may be busy.
#[derive(Clone, Debug)]
pub struct PodAddresses {
    pub(super) told: UnboundedSender<Told>,
    pub(super) state: watch::Receiver<SourceState>,
}

/// What is told of one pod; no addresses when it ends.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) uid: PodUid,
    pub(super) ips: Vec<IpAddr>,
    pub(super) asks: Option<oneshot::Sender<Membership>>,
}

/// What the API server's objects say about a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It belongs to the mesh.
    Inside,
    /// It does not.
    Outside,
    /// The API server cannot be asked, and has not told before.
    Unknown,
}

impl PodAddresses {
    /// The pod `uid` has `ips`, until the API server tells its addresses, or it is forgotten.
    pub fn give(&self, uid: PodUid, ips: Vec<IpAddr>) {
        self.tell(Told { uid, ips, asks: None });
    }

    /// As [`Self::give`]; whether the pod belongs to the mesh. Waits until the API server has told
    /// of it, unless that cannot be.
    pub async fn give_and_ask(&self, uid: PodUid, ips: Vec<IpAddr>) -> Membership {
        let (asks, mut answer) = oneshot::channel();
        self.tell(Told { uid, ips, asks: Some(asks) });
        let mut state = self.state.clone();
        tokio::select! {
            biased;
            answered = &mut answer => return answered.unwrap_or(Membership::Unknown),
            () = silence(&mut state) => {}
        }
        let answered = timeout(AT_HAND, answer).await;
        answered.map_or(Membership::Unknown, |answered| answered.unwrap_or(Membership::Unknown))
    }

    /// The pod `uid` ends.
    pub fn forget(&self, uid: PodUid) {
        self.tell(Told { uid, ips: Vec::new(), asks: None });
    }

    fn tell(&self, told: Told) {
        // Without a source nobody wants to know.
        let _ = self.told.send(told);
    }
}

/// Waits until a watch is down that tells of new pods.
async fn silence(state: &mut Receiver<SourceState>) {
    let tells = |kind: &str| kind == PodFacts::PLURAL || kind == NamespaceFacts::PLURAL;
    let is_down = |state: &SourceState| {
        state.watches.iter().any(|watch| tells(watch.kind) && watch.error.is_some())
    };
    // A source that is gone tells nothing either.
    let _ = state.wait_for(is_down).await;
}

/// Who waits to be told about a pod.
#[derive(Debug, Default)]
pub(super) struct Questions(Vec<(PodUid, oneshot::Sender<Membership>)>);

impl Questions {
    pub(super) fn ask(&mut self, uid: PodUid, asks: oneshot::Sender<Membership>) {
        self.0.push((uid, asks));
    }

    /// Answers those about pods that are known. To be called when `tables` were compiled.
    pub(super) fn answer(&mut self, tables: &Tables) {
        let known = |uid: &PodUid| tables.compiler.pod(uid).map(|(_, pod)| pod);
        let waiting = std::mem::take(&mut self.0).into_iter().filter_map(|(uid, asks)| {
            // Whoever does not wait any more is not to be remembered.
            let pod = match known(&uid) {
                None => return (!asks.is_closed()).then_some((uid, asks)),
                Some(pod) => pod,
            };
            let inside = pod.workload.meshed;
            let _ = asks.send(if inside { Membership::Inside } else { Membership::Outside });
            None
        });
        self.0 = waiting.collect();
    }
}

/// The addresses given so far.
#[derive(Debug, Default)]
pub(super) struct Given(BTreeMap<PodUid, Vec<IpAddr>>);

impl Given {
    /// Takes in what is told of a pod, which `compiler` may know already; no addresses means that it
    /// ends.
    pub(super) fn note(&mut self, uid: PodUid, ips: Vec<IpAddr>, compiler: &mut Compiler) {
        let former = self.0.remove(&uid).unwrap_or_default();
        if let Some((key, pod)) = compiler.pod(&uid)
            && pod.addresses() == former
        {
            let (key, mut pod) = (key.clone(), pod.clone());
            lend(&mut pod, &ips);
            compiler.set(key, Some(pod));
        }
        if !ips.is_empty() {
            self.0.insert(uid, ips);
        }
    }

    /// Completes a pod as the API server tells it. From the moment that it tells addresses, those
    /// are the pod's.
    pub(super) fn complete(&mut self, pod: &mut PodFacts) {
        if !pod.addresses().is_empty() {
            self.0.remove(&pod.workload.uid);
        } else if let Some(ips) = self.0.get(&pod.workload.uid) {
            lend(pod, ips);
        }
    }
}

/// Gives `pod` addresses, of which the API server tells none.
fn lend(pod: &mut PodFacts, ips: &[IpAddr]) {
    if !pod.host_network {
        pod.workload = Arc::new(Workload { ips: ips.to_vec(), ..(*pod.workload).clone() });
    }
}
