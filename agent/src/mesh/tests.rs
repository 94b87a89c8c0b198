//! What a patch makes of a snapshot.

use std::{net::SocketAddr, sync::Arc};

use super::{testing::workload, *};

fn service(name: &str, target: &str, protocol: AppProtocol, external: &[&str]) -> Arc<Service> {
    let taking = vec![Endpoint { address: target.parse().unwrap(), workload: None }];
    let port = ServicePort::new(80, String::new(), protocol, taking.into()).on_nodes(Some(30080));
    Arc::new(Service {
        id: ServiceId::new("shop", name),
        vips: Vec::new(),
        external: external.iter().map(|ip| ip.parse().unwrap()).collect(),
        affinity: None,
        ports: vec![Arc::new(port)],
    })
}

fn patched(snapshot: &Snapshot, patch: Patch) -> Snapshot {
    let mut next = snapshot.clone();
    next.apply(patch);
    next
}

fn with_services(snapshot: &Snapshot, services: Vec<Arc<Service>>) -> Snapshot {
    patched(snapshot, Patch { services, ..Patch::default() })
}

fn leads_to(snapshot: &Snapshot, address: &str) -> String {
    match snapshot.destination(address.parse().unwrap()) {
        Destination::Service(service, _) => service.id.to_string(),
        Destination::Workload(pod, _) => pod.name.to_string(),
        Destination::Unknown => "nothing".to_owned(),
    }
}

#[test]
fn what_several_services_claim_is_the_firsts_by_name_whoever_came_first() {
    let [a, b] =
        ["a", "b"].map(|name| service(name, "10.0.0.1:8080", AppProtocol::Http, &["203.0.113.1"]));
    let at: SocketAddr = "10.0.0.1:8080".parse().unwrap();
    let serving = |snapshot: &Snapshot| snapshot.serving(at).map(|(service, _)| service.id.clone());
    let empty = Snapshot::default();
    let one = with_services(&with_services(&empty, vec![b.clone()]), vec![a.clone()]);
    let other = with_services(&with_services(&empty, vec![a.clone()]), vec![b.clone()]);
    for both in [one, other] {
        assert_eq!(serving(&both), Some(a.id.clone()));
        assert_eq!(leads_to(&both, "203.0.113.1:80"), "shop/a");
        let left = patched(&both, Patch { services_gone: vec![a.id.clone()], ..Patch::default() });
        assert_eq!(serving(&left), Some(b.id.clone()));
        assert_eq!(leads_to(&left, "203.0.113.1:80"), "shop/b");
        let none = patched(&left, Patch { services_gone: vec![b.id.clone()], ..Patch::default() });
        assert_eq!((serving(&none), leads_to(&none, "203.0.113.1:80")), (None, "nothing".into()));
        // Whoever holds an older one sees what was there.
        assert_eq!(serving(&both), Some(a.id.clone()));
    }
}

#[test]
fn what_services_say_of_a_port_counts_as_far_as_they_agree() {
    let at = "10.0.0.1:8080";
    let says = |name: &str, protocol| service(name, at, protocol, &[]);
    let spoken =
        |services| with_services(&Snapshot::default(), services).spoken_at(at.parse().unwrap());
    let (http, tcp) = (AppProtocol::Http, AppProtocol::Opaque);
    assert_eq!(spoken(vec![says("a", http), says("b", http)]), http);
    assert_eq!(spoken(vec![says("a", http), says("b", tcp)]), AppProtocol::Unknown);
    assert_eq!(spoken(Vec::new()), AppProtocol::Unknown);
}

#[test]
fn an_address_that_goes_from_one_pod_to_the_next_is_never_nobodys() {
    let snapshot = testing::snapshot(1, vec![Arc::new(workload("a", "10.0.0.1"))]);
    let (a, b) = (workload("a", "10.0.0.2"), workload("b", "10.0.0.1"));
    for pods in [[a.clone(), b.clone()], [b, a]] {
        let pods = pods.map(Arc::new).to_vec();
        let next = patched(&snapshot, Patch { pods, ..Patch::default() });
        assert_eq!([leads_to(&next, "10.0.0.1:80"), leads_to(&next, "10.0.0.2:80")], ["b", "a"]);
    }
}

#[test]
fn owners_are_there_as_long_as_one_of_their_pods_is() {
    let pods = [workload("a", "10.0.0.1"), workload("b", "10.0.0.2")];
    let owner = pods[0].owner.clone();
    let pods = pods.map(|pod| Arc::new(Workload { owner: owner.clone(), ..pod }));
    let mut snapshot = testing::snapshot(1, pods.to_vec());
    for (pod, left) in pods.iter().zip([true, false]) {
        // Another time, which must not count twice.
        snapshot.apply(Patch { pods: vec![pod.clone()], ..Patch::default() });
        assert!(snapshot.has_pods_of("shop", "a") && !snapshot.has_pods_of("other", "a"));
        snapshot.apply(Patch { pods_gone: vec![pod.uid.clone()], ..Patch::default() });
        assert_eq!(snapshot.has_pods_of("shop", "a"), left);
    }
    assert_eq!((snapshot.workloads().len(), snapshot.local().count()), (0, 0));
}
