//! The limits of one pod.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::{
    Budget, Limit, Permit, Share,
    sources::{FromSource, Sources},
};

/// Handshakes of one source with one pod that may be in progress. An agent opens one for a hundred
/// streams; more at once is not how peers behave, and each keeps a processor busy.
const HANDSHAKES_OF_ONE_SOURCE: u64 = 32;

/// What one pod holds of the agent's budgets.
#[derive(Debug)]
pub struct PodLimits {
    outbound: Arc<Share>,
    inbound: Arc<Share>,
    buffered_out: Arc<Share>,
    buffered_in: Arc<Share>,
    handshakes: Arc<Share>,
    clients: Sources,
    handshaking: Sources,
    tunnels: Arc<AtomicUsize>,
}

/// A connection or stream that came in.
#[derive(Debug)]
#[expect(dead_code, reason = "held for the sake of being dropped")]
pub struct Arrived(Permit, FromSource);

/// A handshake in progress.
#[derive(Debug)]
#[expect(dead_code, reason = "held for the sake of being dropped")]
pub struct Handshaking(Permit, FromSource);

/// A tunnel that other agents have to the pod.
#[derive(Debug)]
pub(crate) struct Tunnel(Arc<AtomicUsize>);

impl PodLimits {
    pub(super) fn new(
        connections: &Arc<Budget>,
        buffered: &Arc<Budget>,
        handshakes: &Arc<Budget>,
    ) -> Self {
        Self {
            outbound: connections.share(),
            inbound: connections.share(),
            buffered_out: buffered.share(),
            buffered_in: buffered.share(),
            handshakes: handshakes.share(),
            clients: Sources::default(),
            handshaking: Sources::default(),
            tunnels: Arc::default(),
        }
    }

    /// A connection that the pod opens.
    ///
    /// # Errors
    /// Beyond the limit.
    pub fn departing(&self) -> Result<Permit, Limit> {
        self.outbound.take(1).ok_or(Limit::Connections)
    }

    /// A connection or stream of `client` to the pod. No client may have more than is left for
    /// all others, of what is free or of the pod's guaranteed part.
    ///
    /// # Errors
    /// Beyond the limit.
    pub fn arriving(&self, client: IpAddr) -> Result<Arrived, Limit> {
        let permit = self.inbound.take(1).ok_or(Limit::Connections)?;
        // When nothing is free, the clients share the pod's guaranteed part.
        let room = self.inbound.free().max(self.inbound.guaranteed());
        let left = (room + 1).saturating_sub(self.inbound.held());
        let client = self.clients.take(client, left).ok_or(Limit::Connections)?;
        Ok(Arrived(permit, client))
    }

    /// A handshake that `client` begins.
    ///
    /// # Errors
    /// Beyond the limit.
    pub fn handshake(&self, client: IpAddr) -> Result<Handshaking, Limit> {
        let permit = self.handshakes.take(1).ok_or(Limit::Handshakes)?;
        let source = self.handshaking.take(client, HANDSHAKES_OF_ONE_SOURCE);
        Ok(Handshaking(permit, source.ok_or(Limit::Handshakes)?))
    }

    /// What may wait for readers of connections that the pod opened.
    pub fn buffered_out(&self) -> &Arc<Share> {
        &self.buffered_out
    }

    /// What may wait for readers of connections to the pod.
    pub fn buffered_in(&self) -> &Arc<Share> {
        &self.buffered_in
    }

    /// One more tunnel to the pod, and how many there are with it.
    pub(crate) fn tunnel(&self) -> (Tunnel, usize) {
        let others = self.tunnels.fetch_add(1, Relaxed);
        (Tunnel(self.tunnels.clone()), others + 1)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{LimitOptions, Limits};

    fn limits() -> Limits {
        Limits::new(LimitOptions { connections: 120, buffered: 1 << 20, handshakes: 120 })
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn a_flood_of_one_client_leaves_room_for_the_pods_other_clients() {
        let limits = limits();
        let pod = limits.pod();
        let flood: Vec<_> = std::iter::from_fn(|| pod.arriving(address(1)).ok()).collect();
        assert_eq!(flood.len(), 40, "a third of the total");
        let others: Vec<_> = (2..12).map(|last| pod.arriving(address(last))).collect();
        assert!(others.iter().all(Result::is_ok));
    }

    #[test]
    fn what_comes_in_does_not_keep_the_pod_from_going_out() {
        let limits = limits();
        let pod = limits.pod();
        let mut flood = Vec::new();
        for last in 0..=255 {
            flood.extend(std::iter::from_fn(|| pod.arriving(address(last)).ok()));
        }
        assert_eq!(flood.len(), 60);
        assert!(pod.departing().is_ok());
        assert!(limits.pod().arriving(address(1)).is_ok(), "another pod is reached too");
    }

    #[test]
    fn a_pods_guaranteed_part_is_there_for_what_comes_in_too() {
        let limits = Limits::new(LimitOptions { connections: 1000, ..LimitOptions::DEFAULT });
        let mut taken = Vec::new();
        while limits.usage()[0].1 < 1000 {
            let greedy = limits.pod();
            taken.extend(std::iter::from_fn(|| greedy.departing().ok()));
        }
        let pod = limits.pod();
        let one = pod.arriving(address(1)).unwrap();
        assert!(pod.arriving(address(1)).is_err(), "the other half is left for other clients");
        let other = pod.arriving(address(2)).unwrap();
        assert!(pod.arriving(address(3)).is_err());
        drop((one, other));
        assert!(pod.arriving(address(3)).is_ok());
    }

    #[test]
    fn handshakes_are_limited_for_each_source_and_each_pod() {
        let limits = limits();
        let pod = limits.pod();
        let one: Vec<_> = std::iter::from_fn(|| pod.handshake(address(1)).ok()).collect();
        assert_eq!(one.len() as u64, HANDSHAKES_OF_ONE_SOURCE);
        assert!(pod.handshake(address(2)).is_ok());
        let many: Vec<_> = (2..200).filter_map(|last| pod.handshake(address(last)).ok()).collect();
        assert_eq!(one.len() + many.len(), 60);
        assert!(limits.pod().handshake(address(1)).is_ok());
        drop(one);
        assert!(pod.handshake(address(1)).is_ok());
    }
}
