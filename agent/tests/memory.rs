//! What telemetry costs in memory, by a count of every byte that is allocated. A program of its
//! own, because an allocator is a whole program's.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicIsize, Ordering::Relaxed},
    },
};

use http::{Request, Response};
use sluice::{
    mesh::{Owner, PodUid, Principal, Workload},
    telemetry::{Flow, Reporter, SecurityPolicy, Telemetry, TelemetryOptions},
};

struct Counting;

static HELD: AtomicIsize = AtomicIsize::new(0);

// SAFETY: the system's allocator, with its arguments and answers as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size() as isize, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PODS: usize = 50;
const PEERS: usize = 100;
const FLOWS: usize = 2 * PODS * PEERS;

fn workload(name: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: PodUid::new(&format!("uid-{name}")).unwrap(),
        name: format!("{name}-7d4b9").into(),
        namespace: "shop".into(),
        owner: Owner { kind: "Deployment".into(), name: name.into() }.into(),
        node: "node-a".into(),
        ips: vec!["10.1.0.7".parse().unwrap()],
        labels: Arc::new(
            [("app", name), ("version", "v1")]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
        ),
        principal: Principal::new(Default::default(), "shop", name).unwrap(),
        meshed: true,
        sidecar: false,
        policed: None,
        captured: true,
        mtls: Arc::default(),
        authorization: Arc::default(),
        authentication: Arc::default(),
        starts: 1,
        netns: None,
        resource_attributes: BTreeMap::new(),
    })
}

/// What `pod` and `peer` say to each other, as `reporter` sees it.
fn flow(reporter: Reporter, pod: &Arc<Workload>, peer: &Arc<Workload>) -> Arc<Flow> {
    let (source, destination) = match reporter {
        Reporter::Source => (pod, peer),
        Reporter::Destination => (peer, pod),
    };
    Arc::new(Flow {
        reporter,
        local: pod.clone(),
        remote: Some(peer.clone()),
        service: None,
        source_principal: Some(source.principal.clone()),
        destination_principal: Some(destination.principal.clone()),
        security: SecurityPolicy::MutualTls,
        same_node: false,
        client: "10.1.0.9:40000".parse().unwrap(),
        server: "10.96.0.5:8080".parse().unwrap(),
        peer: "10.1.0.7:80".parse().unwrap(),
    })
}

#[test]
fn a_series_costs_less_than_a_kibibyte() {
    let (telemetry, _exporter) = Telemetry::start(TelemetryOptions::default()).unwrap();
    let [pods, peers] = [("pod", PODS), ("peer", PEERS)]
        .map(|(name, count)| (0..count).map(|n| workload(&format!("{name}-{n}"))).collect());
    let (pods, peers): (Vec<_>, Vec<_>) = (pods, peers);
    let request = |flow: &Arc<Flow>| {
        let mut parts = Request::get("/").body(()).unwrap().into_parts().0;
        let mut span = telemetry.http_request(flow, &mut parts);
        span.response(&Response::builder().status(200).body(()).unwrap().into_parts().0);
        span.finish(700, 5, None);
    };
    // What is there once, however many series there are.
    request(&flow(Reporter::Source, &pods[0], &peers[0]));
    let before = HELD.load(Relaxed);
    for reporter in [Reporter::Source, Reporter::Destination] {
        for (pod, peer) in pods.iter().flat_map(|pod| peers.iter().map(move |peer| (pod, peer))) {
            request(&flow(reporter, pod, peer));
        }
    }
    let each = (HELD.load(Relaxed) - before) / FLOWS as isize;
    let text: String = telemetry.metrics().own().iter().map(|one| format!("{one:?}\n")).collect();
    println!("{FLOWS} flows, {each} bytes each\n{text}");
    assert!(each < 1024, "{each} bytes a flow");
}
