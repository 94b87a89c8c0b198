//! Agents that watch an API server, and find pods on their node by themselves.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};
use serde_json::{Value, json};
use sluice_tests::{
    Agent, AgentOptions, KubeApi, KubeKind, KubePod, Line, Mesh, NetnsState, Node, PATIENCE, Pod,
    PodOptions, Talk, TokenIssuer, capture_events, eventually, refused, wait_until_captured,
    within,
};
use tokio::{io::AsyncReadExt, net::UnixListener, time::timeout};

const PORT: u16 = 9999;

/// A mesh whose agents ask an API server.
struct Cluster {
    api: KubeApi,
    mesh: Mesh,
}

impl Cluster {
    /// The API server knows the mesh's pods and services, and does not answer yet. Every pod has
    /// a process.
    fn new() -> anyhow::Result<Self> {
        let mesh = Mesh::new()?;
        let api = KubeApi::new(&mesh.lab)?;
        api.namespace("default", &BTreeMap::new());
        for pod in [&mesh.client, &mesh.near, &mesh.far, &mesh.outsider] {
            api.pod(pod);
            pod.listen(0)?;
        }
        api.service(&mesh.service(&mesh.near));
        api.service(&mesh.service(&mesh.far));
        Ok(Self { api, mesh })
    }

    fn started() -> anyhow::Result<Self> {
        let mut cluster = Self::new()?;
        cluster.api.start()?;
        Ok(cluster)
    }

    fn options(&self) -> AgentOptions<'_> {
        AgentOptions { kubeconfig: Some(self.api.kubeconfig()), ..self.mesh.agent_options(&[]) }
    }

    async fn agent(&self, node: &Node) -> anyhow::Result<Agent> {
        Agent::start(node, &self.mesh.config, self.options()).await
    }
}

/// What an agent of node `a` leaves that captured pods, saved what it knew, and was killed.
struct Killed {
    cluster: Cluster,
    /// The namespace of `near` as it was before.
    before: NetnsState,
    /// The file with what it knew.
    saved: PathBuf,
}

impl Killed {
    async fn agent() -> anyhow::Result<Self> {
        let cluster = Cluster::started()?;
        let saved = cluster.mesh.lab.directory().join("node-a-state/snapshot.json");
        let before = NetnsState::of(&cluster.mesh.near)?;
        let mut agent = cluster.agent(&cluster.mesh.a).await?;
        wait_until_captured(&cluster.mesh.a, &cluster.mesh.near, true).await?;
        eventually("it is saved", || async { Ok(saved.exists().then_some(())) }).await?;
        agent.kill9();
        Ok(Self { cluster, before, saved })
    }
}

/// What `sluice status` says of a pod that should be captured: `Some(None)` when it is.
fn error_of(node: &Node, pod: &Pod) -> anyhow::Result<Option<Option<String>>> {
    let name = format!("{}/{}", pod.namespace(), pod.name());
    let status = Agent::status(node)?;
    let mut pods = status["pods"].as_array().into_iter().flatten();
    let pod = pods.find(|pod| pod["name"] == name.as_str());
    Ok(pod.map(|pod| pod["error"].as_str().map(str::to_owned)))
}

/// Why a pod is not in the mesh.
fn reason_of(node: &Node, pod: &Pod) -> anyhow::Result<Option<String>> {
    let name = format!("{}/{}", pod.namespace(), pod.name());
    let status = Agent::status(node)?;
    let mut pods = status["outside"].as_array().into_iter().flatten();
    let pod = pods.find(|pod| pod["name"] == name.as_str());
    Ok(pod.and_then(|pod| pod["reason"].as_str().map(str::to_owned)))
}

/// Waits until `is` holds of every watch.
async fn watches_become(
    node: &Node,
    what: &str,
    is: impl Fn(&Value) -> bool,
) -> anyhow::Result<()> {
    eventually(what, || async {
        let status = Agent::status(node)?;
        let watches = status["watches"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!(watches.len(), 9, "{status}");
        Ok(watches.iter().all(&is).then_some(()))
    })
    .await
}

/// Whether a connection from `client` to `server` is steered out of its pod.
async fn is_steered(node: &Node, client: &Pod, server: &Pod, to: IpAddr) -> anyhow::Result<bool> {
    let before = capture_events(node, "steered_out")?;
    let listener = server.listen(PORT)?;
    let talk = Talk::start(client, SocketAddr::new(to, PORT), &listener).await?;
    assert_eq!(talk.seen_client()?.is_ipv4(), to.is_ipv4());
    Ok(capture_events(node, "steered_out")? > before)
}

fn ambient() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([("istio.io/dataplane-mode", "ambient")])
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in `{text}`");
    }
}

#[tokio::test]
async fn pods_are_found_by_their_processes_and_talk_through_the_mesh() -> anyhow::Result<()> {
    let cluster = Cluster::started()?;
    let Cluster { mesh, .. } = &cluster;
    let before = NetnsState::of(&mesh.client)?;
    let (_a, _b) = tokio::try_join!(cluster.agent(&mesh.a), cluster.agent(&mesh.b))?;
    for pod in [&mesh.client, &mesh.near] {
        wait_until_captured(&mesh.a, pod, true).await?;
    }
    assert_ne!(NetnsState::of(&mesh.client)?, before, "enrolment can be seen");
    for to in mesh.far.ips() {
        assert!(is_steered(&mesh.a, &mesh.client, &mesh.far, to).await?);
    }
    let listener = mesh.far.listen(Mesh::TCP_TARGET)?;
    for ip in mesh.service_ips(&mesh.far) {
        Talk::start(&mesh.client, SocketAddr::new(ip, Mesh::TCP), &listener).await?;
    }
    let status = Agent::status(&mesh.a)?;
    assert_eq!(status["configuration"]["origin"], "the API server");
    assert_eq!(status["configuration"]["workloads"], 4);
    Ok(())
}

#[tokio::test]
async fn a_pod_whose_label_is_taken_back_is_as_it_was_before() -> anyhow::Result<()> {
    let cluster = Cluster::started()?;
    let Cluster { api, mesh } = &cluster;
    let before = NetnsState::of(&mesh.near)?;
    let _agent = cluster.agent(&mesh.a).await?;
    wait_until_captured(&mesh.a, &mesh.near, true).await?;
    let mut labels = mesh.near.labels();
    labels.insert("istio.io/dataplane-mode", "none");
    api.pod_with(&mesh.near, &labels);
    before.is_back(&mesh.near).await?;
    let reason = reason_of(&mesh.a, &mesh.near)?.unwrap_or_default();
    assert_eq!(reason, "its label istio.io/dataplane-mode is none");
    Ok(())
}

#[tokio::test]
async fn labelling_a_namespace_brings_its_running_pods_in_but_those_that_decline()
-> anyhow::Result<()> {
    let cluster = Cluster::started()?;
    let Cluster { api, mesh } = &cluster;
    let in_shop = || PodOptions { namespace: "shop".into(), ..PodOptions::default() };
    let (plain, declining) =
        (mesh.a.pod_with("plain", in_shop())?, mesh.a.pod_with("declining", in_shop())?);
    let (on_host, injected) =
        (mesh.a.pod_with("on-host", in_shop())?, mesh.a.pod_with("injected", in_shop())?);
    for pod in [&plain, &declining, &on_host, &injected] {
        pod.listen(0)?;
    }
    api.namespace("shop", &BTreeMap::new());
    api.pod_with(&plain, &BTreeMap::new());
    api.pod_with(&declining, &BTreeMap::from([("istio.io/dataplane-mode", "none")]));
    let mut host_pod = KubePod::new(&on_host, &BTreeMap::new()).0;
    host_pod["spec"]["hostNetwork"] = true.into();
    api.apply(KubeKind::Pod, host_pod);
    let mut sidecar = KubePod::new(&injected, &BTreeMap::new()).0;
    sidecar["metadata"]["annotations"] = json!({"sidecar.istio.io/status": "{}"});
    api.apply(KubeKind::Pod, sidecar);
    let state = || [&declining, &on_host, &injected].map(NetnsState::of);
    let before = state().into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let _agent = cluster.agent(&mesh.a).await?;
    let reason = reason_of(&mesh.a, &plain)?.unwrap_or_default();
    assert_says(&reason, &["neither it nor its namespace", "istio.io/dataplane-mode=ambient"]);

    api.namespace("shop", &ambient());
    wait_until_captured(&mesh.a, &plain, true).await?;
    assert_says(&reason_of(&mesh.a, &declining)?.unwrap_or_default(), &["is none"]);
    assert_says(&reason_of(&mesh.a, &on_host)?.unwrap_or_default(), &["the node's network"]);
    assert_says(&reason_of(&mesh.a, &injected)?.unwrap_or_default(), &["it has a sidecar"]);
    assert_eq!(state().into_iter().collect::<anyhow::Result<Vec<_>>>()?, before);

    api.namespace("shop", &BTreeMap::new());
    wait_until_captured(&mesh.a, &plain, false).await
}

#[tokio::test]
async fn a_pod_is_captured_as_soon_as_it_has_processes() -> anyhow::Result<()> {
    let cluster = Cluster::started()?;
    let Cluster { api, mesh } = &cluster;
    let _agent = cluster.agent(&mesh.a).await?;
    let late = mesh.a.pod("late")?;
    api.pod(&late);
    let error =
        eventually("the pod is missed", || async { Ok(error_of(&mesh.a, &late)?.flatten()) })
            .await?;
    assert_says(&error, &["no process of pod", &late.uid(), "(hint: "]);
    late.listen(0)?;
    wait_until_captured(&mesh.a, &late, true).await?;
    assert!(is_steered(&mesh.a, &late, &mesh.near, mesh.near.ip()).await?);
    Ok(())
}

#[tokio::test]
async fn a_pod_that_names_the_namespace_of_another_is_not_believed() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    let Cluster { mesh, .. } = &cluster;
    let mut liar = KubePod::new(&mesh.near, &mesh.near.labels()).0;
    liar["metadata"]["annotations"] = json!({"sluice.dev/netns": mesh.outsider.netns_path()});
    // And the address of another, which its own namespace does not hold.
    let mut thief = KubePod::new(&mesh.outsider, &ambient()).0;
    thief["status"]["podIP"] = "10.244.77.1".into();
    thief["status"]["podIPs"] = json!([{"ip": "10.244.77.1"}]);
    let mut cluster = cluster;
    cluster.api.apply(KubeKind::Pod, liar);
    cluster.api.apply(KubeKind::Pod, thief);
    cluster.api.start()?;
    let Cluster { mesh, .. } = &cluster;
    let before = NetnsState::of(&mesh.outsider)?;
    let _agent = cluster.agent(&mesh.a).await?;
    wait_until_captured(&mesh.a, &mesh.near, true).await?;
    let error = eventually("the other is refused", || async {
        Ok(error_of(&mesh.a, &mesh.outsider)?.flatten())
    })
    .await?;
    assert_says(&error, &["it holds none of the pod's addresses", "10.244.77.1"]);
    assert_eq!(NetnsState::of(&mesh.outsider)?, before);
    Ok(())
}

#[tokio::test]
async fn an_outage_of_the_api_server_changes_nothing_and_the_watches_go_on_behind_it()
-> anyhow::Result<()> {
    let mut cluster = Cluster::started()?;
    let (_a, _b) = {
        let Cluster { mesh, .. } = &cluster;
        tokio::try_join!(cluster.agent(&mesh.a), cluster.agent(&mesh.b))?
    };
    let node = &cluster.mesh.a;
    wait_until_captured(node, &cluster.mesh.client, true).await?;
    let listener = cluster.mesh.far.listen(PORT)?;
    let to = SocketAddr::new(cluster.mesh.far.ip(), PORT);
    let mut talk = Talk::start(&cluster.mesh.client, to, &listener).await?;

    cluster.api.stop().await;
    watches_become(node, "the watches are down", |watch| watch["connected"] == false).await?;
    talk.exchange().await?;
    Talk::start(&cluster.mesh.client, to, &listener).await?;
    let metrics = Agent::metrics(node).await?;
    assert_says(&metrics, &["sluice_watch_up{kind=\"pods\"} 0", "sluice_snapshot_saved 0"]);
    let status = Agent::status(node)?;
    assert_says(&status["watches"][0]["error"].to_string(), &["onnect"]);

    cluster.api.delete_pod(&cluster.mesh.near);
    cluster.api.start()?;
    wait_until_captured(node, &cluster.mesh.near, false).await?;
    let is_back = |watch: &Value| {
        watch["connected"] == true && watch["error"].is_null() && watch["lists"] == 1
    };
    watches_become(node, "the watches are back, and listed nothing", is_back).await?;
    talk.exchange().await
}

#[tokio::test]
async fn an_agent_that_starts_without_the_api_server_goes_on_from_what_it_saved()
-> anyhow::Result<()> {
    let Killed { mut cluster, before, .. } = Killed::agent().await?;
    cluster.api.stop().await;

    let agent = cluster.agent(&cluster.mesh.a).await?;
    let Cluster { mesh, .. } = &cluster;
    wait_until_captured(&mesh.a, &mesh.client, true).await?;
    assert!(is_steered(&mesh.a, &mesh.client, &mesh.near, mesh.near.ip()).await?);
    let told = |line: &str| line.contains("does not answer: starting from the snapshot saved");
    agent.process().output().line(PATIENCE, told).await?;
    let origin = &Agent::status(&mesh.a)?["configuration"]["origin"];
    assert_eq!(origin, "the copy saved on this node");
    assert_says(&Agent::metrics(&mesh.a).await?, &["sluice_snapshot_saved 1"]);

    cluster.api.delete_pod(&cluster.mesh.near);
    cluster.api.start()?;
    let Cluster { mesh, .. } = &cluster;
    wait_until_captured(&mesh.a, &mesh.near, false).await?;
    before.is_back(&mesh.near).await?;
    assert_says(&Agent::metrics(&mesh.a).await?, &["sluice_snapshot_saved 0"]);
    Ok(())
}

#[tokio::test]
async fn an_agent_that_comes_before_the_api_server_waits_and_lets_nobody_go() -> anyhow::Result<()>
{
    let Killed { mut cluster, before, saved } = Killed::agent().await?;
    std::fs::remove_file(&saved)?;
    cluster.api.stop().await;

    let agent = Agent::launch(&cluster.mesh.a, &cluster.mesh.config, cluster.options())?;
    let down = |line: &str| line.contains("a watch of the API server broke");
    agent.process().output().line(PATIENCE, down).await?;
    let pending = eventually("it answers", || async {
        Ok(Agent::status(&cluster.mesh.a).ok().map(|status| status["pending"].to_string()))
    })
    .await?;
    assert_says(&pending, &["configuration"]);
    // What the agent before it captured is closed, and not opened.
    assert_ne!(NetnsState::of(&cluster.mesh.near)?, before);
    cluster.api.start()?;
    agent.ready(&cluster.mesh.a).await?;
    wait_until_captured(&cluster.mesh.a, &cluster.mesh.near, true).await
}

#[tokio::test]
async fn changes_that_the_api_server_has_forgotten_are_found_by_listing_again() -> anyhow::Result<()>
{
    let mut cluster = Cluster::started()?;
    let _agent = cluster.agent(&cluster.mesh.a).await?;
    wait_until_captured(&cluster.mesh.a, &cluster.mesh.near, true).await?;
    cluster.api.stop().await;
    cluster.api.delete_pod(&cluster.mesh.near);
    cluster.api.forget();
    cluster.api.start()?;
    wait_until_captured(&cluster.mesh.a, &cluster.mesh.near, false).await?;
    watches_become(&cluster.mesh.a, "all list again", |watch| watch["lists"] == 2).await?;
    assert_eq!(error_of(&cluster.mesh.a, &cluster.mesh.client)?, Some(None));
    Ok(())
}

#[tokio::test]
async fn connections_that_break_are_made_anew_without_listing() -> anyhow::Result<()> {
    let mut cluster = Cluster::started()?;
    let _agent = cluster.agent(&cluster.mesh.a).await?;
    for round in 0..3 {
        cluster.api.disconnect().await?;
        let mode = if round % 2 == 0 { "none" } else { "ambient" };
        let mut labels = cluster.mesh.near.labels();
        labels.insert("istio.io/dataplane-mode", mode);
        cluster.api.pod_with(&cluster.mesh.near, &labels);
        wait_until_captured(&cluster.mesh.a, &cluster.mesh.near, mode == "ambient").await?;
    }
    assert_eq!(cluster.api.asked("sendInitialEvents=true"), 9, "each kind was listed once");
    assert_eq!(cluster.api.asked("limit="), 0, "nothing was listed in pages");
    Ok(())
}

#[tokio::test]
async fn a_server_that_streams_no_lists_is_asked_for_pages() -> anyhow::Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.api.refuse_streamed_lists();
    // More than a page of them.
    for number in 0..1100 {
        let name = format!("ns-{number}");
        cluster.api.namespace(&name, &BTreeMap::new());
    }
    cluster.api.start()?;
    let _agent = cluster.agent(&cluster.mesh.a).await?;
    wait_until_captured(&cluster.mesh.a, &cluster.mesh.near, true).await?;
    assert_eq!(cluster.api.asked("namespaces?&limit=500"), 3);
    cluster.api.delete_pod(&cluster.mesh.near);
    wait_until_captured(&cluster.mesh.a, &cluster.mesh.near, false).await
}

#[tokio::test]
async fn of_an_object_that_cannot_be_read_the_last_good_version_stays() -> anyhow::Result<()> {
    let cluster = Cluster::started()?;
    let Cluster { api, mesh } = &cluster;
    let _agent = cluster.agent(&mesh.a).await?;
    wait_until_captured(&mesh.a, &mesh.near, true).await?;
    let mut broken = KubePod::new(&mesh.near, &BTreeMap::new()).0;
    broken["status"]["podIPs"] = json!([{"ip": 7}]);
    api.apply(KubeKind::Pod, broken);
    let error = eventually("it is reported", || async {
        Ok(Agent::status(&mesh.a)?["configuration"]["error"].as_str().map(str::to_owned))
    })
    .await?;
    let field = "Pod default/near: status.podIPs[0].ip: invalid type: integer `7`";
    assert_says(&error, &[field, "(hint: "]);
    assert_says(&Agent::metrics(&mesh.a).await?, &["sluice_objects_rejected 1"]);
    // Others change all the same.
    api.pod_with(&mesh.client, &BTreeMap::new());
    wait_until_captured(&mesh.a, &mesh.client, false).await?;
    assert_eq!(error_of(&mesh.a, &mesh.near)?, Some(None));

    api.pod_with(&mesh.near, &BTreeMap::new());
    wait_until_captured(&mesh.a, &mesh.near, false).await?;
    eventually("the error is gone", || async {
        Ok(Agent::status(&mesh.a)?["configuration"]["error"].is_null().then_some(()))
    })
    .await
}

/// The mode of a captured pod.
fn mutual_tls(node: &Node, pod: &Pod) -> anyhow::Result<Option<String>> {
    let name = format!("{}/{}", pod.namespace(), pod.name());
    let status = Agent::status(node)?;
    let mut pods = status["pods"].as_array().into_iter().flatten();
    let pod = pods.find(|pod| pod["name"] == name.as_str());
    Ok(pod.and_then(|pod| pod["mutual_tls"].as_str().map(str::to_owned)))
}

async fn mutual_tls_becomes(node: &Node, pod: &Pod, wanted: &str) -> anyhow::Result<()> {
    let is = || async { Ok((mutual_tls(node, pod)?.as_deref() == Some(wanted)).then_some(())) };
    eventually(&format!("mutual TLS becomes {wanted}"), is).await
}

#[tokio::test]
async fn a_disk_that_stands_still_holds_up_no_change() -> anyhow::Result<()> {
    let cluster = Cluster::started()?;
    let Cluster { mesh, api, .. } = &cluster;
    // An agent that cannot lock this waits for it with what it has to save.
    let folder = mesh.lab.directory().join("node-a-state");
    std::fs::create_dir_all(&folder)?;
    let locked = Flock::lock(File::open(&folder)?, FlockArg::LockExclusive);
    let locked = locked.map_err(|(_, error)| error)?;
    let _agent = cluster.agent(&mesh.a).await?;
    let strict = json!({
        "metadata": {"namespace": "default", "name": "strict"},
        "spec": {"mtls": {"mode": "STRICT"}},
    });
    api.apply(KubeKind::PeerAuthentication, strict);
    let said = "STRICT by PeerAuthentication default/strict";
    mutual_tls_becomes(&mesh.a, &mesh.near, said).await?;
    let saved = folder.join("snapshot.json");
    assert!(!saved.exists(), "it was not held up");
    drop(locked);
    eventually("it is saved", || async { Ok(saved.exists().then_some(())) }).await
}

#[tokio::test]
async fn a_policy_is_obeyed_and_survives_an_outage_of_the_api_server() -> anyhow::Result<()> {
    let mut cluster = Cluster::started()?;
    let saved = cluster.mesh.lab.directory().join("node-a-state/snapshot.json");
    let mut agent = cluster.agent(&cluster.mesh.a).await?;
    mutual_tls_becomes(&cluster.mesh.a, &cluster.mesh.near, "PERMISSIVE").await?;
    let strict = json!({
        "metadata": {"namespace": "default", "name": "strict"},
        "spec": {"mtls": {"mode": "STRICT"}, "a field of later": "is the server's to judge"},
    });
    cluster.api.apply(KubeKind::PeerAuthentication, strict);
    let said = "STRICT by PeerAuthentication default/strict";
    mutual_tls_becomes(&cluster.mesh.a, &cluster.mesh.near, said).await?;
    eventually("it is saved", || async {
        let text = std::fs::read_to_string(&saved).unwrap_or_default();
        Ok(text.contains("\"Strict\"").then_some(()))
    })
    .await?;
    agent.kill9();
    cluster.api.stop().await;

    let _agent = cluster.agent(&cluster.mesh.a).await?;
    let Cluster { mesh, .. } = &cluster;
    wait_until_captured(&mesh.a, &mesh.near, true).await?;
    let listener = mesh.near.listen(PORT)?;
    let to = SocketAddr::new(mesh.near.ip(), PORT);
    let told = refused(&mesh.outsider, to, &listener, PATIENCE).await?;
    assert_eq!(told.map(|error| error.kind()), Some(std::io::ErrorKind::ConnectionReset));

    cluster.api.delete(KubeKind::PeerAuthentication, "default", "strict");
    cluster.api.start()?;
    mutual_tls_becomes(&cluster.mesh.a, &cluster.mesh.near, "PERMISSIVE").await
}

#[tokio::test]
async fn policies_whose_kind_is_not_installed_are_found_once_it_is() -> anyhow::Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.api.uninstall(KubeKind::PeerAuthentication);
    cluster.api.start()?;
    let _agent = cluster.agent(&cluster.mesh.a).await?;
    let Cluster { api, mesh } = &cluster;
    wait_until_captured(&mesh.a, &mesh.near, true).await?;
    let watch_of_policies = || -> anyhow::Result<Value> {
        let status = Agent::status(&mesh.a)?;
        let mut watches = status["watches"].as_array().into_iter().flatten();
        let ours = watches.find(|watch| watch["kind"] == "peerauthentications");
        Ok(ours.cloned().unwrap_or_default())
    };
    let watch = watch_of_policies()?;
    assert_eq!((&watch["absent"], &watch["error"]), (&json!(true), &Value::Null), "{watch}");
    assert!(api.asked("/apis/security.istio.io/v1beta1/") > 0, "the former version was asked for");

    let strict = json!({
        "metadata": {"namespace": "istio-system", "name": "strict"},
        "spec": {"mtls": {"mode": "STRICT"}},
    });
    api.apply(KubeKind::PeerAuthentication, strict);
    api.install_all();
    mutual_tls_becomes(&mesh.a, &mesh.near, "STRICT by PeerAuthentication istio-system/strict")
        .await?;
    let watch = watch_of_policies()?;
    assert_eq!((&watch["absent"], &watch["lists"]), (&json!(false), &json!(1)), "{watch}");

    // A mistake in one object is that object's, and its last good version stays.
    let broken = json!({
        "metadata": {"namespace": "istio-system", "name": "strict"},
        "spec": {"mtls": {"mode": "strict"}},
    });
    api.apply(KubeKind::PeerAuthentication, broken);
    let error = eventually("it is reported", || async {
        Ok(Agent::status(&mesh.a)?["configuration"]["error"].as_str().map(str::to_owned))
    })
    .await?;
    let field = "PeerAuthentication istio-system/strict: spec.mtls.mode `strict` is no mode";
    assert_says(&error, &[field, "(hint: did you mean `STRICT`?)"]);
    assert_says(&mutual_tls(&mesh.a, &mesh.near)?.unwrap_or_default(), &["STRICT"]);
    Ok(())
}

#[tokio::test]
async fn an_authorization_policy_that_cannot_be_read_denies_and_once_it_was_read_stays()
-> anyhow::Result<()> {
    let cluster = Cluster::started()?;
    let _agent = cluster.agent(&cluster.mesh.a).await?;
    let Cluster { api, mesh } = &cluster;
    wait_until_captured(&mesh.a, &mesh.near, true).await?;
    let apply = |spec: Value| {
        let metadata = json!({"namespace": "default", "name": "own"});
        api.apply(KubeKind::AuthorizationPolicy, json!({"metadata": metadata, "spec": spec}));
    };
    let becomes = |pod: &Pod, words: &str| {
        let (name, words) = (format!("default/{}", pod.name()), words.to_owned());
        let a = &mesh.a;
        async move {
            let what = format!("{name} has {words:?}");
            eventually(&what, || async {
                let status = Agent::status(a)?;
                let mut pods = status["pods"].as_array().into_iter().flatten();
                let pod = pods.find(|pod| pod["name"] == name.as_str());
                let said = pod.map(|pod| pod["authorization"].to_string()).unwrap_or_default();
                let is_said = if words.is_empty() { said == "[]" } else { said.contains(&words) };
                Ok(is_said.then_some(()))
            })
            .await
        }
    };
    let listener = mesh.near.listen(PORT)?;
    let to = SocketAddr::new(mesh.near.ip(), PORT);
    let unknown = |action: &str| json!({"selector": {"matchLabels": {"app": "near"}}, "action": action, "rules": [{}]});
    apply(unknown("LATER"));
    becomes(&mesh.near, "cannot be read").await?;
    becomes(&mesh.client, "").await?;
    let told = refused(&mesh.client, to, &listener, PATIENCE).await?;
    assert_eq!(told.map(|error| error.kind()), Some(std::io::ErrorKind::ConnectionReset));
    apply(unknown("ALLOW"));
    becomes(&mesh.near, "ALLOW default/own").await?;
    Talk::start(&mesh.client, to, &listener).await?;
    apply(unknown("LATER"));
    let error = eventually("it is reported", || async {
        Ok(Agent::status(&mesh.a)?["configuration"]["error"].as_str().map(str::to_owned))
    })
    .await?;
    assert_says(&error, &["AuthorizationPolicy default/own: spec.action `LATER` is no action"]);
    becomes(&mesh.near, "ALLOW default/own").await?;
    Talk::start(&mesh.client, to, &listener).await?;
    api.delete(KubeKind::AuthorizationPolicy, "default", "own");
    becomes(&mesh.near, "").await
}

#[tokio::test]
async fn a_request_authentication_that_cannot_be_read_lets_no_request_pass_until_it_can()
-> anyhow::Result<()> {
    let cluster = Cluster::started()?;
    let _agent = cluster.agent(&cluster.mesh.a).await?;
    let Cluster { api, mesh } = &cluster;
    wait_until_captured(&mesh.a, &mesh.near, true).await?;
    let issuer = TokenIssuer::new("k")?;
    let apply = |rule: Value| {
        let metadata = json!({"namespace": "default", "name": "tokens"});
        let selector = json!({"matchLabels": {"app": "near"}});
        let spec = json!({"selector": selector, "jwtRules": [rule]});
        api.apply(KubeKind::RequestAuthentication, json!({"metadata": metadata, "spec": spec}));
    };
    let listener = mesh.near.listen(PORT)?;
    let _app = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut line = Line::new(stream);
            while line.hear("\r\n\r\n").await.is_ok() {
                let _ = line.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        }
    });
    let to = SocketAddr::new(mesh.near.ip(), PORT);
    let becomes = async |token: Option<&str>, status: &str| {
        let field = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", field.unwrap_or_default());
        eventually(&format!("{token:?} gets {status}"), || async {
            let mut line = Line::new(mesh.client.connect(to).await?);
            line.say(head.clone()).await?;
            let answer = line.hear("\r\n\r\n").await?;
            Ok(answer.starts_with(&format!("HTTP/1.1 {status} ")).then_some(()))
        })
        .await
    };
    let good = issuer.token(&json!({"iss": "a", "sub": "b"}))?;
    let rule = json!({"issuer": "a", "jwks": issuer.jwks()?});
    let later = json!({"issuer": "a", "jwks": issuer.jwks()?, "later": true});
    becomes(None, "200").await?;
    apply(later.clone());
    becomes(None, "403").await?;
    apply(rule);
    becomes(None, "200").await?;
    becomes(Some(&good), "200").await?;
    becomes(Some("x"), "401").await?;
    // Once it was read, that stays.
    apply(later);
    eventually("it is reported", || async {
        let status = Agent::status(&mesh.a)?;
        let error = status["configuration"]["error"].as_str().unwrap_or_default();
        Ok(error.contains("RequestAuthentication default/tokens: spec.jwtRules[0]").then_some(()))
    })
    .await?;
    becomes(Some("x"), "401").await?;
    becomes(None, "200").await?;
    api.delete(KubeKind::RequestAuthentication, "default", "tokens");
    becomes(Some("x"), "200").await
}

async fn says(agent: &Agent, words: &str) -> anyhow::Result<String> {
    agent.process().output().line(PATIENCE, |line| line.contains(words)).await
}

#[tokio::test]
async fn the_runtimes_calls_are_held_until_the_next_agent_has_the_pods() -> anyhow::Result<()> {
    let cluster = Cluster::started()?;
    let a = &cluster.mesh.a;
    // A runtime that agents register with, and that has nothing to tell.
    let socket = cluster.mesh.lab.directory().join("nri.sock");
    let runtime = UnixListener::bind(&socket)?;
    let agent = |more: &[&str]| {
        let mut options = cluster.options();
        options.flags.extend(["--nri-socket".to_owned(), socket.display().to_string()]);
        options.flags.extend(more.iter().map(|&flag| flag.to_owned()));
        options
    };
    let first = Agent::start(a, &cluster.mesh.config, agent(&[])).await?;
    let (mut to_first, _) = within(PATIENCE, "the first plugin", runtime.accept()).await??;
    wait_until_captured(a, &cluster.mesh.near, true).await?;
    let beside = [
        ("--ready-addr", "127.0.0.1:25021"),
        ("--stats-addr", "127.0.0.1:25020"),
        ("--admin-addr", "127.0.0.1:25000"),
    ];
    let beside = beside.map(|(flag, address)| [flag, address]);
    let second = Agent::launch(a, &cluster.mesh.config, agent(beside.as_flattened()))?;
    says(&second, "standing by").await?;

    // It takes over, and comes no further.
    second.process().signal(Signal::SIGSTOP)?;
    first.process().signal(Signal::SIGTERM)?;
    says(&first, "ending").await?;
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_millis(300), to_first.read_to_end(&mut rest)).await;
    assert!(ended.is_err(), "a pod that is made now would start as it is");
    second.process().signal(Signal::SIGCONT)?;
    says(&second, "agent started").await?;
    let (_to_second, _) = within(PATIENCE, "the second plugin", runtime.accept()).await??;
    within(PATIENCE, "the end of the first", to_first.read_to_end(&mut rest)).await??;
    Ok(())
}
