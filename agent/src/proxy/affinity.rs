//! Which endpoint a pod was sent to last, where a Service keeps its clients where they were.
//!
//! Kubernetes' `sessionAffinity: ClientIP`: a client's next connection goes to the endpoint it had,
//! until it has begun none for the Service's timeout, or the endpoint takes nothing any more. Like
//! kube-proxy's, it is each node's own, and it outlives every snapshot.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use crate::mesh::{Endpoint, PodUid, Service, ServiceId, ServicePort};

/// Entries that are not worth looking for those that are of no use any more.
const FEW: usize = 64;

/// The endpoints that pods of this node were sent to.
#[derive(Debug)]
pub struct Affinity {
    began: Instant,
    kept: papaya::HashMap<Client, Kept>,
    /// How many there were when those of no use were last taken out.
    swept: AtomicUsize,
}

/// Who dials what. A pod counts once for each family of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Client {
    pod: PodUid,
    service: ServiceId,
    port: u16,
    is_ipv4: bool,
}

#[derive(Debug)]
struct Kept {
    endpoint: SocketAddr,
    /// When it stops to count, in milliseconds since `began`; later with every connection.
    until: AtomicU64,
}

impl Default for Affinity {
    fn default() -> Self {
        Self { began: Instant::now(), kept: papaya::HashMap::new(), swept: AtomicUsize::new(FEW) }
    }
}

impl Affinity {
    /// The endpoint that `pod` is sent to, which dials `port` of `service` by its address `dialled`;
    /// `None` when there is none.
    pub(super) fn pick<'a>(
        &self,
        pod: &PodUid,
        service: &Service,
        port: &'a ServicePort,
        dialled: IpAddr,
    ) -> Option<&'a Endpoint> {
        let Some(timeout) = service.affinity else { return service.pick(port, dialled) };
        let (pod, id) = (pod.clone(), service.id.clone());
        let client = Client { pod, service: id, port: port.port, is_ipv4: dialled.is_ipv4() };
        let now = self.now();
        let until = now + millis(timeout);
        let kept = self.kept.pin();
        if let Some(kept) = kept.get(&client).filter(|kept| kept.until.load(Relaxed) > now) {
            let taking = service.taking(port, dialled);
            if let Some(same) = taking.iter().find(|one| one.address == kept.endpoint) {
                kept.until.store(until, Relaxed);
                return Some(same);
            }
        }
        let next = service.pick(port, dialled)?;
        kept.insert(client, Kept { endpoint: next.address, until: until.into() });
        self.sweep(now);
        Some(next)
    }

    /// Takes out what is of no use, once there is twice as much as was left the last time.
    fn sweep(&self, now: u64) {
        let kept = self.kept.pin();
        if kept.len() > 2 * self.swept.load(Relaxed) {
            kept.retain(|_, kept| kept.until.load(Relaxed) > now);
            self.swept.store(kept.len().max(FEW), Relaxed);
        }
    }

    fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mesh::{AppProtocol, Endpoints};

    const MINUTE: Duration = Duration::from_secs(60);

    fn service(affinity: Option<Duration>, endpoints: u8) -> Service {
        let endpoint =
            |last: u8| Endpoint { address: ([10, 0, 0, last], 80).into(), workload: None };
        let taking: Vec<_> = (1..=endpoints).map(endpoint).collect();
        let port = ServicePort::new(80, "".into(), AppProtocol::Http, Endpoints::from(taking));
        Service {
            id: ServiceId::new("shop", "order"),
            vips: vec![[10, 96, 0, 1].into()],
            external: Vec::new(),
            affinity,
            ports: vec![Arc::new(port)],
        }
    }

    fn pick(affinity: &Affinity, pod: &str, service: &Service) -> Option<SocketAddr> {
        let uid = PodUid::new(pod).unwrap();
        let picked = affinity.pick(&uid, service, &service.ports[0], [10, 96, 0, 1].into());
        picked.map(|endpoint| endpoint.address)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_stays_where_it_was_until_it_was_away_for_long() {
        let (affinity, service) = (Affinity::default(), service(Some(MINUTE), 4));
        let first = pick(&affinity, "a", &service).unwrap();
        for _ in 0..5 {
            tokio::time::advance(MINUTE * 3 / 4).await;
            assert_eq!(pick(&affinity, "a", &service), Some(first));
        }
        // Others have turns of their own meanwhile.
        let others: std::collections::BTreeSet<_> =
            ["b", "c", "d", "e"].iter().map(|pod| pick(&affinity, pod, &service)).collect();
        assert_eq!(others.len(), 4);
        tokio::time::advance(MINUTE).await;
        assert_ne!(pick(&affinity, "a", &service), Some(first), "its turn has gone on");
    }

    #[test]
    fn whoever_loses_its_endpoint_gets_another_one_and_stays_there() {
        let affinity = Affinity::default();
        let pods = ["a", "b", "c", "d"];
        let all = service(Some(MINUTE), 4);
        assert!(pods.iter().all(|pod| pick(&affinity, pod, &all).is_some()));
        let fewer = service(Some(MINUTE), 2);
        for pod in pods {
            let now = pick(&affinity, pod, &fewer);
            assert!(now.is_some_and(|now| now.ip() < IpAddr::from([10, 0, 0, 3])));
            // The other ones come back, and it stays.
            assert_eq!(pick(&affinity, pod, &all), now);
        }
        assert_eq!(pick(&affinity, "a", &service(Some(MINUTE), 0)), None);
    }

    #[test]
    fn without_affinity_each_connection_goes_where_its_turn_leads() {
        let (affinity, service) = (Affinity::default(), service(None, 2));
        assert_ne!(pick(&affinity, "a", &service), pick(&affinity, "a", &service));
        assert_eq!(affinity.kept.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_of_no_use_is_not_kept() {
        let (affinity, service) = (Affinity::default(), service(Some(MINUTE), 2));
        for pod in 0..1000 {
            pick(&affinity, &format!("pod-{pod}"), &service);
            tokio::time::advance(MINUTE / 10).await;
        }
        assert!(affinity.kept.len() <= 2 * FEW + 1, "{}", affinity.kept.len());
    }
}
