//! Where the container runtime said that pods' network namespaces are.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::mesh::PodUid;

/// Namespaces by their pods, as the node sees them.
#[derive(Debug, Default)]
pub(super) struct Expected(BTreeMap<PodUid, Told>);

#[derive(Debug)]
struct Told {
    netns: PathBuf,
    /// The runtime knows a pod before the API server tells of its addresses.
    was_known: bool,
}

impl Expected {
    /// The runtime made the pod a namespace.
    pub(super) fn insert(&mut self, uid: PodUid, netns: &Path) {
        self.0.insert(uid, Told { netns: netns.to_owned(), was_known: false });
    }

    /// The runtime ends the pod.
    pub(super) fn remove(&mut self, uid: &PodUid) {
        self.0.remove(uid);
    }

    /// Forgets pods that were known and are no more: while the runtime is restarted it tells of no
    /// end.
    pub(super) fn forget_gone(&mut self, is_known: impl Fn(&PodUid) -> bool) {
        self.0.retain(|uid, told| {
            let known = is_known(uid);
            let gone = told.was_known && !known;
            told.was_known |= known;
            !gone
        });
    }

    /// The namespace of a pod.
    pub(super) fn netns(&self, uid: &PodUid) -> Option<&Path> {
        self.0.get(uid).map(|told| &*told.netns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_forgotten_when_its_object_goes_and_not_before_it_comes() {
        let pod = PodUid::new("0a1b-2c3d").unwrap();
        let netns = Path::new("/run/netns/a");
        let mut expected = Expected::default();
        expected.insert(pod.clone(), netns);
        for is_known in [false, true, true] {
            expected.forget_gone(|_| is_known);
            assert_eq!(expected.netns(&pod), Some(netns));
        }
        expected.forget_gone(|_| false);
        assert_eq!(expected.netns(&pod), None);
        expected.insert(pod.clone(), netns);
        expected.remove(&pod);
        assert_eq!(expected.netns(&pod), None);
    }
}
