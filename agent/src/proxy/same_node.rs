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
    let newest = pod.ips.first().and_then(|ip| snapshot.workload(*ip));
    newest.is_some_and(|newest| newest.uid == pod.uid && !newest.policed)
}
