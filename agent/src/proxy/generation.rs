//! Until when connections that are kept are used for new ones.
//!
//! A CNI looks at who may reach whom when a connection begins, and lets it go on whatever policies
//! say later. What an application dials after a change is to be looked at by the new policies, so it
//! must not go by a connection of the agent's from before.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::LazyLock,
    time::{Duration, Instant},
};

use crate::mesh::{Snapshot, Workload};

/// How long a connection is used for new ones where policies may mean something else by changes that
/// the agent does not follow: of kinds that it cannot read, or of the pods that a policy names.
const UNTOLD: Duration = Duration::from_secs(60);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What connections from `client` to `server` have to be of, to be used for a new one; another number
/// after every change of policies that select one of the two.
pub(super) fn generation(snapshot: &Snapshot, client: &Workload, server: Option<&Workload>) -> u64 {
    let policies = |pod| Some(snapshot.newest(pod)?.policed.as_ref()?.digest);
    let digests = [policies(client), server.and_then(policies)];
    if digests == [None; 2] && !snapshot.cni_policies {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    (&client.uid, server.map(|server| &server.uid), digests).hash(&mut hasher);
    // Not all at the same moment.
    let offset = Duration::from_millis(hasher.finish() % 60_000);
    ((START.elapsed() + offset).as_secs() / UNTOLD.as_secs()).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mesh::{Policed, testing};

    #[test]
    fn it_is_another_one_whenever_policies_of_either_are_others() {
        let pod = |name: &str, digest: Option<u64>| {
            let by = Arc::from("one");
            let policed = digest.map(|digest| Arc::new(Policed { by, cut_by: None, digest }));
            let ip = format!("10.0.0.{}", name.len());
            Arc::new(Workload { policed, ..testing::workload(name, &ip) })
        };
        let of = |client, server, cni_policies| {
            let (client, server) = (pod("client", client), pod("order", server));
            let workloads = vec![client.clone(), server.clone()];
            let mut snapshot = testing::snapshot(1, workloads);
            snapshot.cni_policies = cni_policies;
            generation(&snapshot, &client, Some(&server))
        };
        assert_eq!(of(None, None, false), 0);
        let all = [
            of(None, None, true),
            of(Some(1), None, false),
            of(Some(2), None, false),
            of(None, Some(1), false),
            of(None, Some(2), false),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one) && *one != 0, "{all:?}");
        }
    }
}
