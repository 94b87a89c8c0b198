//! Whatever happens in whatever order, the snapshot is what compiling everything gives.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    Claim, Compiler, Facts, Key,
    whole::{self, Whole},
};
use crate::{
    config::{
        MeshSettings,
        facts::{
            AuthorizationPolicyFacts, Condition, EndpointFacts, Hints, LabelTest, LetsIn, Mode,
            NamespaceFacts, NetworkPolicyFacts, PeerAuthenticationFacts, PodFacts, PortFacts,
            RequestAuthenticationFacts, Selects, ServiceFacts, SliceFacts, Target,
        },
    },
    jwt::{self, RequestAuthentication},
    mesh::{
        AppProtocol, Destination, MutualTlsMode, Owner, PodUid, Principal, Service, ServicePort,
        Snapshot, TrustDomain, Workload, testing,
    },
    policy::{Policy, Spec},
};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    Namespace(Key, Option<NamespaceFacts>),
    Pod(Key, Option<PodFacts>),
    Service(Key, Option<ServiceFacts>),
    Slice(Key, Option<SliceFacts>),
    PeerAuthentication(Key, Option<PeerAuthenticationFacts>),
    NetworkPolicy(Key, Option<NetworkPolicyFacts>),
    AuthorizationPolicy(Key, Option<AuthorizationPolicyFacts>),
    RequestAuthentication(Key, Option<RequestAuthenticationFacts>),
    /// A list tells everything anew; of some names nothing is left.
    Everything(BTreeSet<Arc<str>>),
    /// Whether there are policies of a CNI's own.
    CniPolicies(Option<bool>),
    /// What has happened is compiled.
    Compile,
}

fn settings() -> MeshSettings {
    let root_namespace = "root".parse().unwrap();
    MeshSettings { node: "n0".into(), root_namespace, ..MeshSettings::default() }
}

fn apply(compiler: &mut Compiler, event: Event) {
    match event {
        Event::Namespace(key, facts) => compiler.set(key, facts),
        Event::Pod(key, facts) => compiler.set(key, facts),
        Event::Service(key, facts) => compiler.set(key, facts),
        Event::Slice(key, facts) => compiler.set(key, facts),
        Event::PeerAuthentication(key, facts) => compiler.set(key, facts),
        Event::NetworkPolicy(key, facts) => compiler.set(key, facts),
        Event::AuthorizationPolicy(key, facts) => compiler.set(key, facts),
        Event::RequestAuthentication(key, facts) => compiler.set(key, facts),
        Event::Everything(gone) => {
            let facts = compiler.facts().clone();
            compiler.replace(Facts {
                pods: facts.pods.into_iter().filter(|(key, _)| !gone.contains(&key.1)).collect(),
                services: facts
                    .services
                    .into_iter()
                    .filter(|(k, _)| !gone.contains(&k.1))
                    .collect(),
                slices: facts.slices.into_iter().filter(|(k, _)| !gone.contains(&k.1)).collect(),
                ..facts
            });
        }
        Event::CniPolicies(there_are) => compiler.set_cni_policies(there_are),
        Event::Compile => {
            let before = compiler.snapshot().clone();
            let changed = compiler.compile();
            assert_eq!(changed, !is_same(&before, compiler.snapshot()));
            assert!(!compiler.compile(), "nothing happened since");
        }
    }
}

fn is_same(one: &Snapshot, other: &Snapshot) -> bool {
    let pods = |of: &Snapshot| -> BTreeMap<_, _> {
        of.workloads().map(|pod| (pod.uid.clone(), Arc::as_ptr(pod))).collect()
    };
    let services = |of: &Snapshot| -> BTreeMap<_, _> {
        of.services().map(|service| (service.id.clone(), Arc::as_ptr(service))).collect()
    };
    pods(one) == pods(other)
        && services(one) == services(other)
        && one.nodes() == other.nodes()
        && one.cni_policies == other.cni_policies
}

/// What `snapshot` has, as [`whole`] tells it.
fn told(snapshot: &Snapshot) -> Whole {
    let ports = |service: &Service| {
        let port = |port: &Arc<ServicePort>| (port.port, port.node_port, port.endpoints.clone());
        service.ports.iter().map(port).collect()
    };
    let service = |service: &Arc<Service>| {
        let Service { vips, external, affinity, .. } = &**service;
        let key = (service.id.namespace().into(), service.id.name().into());
        (key, (vips.clone(), external.clone(), *affinity, ports(service)))
    };
    Whole {
        pods: snapshot.workloads().map(|pod| (pod.uid.clone(), (**pod).clone())).collect(),
        services: snapshot.services().map(service).collect(),
        nodes: (**snapshot.nodes()).clone(),
        cni_policies: snapshot.cni_policies,
    }
}

/// That everything which leads to something in `snapshot` leads to what it has.
fn leads_where_it_should(snapshot: &Snapshot) {
    for pod in snapshot.workloads() {
        assert_eq!(snapshot.pod(&pod.uid), Some(pod));
        assert!(snapshot.has_pods_of(&pod.namespace, &pod.owner.name));
        for ip in &pod.ips {
            assert_eq!(snapshot.workload(*ip), Some(pod));
        }
    }
    let local = snapshot.workloads().filter(|pod| *pod.node == *"n0").count();
    assert_eq!(snapshot.local().count(), local);
    for service in snapshot.services() {
        for vip in &service.vips {
            let Some(port) = service.ports.first() else { continue };
            let reached = snapshot.destination((*vip, port.port).into());
            assert!(matches!(reached, Destination::Service(it, _) if Arc::ptr_eq(&it, service)));
        }
        for port in &service.ports {
            for endpoint in port.endpoints.all() {
                let (first, _) = snapshot.serving(endpoint.address).unwrap();
                assert!(first.id <= service.id);
            }
        }
    }
}

fn name() -> impl Strategy<Value = Arc<str>> {
    select(vec!["a", "b", "c", "d"]).prop_map(Arc::from)
}

fn namespace() -> impl Strategy<Value = Arc<str>> {
    select(vec!["shop", "root"]).prop_map(Arc::from)
}

fn key() -> impl Strategy<Value = Key> {
    (namespace(), name())
}

/// Few of them, so that they meet.
fn address() -> impl Strategy<Value = IpAddr> {
    (1..6u8).prop_map(|last| IpAddr::from([10, 0, 0, last]))
}

fn node_address(node: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, node])
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let value = select(vec!["x", "y"]).prop_map(str::to_owned);
    prop::collection::btree_map(Just("app".to_owned()), value, 0..2)
}

fn mode() -> impl Strategy<Value = Option<Mode>> {
    select(vec![None, Some(Mode::Ambient), Some(Mode::Out)])
}

fn condition() -> impl Strategy<Value = Condition> {
    select(vec![Condition::Ready, Condition::Ready, Condition::Leaving, Condition::NotReady])
}

fn pod() -> impl Strategy<Value = Event> {
    let facts = (
        (vec(address(), 0..3), 0..6u8, 0..2u8, labels()),
        (mode(), prop::bool::weighted(0.2), condition(), 0..3i64),
    );
    (key(), prop::option::weighted(0.8, facts)).prop_map(|(key, facts)| {
        let facts =
            facts.map(|((mut ips, uid, node, labels), (mode, on_host, condition, created))| {
                ips.sort();
                ips.dedup();
                let host_addresses = match (on_host, ips.is_empty()) {
                    (true, false) => Box::from([node_address(node)]),
                    _ => Box::default(),
                };
                let workload = Workload {
                    uid: PodUid::new(&format!("uid-{uid}")).unwrap(),
                    name: key.1.clone(),
                    namespace: key.0.clone(),
                    owner: Arc::new(Owner { kind: "Pod".into(), name: key.1.to_string() }),
                    node: format!("n{node}").into(),
                    ips: if on_host { Vec::new() } else { ips },
                    labels: Arc::new(labels),
                    principal: Principal::new(TrustDomain::default(), &key.0, &key.1).unwrap(),
                    meshed: false,
                    ..testing::workload("any", "10.0.0.1")
                };
                PodFacts {
                    workload: Arc::new(workload),
                    host_addresses,
                    node_addresses: Arc::from([node_address(node)]),
                    mode,
                    host_network: on_host,
                    condition,
                    ports: Arc::from([("web".into(), 9000)]),
                    created,
                }
            });
        Event::Pod(key, facts)
    })
}

fn service() -> impl Strategy<Value = Event> {
    let target = select(vec![Target::Number(80), Target::Name("web".into()), Target::Nowhere]);
    let facts =
        ((1..4u8, labels(), target), (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()));
    (key(), prop::option::weighted(0.8, facts)).prop_map(|(key, facts)| {
        let facts = facts.map(|((vip, selector, target), (headless, on_nodes, near, unready))| {
            let port = PortFacts {
                number: 80,
                node_port: on_nodes.then_some(30080),
                name: String::new(),
                protocol: AppProtocol::Http,
                target,
            };
            ServiceFacts {
                vips: if headless { Vec::new() } else { vec![[10, 96, 0, vip].into()] },
                external: vec![[203, 0, 113, vip].into()],
                lacks_vip: false,
                selector: selector.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
                publish_not_ready: unready,
                affinity: near.then_some(Duration::from_secs(60)),
                stays_on_node: near,
                ports: vec![port],
            }
        });
        Event::Service(key, facts)
    })
}

fn slice() -> impl Strategy<Value = Event> {
    let hints = prop::option::of((any::<bool>(), any::<bool>(), select(vec!["east", "west"])));
    let endpoint =
        (prop_oneof![address(), Just(node_address(0))], name(), condition(), any::<bool>(), hints);
    let zone = select(vec![None, Some("east"), Some("west")]);
    let facts = (name(), vec(endpoint, 0..4), zone);
    (key(), prop::option::weighted(0.8, facts)).prop_map(|(key, facts)| {
        let facts = facts.map(|(service, endpoints, zone)| SliceFacts {
            service,
            ports: Arc::from([("".into(), 8080)]),
            zone: zone.map(Arc::from),
            endpoints: endpoints
                .into_iter()
                .map(|(ip, pod, condition, is_here, hints)| EndpointFacts {
                    address: ip,
                    pod: Some(pod),
                    condition,
                    is_here,
                    hints: hints.map(|(for_nodes, here, zone)| {
                        let for_this_node = for_nodes && here;
                        let for_zones = vec![zone.to_owned()];
                        Arc::new(Hints { for_nodes, for_this_node, for_zones })
                    }),
                })
                .collect(),
        });
        Event::Slice(key, facts)
    })
}

fn policy() -> impl Strategy<Value = Event> {
    let mode = select(vec![None, Some(MutualTlsMode::Strict), Some(MutualTlsMode::Disable)]);
    let peers = (key(), prop::option::of((labels(), mode, 0..3i64))).prop_map(|(key, facts)| {
        let ports = BTreeMap::new();
        let facts = facts.map(|(selector, mode, created)| PeerAuthenticationFacts {
            selector,
            mode,
            ports,
            created,
        });
        Event::PeerAuthentication(key, facts)
    });
    let network = (key(), prop::option::of((labels(), any::<u64>()))).prop_map(|(key, facts)| {
        let facts = facts.map(|(labels, digest)| NetworkPolicyFacts {
            labels,
            tests: Vec::<LabelTest>::new(),
            lets_in: LetsIn::Nothing,
            digest,
        });
        Event::NetworkPolicy(key, facts)
    });
    let selects = || {
        prop_oneof![
            labels().prop_map(Selects::Labels),
            name().prop_map(|service| Selects::Services(vec![service])),
        ]
    };
    let spec = any::<bool>().prop_map(|dry_run| Spec { dry_run, ..Spec::default() });
    let authorization = (key(), prop::option::of((selects(), spec))).prop_map(|(key, facts)| {
        let facts = facts.map(|(selects, spec)| {
            let policy = Arc::new(Policy::new(&format!("{}/{}", key.0, key.1), spec));
            AuthorizationPolicyFacts { selects, policy }
        });
        Event::AuthorizationPolicy(key, facts)
    });
    let why = prop::option::of(Just("no".into()));
    let tokens = (key(), prop::option::of((selects(), why))).prop_map(|(key, facts)| {
        let facts = facts.map(|(selects, unreadable)| {
            let spec = jwt::Spec { rules: Vec::new(), unreadable };
            let name = format!("{}/{}", key.0, key.1);
            let authentication = Arc::new(RequestAuthentication::new(&name, spec));
            RequestAuthenticationFacts { selects, authentication }
        });
        Event::RequestAuthentication(key, facts)
    });
    prop_oneof![peers, network, authorization, tokens]
}

fn event() -> impl Strategy<Value = Event> {
    let of_namespace = (namespace(), prop::option::of(mode())).prop_map(|(name, mode)| {
        Event::Namespace(("".into(), name), mode.map(|mode| NamespaceFacts { mode }))
    });
    prop_oneof![
        6 => pod(),
        3 => service(),
        3 => slice(),
        2 => policy(),
        1 => of_namespace,
        1 => prop::collection::btree_set(name(), 0..3).prop_map(Event::Everything),
        1 => prop::option::of(any::<bool>()).prop_map(Event::CniPolicies),
        4 => Just(Event::Compile),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_changes_gives_what_compiling_everything_gives(events in vec(event(), 1..60)) {
        let mut compiler = Compiler::new(settings());
        for event in events.into_iter().chain([Event::Compile]) {
            let is_compiled = matches!(event, Event::Compile);
            apply(&mut compiler, event);
            if is_compiled {
                let whole = whole::compile(compiler.facts(), &settings(), compiler.zone.as_deref());
                prop_assert_eq!(told(compiler.snapshot()), whole);
                leads_where_it_should(compiler.snapshot());
            }
        }
    }
}

fn ready(name: &str, ip: &str) -> PodFacts {
    PodFacts {
        workload: Arc::new(testing::workload(name, ip)),
        host_addresses: Box::default(),
        node_addresses: Arc::from([]),
        mode: Some(Mode::Ambient),
        host_network: false,
        condition: Condition::Ready,
        ports: Arc::from([]),
        created: 0,
    }
}

fn key_of(name: &str) -> Key {
    ("shop".into(), name.into())
}

#[test]
fn a_pod_that_goes_and_is_back_before_anybody_looked_stays() {
    let mut compiler = Compiler::new(settings());
    compiler.set(key_of("a"), Some(ready("a", "10.0.0.1")));
    assert!(compiler.compile());
    compiler.set::<PodFacts>(key_of("a"), None);
    compiler.set(key_of("a"), Some(ready("a", "10.0.0.1")));
    compiler.compile();
    let names: Vec<_> = compiler.snapshot().workloads().map(|pod| pod.name.to_string()).collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn who_is_left_out_is_told_until_what_it_claims_is_free() {
    let mut compiler = Compiler::new(settings());
    for name in ["a", "b"] {
        compiler.set(key_of(name), Some(ready(name, "10.0.0.1")));
        compiler.compile();
    }
    let [conflict] = compiler.conflicts().try_into().unwrap();
    assert_eq!(conflict.claim, Claim::PodAddress("10.0.0.1".parse().unwrap()));
    assert_eq!((conflict.owner, conflict.claimant), (key_of("a"), key_of("b")));
    compiler.set::<PodFacts>(key_of("a"), None);
    assert!(compiler.compile());
    assert!(compiler.conflicts().is_empty());
    let names: Vec<_> = compiler.snapshot().workloads().map(|pod| pod.name.to_string()).collect();
    assert_eq!(names, ["b"]);
    assert_eq!(compiler.facts().pods.len(), 1);
}
