//! What Services and slices mean: which endpoint takes what, and which address leads where.

use std::{net::IpAddr, time::Duration};

use super::*;
use crate::mesh::Endpoint;

#[test]
fn slices_give_the_ready_endpoints_of_the_port_with_the_same_name() {
    let text = pod("a", "10.0.0.1", "")
        + &pod("b", "10.0.0.2", "")
        + "---
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop}, spec: {clusterIP: 10.96.0.1,
  selector: {app: nobody}, ports: [{name: http, port: 80}, {name: db, port: 3306}, {name: dns, port: 53, protocol: UDP}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, namespace: shop, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]
endpoints:
- {addresses: [10.0.0.2], conditions: {ready: true}}
- {addresses: [10.0.0.1]}
- {addresses: [10.0.0.3], conditions: {ready: false}}
- {addresses: [203.0.113.9], targetRef: {kind: Pod, name: b}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-2, namespace: shop, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, namespace: elsewhere, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.66]}]
";
    let snapshot = load(&text).unwrap();
    assert_eq!(
        endpoints(&snapshot, "s", 80),
        ["10.0.0.1:8080 → a", "10.0.0.2:8080 → b", "203.0.113.9:8080 → nobody"]
    );
    assert!(endpoints(&snapshot, "s", 3306).is_empty());
    assert!(service(&snapshot, "s").port(53).is_none(), "the mesh carries TCP only");
}

#[test]
fn without_slices_a_selector_finds_the_ready_pods() {
    let label = ", labels: {app: web}";
    let text = pod("a", "10.0.0.1", label)
        + &pod("b", "10.0.0.2", "")
        + "---
apiVersion: v1
kind: Pod
metadata: {name: c, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, ports: [{name: web, containerPort: 9000}]}]}
status: {podIP: 10.0.0.3, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: d, namespace: shop, labels: {app: web}}
status: {podIP: 10.0.0.4, conditions: [{type: Ready, status: 'False'}]}
spec: {}
---
{apiVersion: v1, kind: Service, metadata: {name: number, namespace: shop}, spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: named, namespace: shop}, spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80, targetPort: web}]}}
";
    let snapshot = load(&text).unwrap();
    assert_eq!(endpoints(&snapshot, "number", 80), ["10.0.0.1:8080 → a", "10.0.0.3:8080 → c"]);
    assert_eq!(endpoints(&snapshot, "named", 80), ["10.0.0.3:9000 → c"]);
    assert!(service(&snapshot, "number").vips.is_empty());
}

/// A Service `s` of `shop` with a port, and a slice of the `endpoints`.
fn sliced(spec: &str, endpoints: &str) -> String {
    format!(
        "---
{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: shop}}, spec: {{clusterIP: 10.96.0.1,
  ports: [{{port: 80, nodePort: 30080}}]{spec}}}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: s-1, namespace: shop, labels: {{kubernetes.io/service-name: s}}}}
addressType: IPv4
ports: [{{port: 80}}]
endpoints:
{endpoints}"
    )
}

/// Those of [`sliced`] that take what is sent to its cluster IP, and those that take nothing, by the
/// last numbers of their addresses.
fn taking(spec: &str, endpoints: &str) -> [Vec<u8>; 2] {
    let snapshot = load(&sliced(spec, endpoints)).unwrap();
    let service = service(&snapshot, "s");
    let port = service.port(80).unwrap();
    let last = |endpoint: &Endpoint| match endpoint.address.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => 0,
    };
    let taking = service.taking(port, ip("10.96.0.1"));
    [taking.iter().map(last).collect(), port.endpoints.idle.iter().map(last).collect()]
}

#[test]
fn who_is_on_the_way_out_takes_what_nobody_else_does() {
    let ready = "- {addresses: [10.0.0.1], conditions: {ready: true, serving: true}}\n";
    let leaving =
        "- {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}\n";
    let gone = "- {addresses: [10.0.0.3], conditions: {ready: false, serving: false, terminating: true}}\n";
    let unwell = "- {addresses: [10.0.0.4], conditions: {ready: false, serving: false}}\n";
    let all = [ready, leaving, gone, unwell].concat();
    assert_eq!(taking("", &all), [vec![1], vec![2, 3, 4]]);
    assert_eq!(taking("", &[leaving, gone, unwell].concat()), [vec![2], vec![3, 4]]);
    assert_eq!(taking("", &[gone, unwell].concat()), [vec![], vec![3, 4]]);
}

#[test]
fn what_is_to_stay_on_the_node_goes_to_those_of_the_node_alone() {
    let local = ", internalTrafficPolicy: Local";
    let here = "- {addresses: [10.0.0.1], nodeName: node-b}\n";
    let there = "- {addresses: [10.0.0.2], nodeName: node-a}\n";
    let leaving = "- {addresses: [10.0.0.3], nodeName: node-b, conditions: {ready: false, serving: true, terminating: true}}\n";
    let all = [here, there, leaving].concat();
    assert_eq!(taking("", &all)[0], [1, 2]);
    assert_eq!(taking(local, &all)[0], [1]);
    assert_eq!(taking(local, &[there, leaving].concat())[0], [3]);
    assert_eq!(taking(local, there)[0], [0; 0]);
    // By the port of a node it goes to all of them.
    let snapshot = load(&(sliced(local, there) + NODE)).unwrap();
    let Destination::Service(service, port) =
        snapshot.destination("192.0.2.1:30080".parse().unwrap())
    else {
        panic!("{snapshot:?}")
    };
    assert_eq!(described(service.taking(&port, ip("192.0.2.1"))), ["10.0.0.2:80 → nobody"]);
}

#[test]
fn hints_count_where_all_have_them_and_some_are_meant_for_here() {
    let endpoint = |last: u8, node: &str, zone: &str, hints: &str| {
        format!("- {{addresses: [10.0.0.{last}], nodeName: {node}, zone: {zone}{hints}}}\n")
    };
    let zone = |name: &str| format!(", hints: {{forZones: [{{name: {name}}}]}}");
    let here = endpoint(1, "node-b", "east", &zone("east"));
    let near = endpoint(2, "node-a", "east", &zone("east"));
    let far = endpoint(3, "node-c", "west", &zone("west"));
    let all = [&*here, &near, &far].concat();
    assert_eq!(taking("", &all), [vec![1, 2], vec![3]]);
    // One without, and they are as if nobody had any.
    let without = endpoint(4, "node-c", "west", "");
    assert_eq!(taking("", &format!("{all}{without}"))[0], [1, 2, 3, 4]);
    // Nobody is meant for here.
    let elsewhere = endpoint(1, "node-b", "east", &zone("west"));
    assert_eq!(taking("", &format!("{elsewhere}{far}"))[0], [1, 3][..]);
    // Nobody says where here is.
    assert_eq!(taking("", &format!("{near}{far}"))[0], [2, 3]);

    let node = |name: &str| {
        format!(", hints: {{forZones: [{{name: east}}], forNodes: [{{name: {name}}}]}}")
    };
    let own = endpoint(1, "node-b", "east", &node("node-b"));
    let other = endpoint(2, "node-a", "east", &node("node-a"));
    assert_eq!(taking("", &format!("{own}{other}")), [vec![1], vec![2]]);
}

#[test]
fn each_family_of_addresses_is_looked_at_by_itself() {
    let slice = |name: &str, family: &str, endpoints: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, \
             namespace: shop, labels: {{kubernetes.io/service-name: s}}}}\naddressType: {family}\n\
             ports: [{{port: 80}}]\nendpoints:\n{endpoints}"
        )
    };
    let leaving = "conditions: {ready: false, terminating: true}";
    let east = "zone: east, hints: {forZones: [{name: east}]}";
    let west = "zone: west, hints: {forZones: [{name: west}]}";
    let v4 = format!(
        "- {{addresses: [10.0.0.1], nodeName: node-b, {east}}}\n- {{addresses: [10.0.0.2], {west}}}\n"
    );
    let taking = |v6: &str| {
        let text = sliced("", &v4) + &slice("s-2", "IPv6", v6);
        endpoints(&load(&text).unwrap(), "s", 80)
    };
    // Nobody of IPv6 is meant for here, nor ready.
    let only_far = taking(&format!("- {{addresses: [fd00::2], {west}}}\n"));
    assert_eq!(only_far, ["10.0.0.1:80 → nobody", "[fd00::2]:80 → nobody"]);
    let only_leaving = taking(&format!("- {{addresses: [fd00::3], {leaving}}}\n"));
    assert_eq!(only_leaving, ["10.0.0.1:80 → nobody", "[fd00::3]:80 → nobody"]);
}

#[test]
fn a_node_stays_in_the_zone_that_most_endpoints_on_it_told() {
    let mut loader = Loader::new(MeshSettings { node: "node-b".into(), ..Default::default() });
    let zone = |last: u8, node: &str, zone: &str| {
        format!(
            "- {{addresses: [10.0.0.{last}], nodeName: {node}, zone: {zone}, hints: {{forZones: \
             [{{name: {zone}}}]}}}}\n"
        )
    };
    let others = [zone(2, "node-a", "east"), zone(3, "node-c", "west")].concat();
    let mut taking = |endpoints: &str| {
        let (snapshot, _) = loader.load(&sliced("", endpoints)).unwrap();
        service(&snapshot, "s").port(80).unwrap().endpoints.taking.len()
    };
    assert_eq!(taking(&others), 2);
    assert_eq!(taking(&(zone(1, "node-b", "east") + &others)), 2, "1 and 2, but not 3");
    assert_eq!(taking(&others), 1, "2 alone");
}

#[test]
fn a_name_for_dns_is_nothing_to_the_mesh_whatever_else_it_says() {
    let text = pod("a", "10.0.0.1", ", labels: {app: a}")
        + "---
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop}, spec: {type: ExternalName,
  externalName: example.com, externalIPs: [203.0.113.9], selector: {app: a}, ports: [{name: tcp, port: 80}]}}
";
    let snapshot = load(&text).unwrap();
    assert!(snapshot.serving("10.0.0.1:80".parse().unwrap()).is_none());
    assert_eq!(leads_to(&snapshot, "203.0.113.9:80"), "nothing");
}

#[test]
fn a_service_says_how_long_it_keeps_a_client_where_it_was() {
    let affinity =
        |spec: &str| load(&sliced(spec, "")).map(|snapshot| service(&snapshot, "s").affinity);
    assert_eq!(affinity(""), Ok(None));
    assert_eq!(affinity(", sessionAffinity: None"), Ok(None));
    let three_hours = Some(Duration::from_secs(10_800));
    assert_eq!(affinity(", sessionAffinity: ClientIP"), Ok(three_hours));
    let with = |seconds: i32| {
        affinity(&format!(
            ", sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}"
        ))
    };
    assert_eq!(with(60), Ok(Some(Duration::from_secs(60))));
    let said = with(0).unwrap_err();
    assert!(
        said.contains(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds `0` is too short or too long \
             (hint: 1 to 86400 seconds)"
        ),
        "{said}"
    );
}

/// What `address` leads to: `service:port → pods`, or a pod's name, or nothing.
fn leads_to(snapshot: &Snapshot, address: &str) -> String {
    match snapshot.destination(address.parse().unwrap()) {
        Destination::Service(service, port) => format!("{}:{}", service.id.name(), port.port),
        Destination::Workload(workload, _) => workload.name.to_string(),
        Destination::Unknown => "nothing".to_owned(),
    }
}

/// A node's own pod, which tells of the node's addresses.
const NODE: &str = "---
{apiVersion: v1, kind: Pod, metadata: {name: node, namespace: shop}, spec: {hostNetwork: true, nodeName: b},
  status: {podIP: 192.0.2.1, hostIP: 192.0.2.1, hostIPs: [{ip: 192.0.2.1}, {ip: '2001:db8::1'}]}}
";

#[test]
fn every_address_of_a_service_is_that_service_on_its_tcp_ports() {
    let text = pod("a", "10.0.0.1", "")
        + NODE
        + "---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  externalIPs: [198.51.100.1, 127.0.0.1, 10.0.0.1, 10.96.0.2]
  ports: [{name: a, port: 80, nodePort: 30080}, {name: b, port: 53, nodePort: 30053, protocol: UDP}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}, {hostname: lb.example}, {ip: 203.0.113.2, ipMode: Proxy}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: t, namespace: shop}, spec: {clusterIP: 10.96.0.2,
  externalIPs: [198.51.100.1], ports: [{name: a, port: 80}, {name: b, port: 81}]}}
";
    let snapshot = load(&text).unwrap();
    for (address, expected) in [
        ("10.96.0.1:80", "s:80"),
        ("198.51.100.1:80", "s:80"),
        ("203.0.113.1:80", "s:80"),
        ("192.0.2.1:30080", "s:80"),
        ("[2001:db8::1]:30080", "s:80"),
        // Two Services share an address, by their ports.
        ("198.51.100.1:81", "t:81"),
        // A load balancer that wants to see everything itself.
        ("203.0.113.2:80", "nothing"),
        // UDP is not carried; other ports, and the port of nodes elsewhere, are somebody else's.
        ("203.0.113.1:53", "nothing"),
        ("192.0.2.1:30053", "nothing"),
        ("192.0.2.1:80", "nothing"),
        ("198.51.100.1:30080", "nothing"),
        ("127.0.0.1:80", "nothing"),
        // Nobody takes a pod's address, or another Service's, by claiming it.
        ("10.0.0.1:80", "a"),
        ("10.96.0.2:80", "t:80"),
    ] {
        assert_eq!(leads_to(&snapshot, address), expected, "{address}");
    }
}

#[test]
fn a_node_that_comes_or_goes_makes_another_snapshot() {
    let service = "---
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop}, spec: {clusterIP: 10.96.0.1,
  ports: [{port: 80, nodePort: 30080}]}}
";
    let text = pod("a", "10.0.0.1", "") + service;
    let mut loader = Loader::new(MeshSettings::default());
    let (before, _) = loader.load(&text).unwrap();
    assert_eq!(leads_to(&before, "192.0.2.1:30080"), "nothing");
    let with_address = text.replace("podIP: 10.0.0.1", "podIP: 10.0.0.1, hostIP: 192.0.2.1");
    let (after, _) = loader.load(&with_address).unwrap();
    assert_eq!(after.version, before.version + 1);
    assert_eq!(leads_to(&after, "192.0.2.1:30080"), "s:80");
}
