//! What is kept of objects, and what becomes of it.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    core::v1::{ConfigMap, Pod},
    networking::v1::NetworkPolicy,
};
use serde_json::json;

use super::{
    addresses::{Membership, PodAddresses, Questions},
    arrival::Arrival,
    gather::Gather,
    kinds::Reader,
    saved::SavedFacts,
    tables::{Change, Delta, KINDS, Tables, Verdict},
};
use crate::{
    config::{
        MeshSettings,
        authorization_policy::AuthorizationPolicy,
        compile::{Claim, Key},
        facts::{PeerAuthenticationFacts, PodFacts},
        request_authentication::RequestAuthentication,
        state::SourceState,
    },
    mesh::{MutualTlsMode, PodUid, Snapshot, SnapshotStore},
};

/// A pod of the Deployment `web`, as an API server tells it.
fn pod(name: &str, ip: &str, more: serde_json::Value) -> serde_json::Value {
    let mut pod = json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"),
            "resourceVersion": "7", "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"app": "web", "pod-template-hash": "5d89f"},
            "annotations": {"sluice.dev/netns": "/run/netns/x", "a": "large one".repeat(100)},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
                "name": "web-5d89f", "uid": "x", "controller": true}],
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {"nodeName": "a", "serviceAccountName": "web", "containers": [
            {"name": "web", "image": "web:1", "ports": [{"name": "http", "containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "containerStatuses": [{"name": "web", "image": "", "imageID": "", "ready": true,
                "restartCount": 2, "state": {"running": {}}}]},
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        pod[field] = value.clone();
    }
    pod
}

/// Of the agent of node `a`.
fn settings() -> MeshSettings {
    MeshSettings { node: "a".into(), ..MeshSettings::default() }
}

fn reader() -> Reader {
    Reader::new(settings())
}

fn read(reader: &Reader, object: serde_json::Value) -> (Key, Verdict<PodFacts>) {
    let arrival = Arrival::<Pod>::of_any(object).unwrap();
    reader.read(arrival)
}

fn facts(object: serde_json::Value) -> PodFacts {
    read(&reader(), object).1.unwrap().unwrap()
}

/// Tables in which every kind was listed, with these pods.
fn tables(pods: Vec<(Key, Verdict<PodFacts>)>) -> Tables {
    let mut tables = Tables::new(settings());
    tables.apply(Change::Namespaces(Delta::All(Vec::new())));
    tables.apply(Change::Services(Delta::All(Vec::new())));
    tables.apply(Change::Slices(Delta::All(Vec::new())));
    tables.apply(Change::PeerAuthentications(Delta::All(Vec::new())));
    tables.apply(Change::NetworkPolicies(Delta::All(Vec::new())));
    tables.apply(Change::AuthorizationPolicies(Delta::All(Vec::new())));
    tables.apply(Change::RequestAuthentications(Delta::All(Vec::new())));
    tables.apply(Change::MeshConfig(Delta::All(Vec::new())));
    assert!(!tables.are_complete());
    tables.apply(Change::Pods(Delta::All(pods)));
    assert!(tables.are_complete());
    tables
}

fn compile(tables: &mut Tables) -> Snapshot {
    tables.compiler.compile();
    tables.compiler.snapshot().clone()
}

fn names(tables: &Tables) -> Vec<&str> {
    tables.compiler.facts().pods.keys().map(|(_, name)| &**name).collect()
}

#[test]
fn what_a_snapshot_needs_is_kept_and_what_a_pod_claims_of_its_namespace_is_not() {
    let facts = facts(pod("web-1", "10.0.0.1", json!({})));
    let workload = &facts.workload;
    assert_eq!(workload.owner.name, "web");
    assert_eq!(workload.principal.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((&*workload.node, workload.starts), ("a", 3));
    assert_eq!(workload.netns, None, "anybody who may create pods can write an annotation");
    assert_eq!(*facts.ports, [("http".into(), 80)]);
    let kept = serde_json::to_string(&facts).unwrap();
    assert!(kept.len() < 700 && !kept.contains("large one"), "{kept}");
}

#[test]
fn a_pod_of_a_cluster_is_captured_when_its_nodes_agent_says_so() {
    let captured = |annotations: serde_json::Value| {
        let mut pod = pod("a", "10.0.0.1", json!({}));
        pod["metadata"]["annotations"] = annotations;
        facts(pod).workload.captured
    };
    assert!(!captured(json!({})));
    assert!(!captured(json!({"ambient.istio.io/redirection": "pending"})));
    assert!(captured(json!({"ambient.istio.io/redirection": "enabled"})));
}

#[test]
fn a_static_pod_has_the_uid_that_its_node_knows_it_by_and_nobody_can_claim_another_pods() {
    let with = |annotations: serde_json::Value| {
        let mut pod = pod("web-1", "10.0.0.1", json!({}));
        pod["metadata"]["annotations"] = annotations;
        facts(pod).workload.uid.to_string()
    };
    let hash = "0a1b2c3d4e5f60718293a4b5c6d7e8f9";
    let other = "6f1f6bd6-6b57-4c6a-9c34-0c7f3b0a3c11";
    let (mirror, uid) = ("kubernetes.io/config.mirror", "kubernetes.io/config.hash");
    assert_eq!(with(json!({mirror: hash, uid: hash})), hash);
    assert_eq!(with(json!({uid: hash})), "uid-web-1");
    assert_eq!(with(json!({mirror: other, uid: other})), "uid-web-1");
}

#[tokio::test]
async fn who_asks_about_a_pod_is_answered_when_it_is_known_with_or_without_addresses() {
    let ask = |questions: &mut Questions, name: &str| {
        let (asks, answer) = tokio::sync::oneshot::channel();
        questions.ask(PodUid::new(&format!("uid-{name}")).unwrap(), asks);
        answer
    };
    let reader = reader();
    let mut inside = pod("in", "10.0.0.1", json!({"status": {}}));
    inside["metadata"]["labels"]["istio.io/dataplane-mode"] = "ambient".into();
    let pods =
        vec![read(&reader, inside), read(&reader, pod("out", "10.0.0.2", json!({"status": {}})))];
    let mut tables = tables(pods);
    compile(&mut tables);
    let mut questions = Questions::default();
    let (inside, outside) = (ask(&mut questions, "in"), ask(&mut questions, "out"));
    let mut late = ask(&mut questions, "late");
    questions.answer(&tables);
    assert_eq!(inside.await, Ok(Membership::Inside));
    assert_eq!(outside.await, Ok(Membership::Outside));
    assert!(late.try_recv().is_err(), "it may come");
    let (key, late_pod) = read(&reader, pod("late", "10.0.0.3", json!({})));
    tables.apply(Change::Pods(Delta::Set(key, late_pod)));
    compile(&mut tables);
    questions.answer(&tables);
    assert_eq!(late.await, Ok(Membership::Outside));
}

#[tokio::test]
async fn a_snapshot_says_itself_whether_a_pod_that_it_does_not_name_exists() {
    let folder = tempfile::tempdir().unwrap();
    let saved = SavedFacts::new(folder.path(), &settings());
    let reader = reader();
    let web = pod("web-1", "10.0.0.1", json!({}));
    let tables = tables(vec![read(&reader, web.clone())]);
    saved.save(tables.compiler.facts()).unwrap();

    let store = Arc::new(SnapshotStore::default());
    let mut versions = store.subscribe();
    let (report, _state) = tokio::sync::watch::channel(SourceState::watching(&KINDS));
    let (changes, arriving) = tokio::sync::mpsc::channel(KINDS.len());
    let (_told, telling) = tokio::sync::mpsc::unbounded_channel();
    let gather = Gather::new(saved, settings(), store.clone(), report.clone());
    let gathering = tokio::spawn(gather.run(arriving, telling));

    report.send_modify(|state| state.watches[0].error = Some("connection refused".into()));
    versions.changed().await.unwrap();
    assert!(!store.load().complete, "it was saved some time ago");
    // The API server says the very same.
    for change in [
        Change::Namespaces(Delta::All(Vec::new())),
        Change::Services(Delta::All(Vec::new())),
        Change::Slices(Delta::All(Vec::new())),
        Change::PeerAuthentications(Delta::All(Vec::new())),
        Change::NetworkPolicies(Delta::All(Vec::new())),
        Change::AuthorizationPolicies(Delta::All(Vec::new())),
        Change::RequestAuthentications(Delta::All(Vec::new())),
        Change::MeshConfig(Delta::All(Vec::new())),
        Change::Pods(Delta::All(vec![read(&reader, web)])),
    ] {
        changes.send(change).await.unwrap();
    }
    versions.changed().await.unwrap();
    assert!(store.load().complete);
    assert_eq!(store.load().workloads().len(), 1);
    gathering.abort();
}

#[tokio::test]
async fn while_the_api_server_is_away_nobody_waits_for_its_word() {
    let (report, state) = tokio::sync::watch::channel(SourceState::watching(&KINDS));
    let (told, mut telling) = tokio::sync::mpsc::unbounded_channel();
    let addresses = PodAddresses { told, state };
    let uid = PodUid::new("uid-late").unwrap();
    let asked = addresses.give_and_ask(uid, vec!["10.0.0.3".parse().unwrap()]);
    report.send_modify(|state| {
        let pods = state.watches.iter_mut().find(|watch| watch.kind == "pods").unwrap();
        pods.error = Some("connection refused".into());
    });
    assert_eq!(asked.await, Membership::Unknown);
    assert_eq!(telling.recv().await.unwrap().ips.len(), 1, "told all the same, for later");
}

#[test]
fn pods_of_one_deployment_share_what_they_have_in_common() {
    let reader = reader();
    let both = [("web-1", "10.0.0.1"), ("web-2", "10.0.0.2")];
    let mut tables = tables(both.map(|(name, ip)| read(&reader, pod(name, ip, json!({})))).into());
    let snapshot = compile(&mut tables);
    let both = both.map(|(_, ip)| snapshot.workload(ip.parse().unwrap()).unwrap().clone());
    let [one, two] = both;
    assert!(Arc::ptr_eq(&one.labels, &two.labels));
    assert!(Arc::ptr_eq(&one.owner, &two.owner));
    assert!(Arc::ptr_eq(&one.namespace, &two.namespace));
    // What policies say is the same for all of whom they say nothing.
    assert!(Arc::ptr_eq(&one.mtls, &two.mtls));
    assert!(Arc::ptr_eq(&one.authorization, &two.authorization));
    assert!(Arc::ptr_eq(&one.authentication, &two.authentication));
}

#[test]
fn a_pod_that_ended_is_gone_and_one_without_address_waits() {
    let ended = pod("a", "10.0.0.1", json!({"status": {"phase": "Succeeded"}}));
    assert_eq!(read(&reader(), ended).1, Ok(None));
    let starting = pod("a", "10.0.0.1", json!({"status": {"phase": "Pending"}}));
    let key = ("shop".into(), "a".into());
    let mut tables = tables(vec![(key, Ok(Some(facts(starting))))]);
    assert_eq!(compile(&mut tables).workloads().len(), 0);
}

#[test]
fn an_address_is_lent_until_the_api_server_tells_one() {
    let reader = reader();
    let mut starting = pod("a", "", json!({"status": {"phase": "Pending"}}));
    let uid = PodUid::new("uid-a").unwrap();
    let give = |tables: &mut Tables, ips: &[&str]| {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        tables.apply(Change::Addresses(uid.clone(), ips));
    };
    let arrives = |reader: &Reader, tables: &mut Tables, pod: &serde_json::Value| {
        let (key, verdict) = read(reader, pod.clone());
        tables.apply(Change::Pods(Delta::Set(key, verdict)));
    };
    let ips = |tables: &Tables| -> Vec<String> {
        let pod = tables.compiler.facts().pods.values().next().unwrap();
        assert_eq!(pod.addresses(), pod.workload.ips);
        pod.addresses().iter().map(ToString::to_string).collect()
    };

    // Whichever is told first.
    let mut after = tables(vec![read(&reader, starting.clone())]);
    give(&mut after, &["10.0.0.1"]);
    let mut before = tables(Vec::new());
    give(&mut before, &["10.0.0.1"]);
    arrives(&reader, &mut before, &starting);
    assert_eq!([ips(&after), ips(&before)], [["10.0.0.1"], ["10.0.0.1"]]);

    // Another sandbox has another address, and one that ends takes it with it.
    give(&mut before, &["10.0.0.7"]);
    assert_eq!(ips(&before), ["10.0.0.7"]);
    give(&mut before, &[]);
    assert_eq!(ips(&before), [""; 0]);
    give(&mut before, &["10.0.0.1"]);

    // News of the pod without an address do not take it away, those with one settle it.
    arrives(&reader, &mut after, &starting);
    assert_eq!(ips(&after), ["10.0.0.1"]);
    arrives(&reader, &mut after, &pod("a", "10.0.0.2", json!({})));
    assert_eq!(ips(&after), ["10.0.0.2"]);
    give(&mut after, &[]);
    assert_eq!(ips(&after), ["10.0.0.2"], "it is the API server's to say");
    arrives(&reader, &mut after, &starting);
    assert_eq!(ips(&after), [""; 0]);

    // Not for a pod that ends, nor for one on the node's network.
    give(&mut before, &[]);
    arrives(&reader, &mut before, &starting);
    assert_eq!(ips(&before), [""; 0]);
    starting["spec"] = json!({"nodeName": "a", "hostNetwork": true, "containers": []});
    arrives(&reader, &mut before, &starting);
    give(&mut before, &["10.0.0.1"]);
    assert_eq!(ips(&before), [""; 0]);
}

#[test]
fn a_list_replaces_everything_but_the_last_good_version_of_what_is_broken() {
    let reader = reader();
    let good = |reader: &Reader, name| read(reader, pod(name, "10.0.0.1", json!({})));
    let broken = pod("b", "10.0.0.2", json!({"spec": {"hostNetwork": 1}}));
    let mut tables = tables(vec![good(&reader, "a"), good(&reader, "b")]);
    let list = vec![read(&reader, broken.clone()), good(&reader, "c")];
    tables.apply(Change::Pods(Delta::All(list)));
    assert_eq!(names(&tables), ["b", "c"]);
    let [problem] = tables.problems().try_into().unwrap();
    let said = problem.to_string();
    assert!(said.starts_with("Pod shop/b: spec.hostNetwork: invalid type: integer `1`"), "{said}");

    // One that was never good is not in force at all.
    let (_, verdict) = read(&reader, broken);
    tables.apply(Change::Pods(Delta::Set(("shop".into(), "d".into()), verdict)));
    assert_eq!((names(&tables), tables.problems().len()), (vec!["b", "c"], 2));
    let (key, mended) = good(&reader, "b");
    tables.apply(Change::Pods(Delta::Set(key, mended)));
    tables.apply(Change::Pods(Delta::Gone(("shop".into(), "d".into()))));
    assert!(tables.problems().is_empty());
}

#[test]
fn an_address_belongs_to_the_pod_made_last() {
    let reader = reader();
    let mut later = pod("a", "10.0.0.1", json!({}));
    later["metadata"]["creationTimestamp"] = "2026-01-02T03:05:00Z".into();
    let earlier = pod("b", "10.0.0.1", json!({}));
    let mut tables = tables(vec![read(&reader, later), read(&reader, earlier)]);
    let snapshot = compile(&mut tables);
    let [conflict] = tables.compiler.conflicts().try_into().unwrap();
    assert_eq!(conflict.claim, Claim::PodAddress("10.0.0.1".parse().unwrap()));
    assert_eq!((&*conflict.owner.1, &*conflict.claimant.1), ("a", "b"));
    assert_eq!(&*snapshot.workload("10.0.0.1".parse().unwrap()).unwrap().name, "a");
    assert_eq!(snapshot.workloads().len(), 1);
}

#[test]
fn what_was_saved_is_read_back_in_the_same_mesh_alone() {
    let folder = tempfile::tempdir().unwrap();
    let state_dir = folder.path().join("state");
    let saved = SavedFacts::new(&state_dir, &settings());
    assert!(saved.load().unwrap().is_none());
    let reader = reader();
    let mut tables = tables(vec![read(&reader, pod("a", "10.0.0.1", json!({})))]);
    let strict = PeerAuthenticationFacts {
        mode: Some(MutualTlsMode::Strict),
        ports: BTreeMap::from([(8080, None)]),
        ..PeerAuthenticationFacts::default()
    };
    let policy = Delta::Set(("shop".into(), "strict".into()), Ok(Some(strict)));
    tables.apply(Change::PeerAuthentications(policy));
    let known = tables.compiler.facts();
    saved.save(known).unwrap();
    let (facts, _) = saved.load().unwrap().unwrap();
    assert_eq!(facts.pods, known.pods);
    assert_eq!(facts.peer_authentications, known.peer_authentications);
    assert_eq!(facts.peer_authentications.len(), 1);
    assert_eq!(std::fs::read_dir(&state_dir).unwrap().count(), 1, "no draft is left");

    let trust_domain = "other.example".parse().unwrap();
    let other = SavedFacts::new(&state_dir, &MeshSettings { trust_domain, ..settings() });
    assert!(other.load().unwrap_err().contains("trust domain cluster.local"));
    let other = SavedFacts::new(&state_dir, &MeshSettings { node: "b".into(), ..settings() });
    assert!(other.load().unwrap_err().contains("of the node a"));
    std::fs::write(saved.path(), r#"{"format": 9, "trust_domain": "cluster.local"}"#).unwrap();
    assert!(saved.load().unwrap_err().contains("format 9"));
    std::fs::write(saved.path(), "{").unwrap();
    assert!(saved.load().is_err());
}

#[test]
fn a_network_policy_that_cannot_be_read_selects_its_whole_namespace() {
    let reader = reader();
    let policy = |selector: serde_json::Value| {
        let metadata = json!({"name": "one", "namespace": "shop"});
        let object = json!({"metadata": metadata, "spec": {"podSelector": selector}});
        Arrival::<NetworkPolicy>::of_any(object).unwrap()
    };
    let mut labelled = pod("a", "10.0.0.1", json!({}));
    labelled["metadata"]["labels"]["istio.io/dataplane-mode"] = "ambient".into();
    let mut tables = tables(vec![read(&reader, labelled)]);
    let mut policed = |selector: serde_json::Value| {
        let (key, verdict) = reader.read(policy(selector));
        tables.apply(Change::NetworkPolicies(Delta::Set(key, verdict)));
        let snapshot = compile(&mut tables);
        let pod = snapshot.workload([10, 0, 0, 1].into()).unwrap();
        (pod.policed.is_some(), tables.problems().len())
    };
    assert_eq!(policed(json!({"matchLabels": {"app": "other"}})), (false, 0));
    let newer = json!({"matchExpressions": [{"key": "app", "operator": "Like"}]});
    assert_eq!(policed(newer), (true, 1));
    assert_eq!(policed(json!({"matchLabels": {"app": "other"}})), (false, 0));
    assert_eq!(policed(json!({"matchLabels": 7})), (true, 1));
}

#[test]
fn what_the_cni_alone_understands_is_there_until_the_server_says_otherwise() {
    let mut tables = tables(Vec::new());
    let there_are = |tables: &mut Tables| compile(tables).cni_policies;
    assert!(there_are(&mut tables));
    tables.apply(Change::CniPolicies(false));
    assert!(!there_are(&mut tables));
    tables.apply(Change::CniPolicies(true));
    assert!(there_are(&mut tables));
}

#[test]
fn every_kind_is_watched_under_its_own_name() {
    let [namespaces, pods, services, slices, policies, network, authorization, tokens, mesh] =
        KINDS;
    assert_eq!([namespaces, pods, services], ["namespaces", "pods", "services"]);
    assert_eq!(
        [slices, policies, network],
        ["endpointslices", "peerauthentications", "networkpolicies"]
    );
    assert_eq!([authorization, tokens], ["authorizationpolicies", "requestauthentications"]);
    assert_eq!(mesh, "configmaps");
}

#[test]
fn an_authorization_policy_that_cannot_be_read_denies_unless_it_once_could() {
    let reader = reader();
    let mut labelled = pod("a", "10.0.0.1", json!({}));
    labelled["metadata"]["labels"]["istio.io/dataplane-mode"] = "ambient".into();
    let mut tables = tables(vec![read(&reader, labelled)]);
    let mut set = |name: &str, spec: serde_json::Value| {
        let metadata = json!({"name": name, "namespace": "shop"});
        let object = json!({"metadata": metadata, "spec": spec});
        let arrival = Arrival::<AuthorizationPolicy>::of_any(object).unwrap();
        let (key, verdict) = reader.read(arrival);
        tables.apply(Change::AuthorizationPolicies(Delta::Set(key, verdict)));
        let snapshot = compile(&mut tables);
        let authorization = &snapshot.workload([10, 0, 0, 1].into()).unwrap().authorization;
        let policies = authorization.policies().iter();
        let said: Vec<_> = policies
            .map(|policy| (policy.name().to_string(), policy.spec().unreadable.is_some()))
            .collect();
        (said, tables.problems().len())
    };
    let said = |name: &str, unreadable| (format!("shop/{name}"), unreadable);
    // A field of a later version, and a value that is none: of those, the selector is known.
    let newer = |app: &str| json!({"selector": {"matchLabels": {"app": app}}, "later": 1});
    assert_eq!(set("a", newer("web")), (vec![said("a", true)], 1));
    assert_eq!(set("b", newer("other")), (vec![said("a", true)], 2));
    let wrong = |app: &str| json!({"selector": {"matchLabels": {"app": app}}, "action": "ALOW"});
    assert_eq!(set("b", wrong("other")), (vec![said("a", true)], 2));
    // Another selector is another answer, and without one nobody passes in the whole namespace.
    assert_eq!(set("b", wrong("web")), (vec![said("a", true), said("b", true)], 2));
    assert_eq!(set("b", wrong("other")), (vec![said("a", true)], 2));
    let both = vec![said("a", true), said("b", true)];
    assert_eq!(set("b", json!({"selector": 7})), (both, 2));
    // Once it was read, that stays.
    let both = || vec![said("a", false), said("b", true)];
    assert_eq!(set("a", json!({"action": "DENY"})), (both(), 1));
    assert_eq!(set("a", wrong("other")), (both(), 2));
}

#[test]
fn a_request_authentication_that_cannot_be_read_is_in_force_as_such_unless_it_once_could() {
    let reader = reader();
    let mut labelled = pod("a", "10.0.0.1", json!({}));
    labelled["metadata"]["labels"]["istio.io/dataplane-mode"] = "ambient".into();
    let mut tables = tables(vec![read(&reader, labelled)]);
    let mut set = |name: &str, spec: serde_json::Value| {
        let metadata = json!({"name": name, "namespace": "shop"});
        let object = json!({"metadata": metadata, "spec": spec});
        let arrival = Arrival::<RequestAuthentication>::of_any(object).unwrap();
        let (key, verdict) = reader.read(arrival);
        tables.apply(Change::RequestAuthentications(Delta::Set(key, verdict)));
        let snapshot = compile(&mut tables);
        let authentication = &snapshot.workload([10, 0, 0, 1].into()).unwrap().authentication;
        let all = authentication.all().iter();
        let said: Vec<_> =
            all.map(|one| (one.name().to_string(), one.spec().unreadable.is_some())).collect();
        (said, tables.problems().len())
    };
    let said = |unreadable| vec![("shop/a".to_owned(), unreadable)];
    let rule = |more: &str| json!({"jwtRules": [{"issuer": "i", more: "x"}]});
    assert_eq!(set("a", rule("later")), (said(true), 1));
    assert_eq!(set("a", rule("jwks")), (said(true), 1));
    let other = json!({"selector": {"matchLabels": {"app": "other"}}, "later": 1});
    assert_eq!(set("b", other), (said(true), 2));
    assert_eq!(set("a", rule("jwksUri")), (said(true), 2));
    assert_eq!(set("a", json!({"jwtRules": [{"issuer": "i"}]})), (said(false), 1));
    assert_eq!(set("a", rule("later")), (said(false), 2));
}

#[test]
fn mesh_config_of_the_root_namespace_names_authorizers_and_a_broken_one_stays_what_it_was() {
    let reader = reader();
    let mut tables = tables(Vec::new());
    let mut set = |namespace: &str, mesh: &str| {
        let metadata = json!({"name": "istio", "namespace": namespace});
        let object = json!({"metadata": metadata, "data": {"mesh": mesh}});
        let arrival = Arrival::of(serde_json::from_value::<ConfigMap>(object).unwrap()).unwrap();
        let (key, verdict) = reader.read(arrival);
        tables.apply(Change::MeshConfig(Delta::Set(key, verdict)));
        let snapshot = compile(&mut tables);
        let state = |read: &Result<_, _>| if read.is_ok() { "read" } else { "refused" };
        let providers = snapshot.providers().iter();
        let said: Vec<_> =
            providers.map(|(name, read)| format!("{name} {}", state(read))).collect();
        (said.join(", "), tables.problems().len())
    };
    let one = |name: &str, port: u32| {
        format!(
            "{{name: {name}, envoyExtAuthzGrpc: {{service: a.b.svc.cluster.local, port: {port}}}}}"
        )
    };
    let mesh = |providers: &[String]| format!("extensionProviders: [{}]", providers.join(", "));
    assert_eq!(set("shop", &mesh(&[one("a", 1)])), (String::new(), 0));
    assert_eq!(set("istio-system", &mesh(&[one("a", 1)])), ("a read".into(), 0));
    // One that cannot be obeyed leaves the others alone.
    let both = mesh(&[one("a", 1), one("b", 0)]);
    assert_eq!(set("istio-system", &both), ("a read, b refused".into(), 0));
    assert_eq!(set("istio-system", "extensionProviders: {"), ("a read, b refused".into(), 1));
    assert_eq!(set("istio-system", ""), (String::new(), 0));
}
