//! How two pods of one node reach each other.

use super::LocalPod;
use crate::mesh::{Snapshot, Workload};

/// Between two pods of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SameNode {
    /// Handed over, unless a NetworkPolicy selects one of the two, or the cluster has policies
    /// that only its CNI understands
    #[default]
    Auto,
    /// Through HBONE, from pod to pod, where the CNI sees it
    Tunnel,
    /// Handed over within the agent, which no CNI sees, whatever NetworkPolicies say
    Handover,
}

impl SameNode {
    /// Why nothing is handed over; `None` where that depends on the pods.
    pub fn always_tunnels(self, snapshot: &Snapshot) -> Option<&'static str> {
        match self {
            Self::Auto if snapshot.cni_policies => {
                Some("the cluster has policies that only its CNI understands")
            }
            Self::Tunnel => Some("--same-node=tunnel"),
            Self::Auto | Self::Handover => None,
        }
    }

    /// Why nothing is handed over to or from `pod`.
    pub fn tunnels(self, pod: &Workload) -> Option<String> {
        let policed = pod.policed.as_ref().filter(|_| self == Self::Auto)?;
        Some(format!("NetworkPolicy {}/{} selects it", pod.namespace, policed.by))
    }

    /// Whether what `client` sends to `server` is handed over.
    pub(super) fn hands_over(
        self,
        snapshot: &Snapshot,
        client: &LocalPod,
        server: &Workload,
    ) -> bool {
        match self {
            Self::Handover => true,
            Self::Tunnel => false,
            Self::Auto => {
                !snapshot.cni_policies
                    && is_free(snapshot, &client.workload())
                    && is_free(snapshot, server)
            }
        }
    }
}

/// Whether no NetworkPolicy selects the pod, by the newest snapshot: whoever holds an older view
/// of it would not know of a policy that is in force meanwhile.
fn is_free(snapshot: &Snapshot, pod: &Workload) -> bool {
    snapshot.newest(pod).is_some_and(|newest| newest.policed.is_none())
}
