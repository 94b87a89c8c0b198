//! What Kubernetes YAML means to the mesh, and what is said about YAML that means nothing.

mod services;

use std::{net::IpAddr, sync::Arc};

use proptest::prelude::*;

use super::{
    MeshSettings,
    testing::{Loader, load},
};
use crate::mesh::{AppProtocol, Destination, Endpoint, Service, Snapshot, Workload};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn workload<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Arc<Workload> {
    snapshot.workloads().find(|workload| *workload.name == *name).unwrap()
}

fn service<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Arc<Service> {
    snapshot.services().find(|service| service.id.name() == name).unwrap()
}

/// `address → pod` of each endpoint of the Service's port `port`.
fn endpoints(snapshot: &Snapshot, name: &str, port: u16) -> Vec<String> {
    described(&service(snapshot, name).port(port).unwrap().endpoints.taking)
}

fn described(endpoints: &[Endpoint]) -> Vec<String> {
    let pod = |workload: &Option<Arc<Workload>>| {
        workload.as_ref().map_or("nobody".to_owned(), |workload| workload.name.to_string())
    };
    endpoints.iter().map(|e| format!("{} → {}", e.address, pod(&e.workload))).collect()
}

const DUMP: &str = include_str!("tests/kubectl-get.yaml");

#[test]
fn what_kubectl_get_prints_is_read_as_it_is() {
    let snapshot = load(DUMP).unwrap();
    let order = workload(&snapshot, "order-7d4b9c6f5-x2x7q");
    assert_eq!(order.uid.as_str(), "6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11");
    assert_eq!((&*order.node, order.meshed), ("node-b", true));
    assert_eq!((order.owner.kind.as_str(), order.owner.name.as_str()), ("Deployment", "order"));
    assert_eq!(order.principal.to_string(), "spiffe://cluster.local/ns/shop/sa/order");
    assert_eq!(order.ips, [ip("10.1.2.3"), ip("fd00::3")]);
    assert_eq!(order.resource_attributes["service.version"], "1.2.3");
    assert_eq!(order.netns, None);

    let service = service(&snapshot, "order");
    assert_eq!(service.vips, [ip("10.96.0.20"), ip("fd00:96::20")]);
    assert_eq!(service.port(80).unwrap().protocol, AppProtocol::Http);
    assert_eq!(
        endpoints(&snapshot, "order", 80),
        ["10.1.2.3:8080 → order-7d4b9c6f5-x2x7q", "[fd00::3]:8080 → order-7d4b9c6f5-x2x7q",]
    );
    assert!(matches!(
        snapshot.destination("10.96.0.20:80".parse().unwrap()),
        Destination::Service(service, _) if service.id.name() == "order"
    ));
    assert_eq!(snapshot.workloads().len(), 1, "a finished pod is no workload");
}

/// A pod as files written by hand have it.
fn pod(name: &str, ip: &str, more: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop{more}}}, \
         spec: {{nodeName: a, serviceAccountName: {name}}}, status: {{podIP: {ip}}}}}\n"
    )
}

#[test]
fn a_pod_written_by_hand_needs_no_uid_and_keeps_the_one_it_is_given() {
    let [first, second] = [pod("a", "10.0.0.1", ""), pod("a", "10.0.0.2", "")]
        .map(|text| workload(&load(&text).unwrap(), "a").uid.clone());
    assert_eq!(first, second);
    let other = load(&pod("b", "10.0.0.1", "")).unwrap();
    assert_ne!(workload(&other, "b").uid, first);
}

#[test]
fn the_pods_own_label_decides_before_its_namespaces() {
    let namespace = |mode: &str| {
        format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: \
             {{istio.io/dataplane-mode: {mode}}}}}}}\n"
        )
    };
    let label = |mode| format!(", labels: {{istio.io/dataplane-mode: {mode}}}");
    let meshed = |text: String| workload(&load(&text).unwrap(), "a").meshed;
    let pod = |label: &str| pod("a", "10.0.0.1", label);
    assert!(!meshed(pod("")));
    assert!(meshed(namespace("ambient") + &pod("")));
    assert!(meshed(pod(&label("ambient"))));
    assert!(meshed(namespace("none") + &pod(&label("ambient"))));
    assert!(!meshed(namespace("ambient") + &pod(&label("none"))));
    // What the label says to somebody else is nothing to us.
    assert!(meshed(namespace("ambient") + &pod(&label("other"))));
    assert!(!meshed(pod(&label("other"))));
}

#[test]
fn a_pod_with_a_sidecar_stays_out_whatever_the_labels_say() {
    let sidecar = ", labels: {istio.io/dataplane-mode: ambient}, annotations: \
                   {sidecar.istio.io/status: '{}'}";
    let snapshot = load(&pod("a", "10.0.0.1", sidecar)).unwrap();
    let a = workload(&snapshot, "a");
    assert!(a.sidecar && !a.meshed);
}

#[test]
fn files_are_taken_at_their_word_that_a_pod_is_captured() {
    let captured = |annotations: &str| {
        let more = format!(", annotations: {{{annotations}}}");
        workload(&load(&pod("a", "10.0.0.1", &more)).unwrap(), "a").captured
    };
    assert!(captured(""));
    assert!(captured("ambient.istio.io/redirection: enabled"));
    assert!(!captured("ambient.istio.io/redirection: pending"));
}

#[test]
fn pods_on_the_hosts_network_share_its_address_and_are_never_meshed() {
    let snapshot = load(
        "
{apiVersion: v1, kind: Namespace, metadata: {name: kube-system, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: proxy, namespace: kube-system}, spec: {hostNetwork: true}, status: {podIP: 192.0.2.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: cni, namespace: kube-system}, spec: {hostNetwork: true}, status: {podIP: 192.0.2.1}}
---
{apiVersion: v1, kind: Service, metadata: {name: cni, namespace: kube-system}, spec: {clusterIP: None, ports: [{port: 9090}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cni, namespace: kube-system, labels: {kubernetes.io/service-name: cni}}
addressType: IPv4
ports: [{port: 9090}]
endpoints: [{addresses: [192.0.2.1], targetRef: {kind: Pod, name: cni}}]
",
    )
    .unwrap();
    assert!(!workload(&snapshot, "cni").meshed);
    assert!(snapshot.workload(ip("192.0.2.1")).is_none());
    assert_eq!(endpoints(&snapshot, "cni", 9090), ["192.0.2.1:9090 → cni"]);
}

#[test]
fn what_is_legal_but_probably_not_meant_is_a_warning() {
    let text = "
{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {}}
";
    let (snapshot, warnings) = Loader::new(MeshSettings::default()).load(text).unwrap();
    assert_eq!(snapshot.workloads().len(), 0);
    assert_eq!(
        warnings,
        [
            "Pod default/a is left out: no status.podIPs",
            "Service default/s has no spec.clusterIP, and nothing assigns one to a file: it is \
             reached by its pods' addresses alone",
        ]
    );
}

#[test]
fn what_stays_the_same_stays_the_same_object() {
    let services = "---
{apiVersion: v1, kind: Service, metadata: {name: one, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: a}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: two, namespace: shop}, spec: {clusterIP: 10.96.0.2, selector: {app: b}, ports: [{port: 80}]}}
";
    let a = pod("a", "10.0.0.1", ", labels: {app: a}");
    let b = |ip: &str| pod("b", ip, ", labels: {app: b}");
    let mut loader = Loader::new(MeshSettings::default());
    let (before, _) = loader.load(&format!("{a}{}{services}", b("10.0.0.2"))).unwrap();
    let (after, _) = loader.load(&format!("{services}{}{a}", b("10.0.0.3"))).unwrap();
    let same_pod = |name| Arc::ptr_eq(workload(&before, name), workload(&after, name));
    let same_service = |name| Arc::ptr_eq(service(&before, name), service(&after, name));
    assert!(same_pod("a") && same_service("one"));
    assert!(!same_pod("b") && !same_service("two"));
    assert_eq!(endpoints(&after, "two", 80), ["10.0.0.3:80 → b"]);
}

#[test]
fn every_problem_has_its_place_its_path_and_a_hint() {
    for (text, problem) in [
        ("just text", "mesh.yaml:1:1: not a Kubernetes object (hint: an object starts with"),
        ("a: [1", "mesh.yaml:1:4: not readable as YAML: "),
        ("kind: Pod", "mesh.yaml:1:1: the object names no apiVersion (hint: supported kinds are"),
        (
            "apiVersion: v1\nkind: Pdo",
            "mesh.yaml:2:7: Pdo (v1) is no kind the agent knows (hint: did you mean `Pod`?)",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment",
            "mesh.yaml:2:7: Deployment (apps/v1) is no kind the agent knows (hint: supported \
             kinds are Namespace (v1), ",
        ),
        (
            "apiVersion: serving.knative.dev/v1\nkind: Service",
            "mesh.yaml:2:7: Service (serving.knative.dev/v1) is no kind the agent knows (hint: \
             supported kinds are",
        ),
        (
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice",
            "mesh.yaml:1:13: discovery.k8s.io/v1beta1 is no version of EndpointSlice (hint: \
             write apiVersion: discovery.k8s.io/v1)",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: VirtualService",
            "mesh.yaml:2:7: VirtualService (networking.istio.io/v1) is not supported yet (hint: \
             supported kinds are",
        ),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}", "mesh.yaml:1:1: spec is missing"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {}\nspec: {}",
            "mesh.yaml:3:11: metadata.name is missing",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - name: x",
            "mesh.yaml:6:5: spec.ports[0].port is missing",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 99999}]}",
            "mesh.yaml:4:23: spec.ports[0].port `99999` is not a port (hint: 1 to 65535)",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: Shop}",
            "mesh.yaml:3:18: metadata.name `Shop` is not a name Kubernetes allows (hint: ",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\nstatus: {podIP: 10.0.0}",
            "mesh.yaml:5:17: status.podIP `10.0.0` is not an IP address",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, uid: a/b}\nspec: {}\nstatus: {podIP: ::1}",
            "mesh.yaml:3:26: metadata.uid `a/b` is not a UID (hint: ",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    \
             sluice.dev/netns: run\nspec: {}\nstatus: {podIP: ::1}",
            "mesh.yaml:6:23: metadata.annotations.sluice.dev/netns `run` is not an absolute path \
             (hint: /run/netns/<name>",
        ),
        (
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: \
             a}, spec: {nodename: b}}",
            "mesh.yaml:4:59: spec.nodename is not a field of PodSpec (hint: did you mean \
             `nodeName`?)",
        ),
        (
            "apiVersion: v1\nkind: List\nitem: []",
            "mesh.yaml:3:1: item is not a field of List (hint: the fields are",
        ),
    ] {
        let said = load(text).unwrap_err();
        assert!(said.starts_with(problem), "{text}\n  said: {said}\nwanted: {problem}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn what_only_one_may_have_is_given_to_one_and_both_places_are_named() {
    let service = |name: &str, vip: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
             spec: {{clusterIP: {vip}}}}}\n"
        )
    };
    for (text, problem) in [
        (
            pod("a", "10.0.0.1", "") + &pod("b", "10.0.0.1", ""),
            "10.0.0.1 of Pod shop/b belongs to Pod shop/a at mesh.yaml:2:",
        ),
        (
            pod("a", "10.0.0.1", ", uid: x") + &pod("b", "10.0.0.2", ", uid: x"),
            "x of Pod shop/b belongs to Pod shop/a at mesh.yaml:2:",
        ),
        (
            pod("a", "10.0.0.1", "") + &pod("a", "10.0.0.1", ""),
            "Pod shop/a is defined already at mesh.yaml:2:",
        ),
        (
            service("a", "10.96.0.1") + &service("b", "10.96.0.1"),
            "10.96.0.1 of Service default/b belongs to Service default/a at mesh.yaml:2:",
        ),
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n".repeat(2),
            "Namespace a is defined already at mesh.yaml:1:",
        ),
    ] {
        let said = load(&text).unwrap_err();
        let (place, what) = said.split_once(": ").unwrap();
        assert!(what.starts_with(problem), "said: {said}\nwanted: {problem}");
        assert!(!what.contains(place), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_load_shows_all_its_problems_at_once() {
    let text = "\
apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {nodename: x, hostNetwork: 1}
---
apiVersion: v1
kind: Pot
---
apiVersion: v1
kind: Service
spec: {cluster: y}
";
    let said = load(text).unwrap_err();
    let places: Vec<_> = said.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(
        places,
        [
            "mesh.yaml:4:8:",
            "mesh.yaml:4:34:",
            "mesh.yaml:7:7:",
            "mesh.yaml:9:1:",
            "mesh.yaml:11:8:"
        ]
    );
}

proptest! {
    #[test]
    fn no_text_in_the_place_of_a_value_makes_the_agent_panic(value in "\\PC{0,20}") {
        let _ = load(&DUMP.replace("10.1.2.3", &value));
        let _ = load(&DUMP.replace("order", &value));
        let _ = load(&DUMP.replace("8080", &value));
    }

    #[test]
    fn no_cut_of_a_file_makes_the_agent_panic(at in 0..DUMP.len()) {
        if DUMP.is_char_boundary(at) {
            let _ = load(&DUMP[..at]);
            let _ = load(&DUMP[at..]);
        }
    }
}
