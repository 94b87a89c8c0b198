//! A pod that is to be in the mesh and is not captured yet is dialled as before, and nobody notices
//! the change.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::Context;
use serde_json::{Value, json};
use sluice_tests::{
    Agent, AgentOptions, Kind, KubeApi, KubeKind, KubePod, Mesh, Node, PATIENCE, Pod, PodOptions,
    Span, Talk, eventually, is_captured, refused, wait_until_captured,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

const PORT: u16 = 9999;
const REDIRECTION: &str = "ambient.istio.io/redirection";

/// A lab whose agents ask an API server.
struct Cluster {
    api: KubeApi,
    mesh: Mesh,
}

impl Cluster {
    /// The API server knows the namespace `default` and these pods, without any label, and
    /// answers.
    fn of(mesh: Mesh, pods: impl Fn(&Mesh) -> Vec<&Pod>) -> anyhow::Result<Self> {
        let mut api = KubeApi::new(&mesh.lab)?;
        api.namespace("default", &BTreeMap::new());
        for pod in pods(&mesh) {
            api.pod_with(pod, &BTreeMap::new());
            pod.listen(0)?;
        }
        api.start()?;
        Ok(Self { api, mesh })
    }

    async fn agent(&self, node: &Node) -> anyhow::Result<Agent> {
        let options = self.mesh.agent_options(&[]);
        let options = AgentOptions { kubeconfig: Some(self.api.kubeconfig()), ..options };
        Agent::start(node, &self.mesh.config, options).await
    }

    /// Labels the namespace `default`, or takes the label back.
    fn label(&self, joins: bool) {
        let ambient = joins.then_some(("istio.io/dataplane-mode", "ambient"));
        self.api.namespace("default", &ambient.into_iter().collect());
    }

    fn annotation(&self, pod: &Pod) -> Option<Value> {
        let object = self.api.object(KubeKind::Pod, pod.namespace(), pod.name())?;
        object["metadata"]["annotations"].get(REDIRECTION).cloned()
    }

    async fn annotation_becomes(&self, pod: &Pod, expected: Option<&str>) -> anyhow::Result<()> {
        let what = format!("the annotation of {} is {expected:?}", pod.name());
        let expected = expected.map(Value::from);
        eventually(&what, || async { Ok((self.annotation(pod) == expected).then_some(())) }).await
    }

    /// Talks from the client to `far` once, and returns by which security the client's agent says.
    async fn security(&self) -> anyhow::Result<String> {
        let Mesh { client, far, receiver, .. } = &self.mesh;
        let ours = |span: &&Span| span.kind == Kind::Client && span.service == "client";
        let before = receiver.spans().iter().filter(ours).count();
        let listener = far.listen(PORT)?;
        drop(Talk::start(client, SocketAddr::new(far.ip(), PORT), &listener).await?);
        let told = |spans: &[Span]| spans.iter().filter(ours).count() > before;
        let spans = receiver.wait_for(PATIENCE, told).await?;
        let span = spans.iter().filter(ours).nth(before).context("it was waited for")?;
        Ok(span.attribute("mesh.connection.security_policy").to_owned())
    }
}

#[tokio::test]
async fn the_agent_tells_of_captured_pods_and_takes_it_back() -> anyhow::Result<()> {
    let cluster = Cluster::of(Mesh::new()?, |mesh| vec![&mesh.near, &mesh.outsider])?;
    let Cluster { api, mesh } = &cluster;
    let declined = BTreeMap::from([("istio.io/dataplane-mode", "none")]);
    api.pod_with(&mesh.outsider, &declined);
    let agent = cluster.agent(&mesh.a).await?;
    cluster.label(true);
    cluster.annotation_becomes(&mesh.near, Some("enabled")).await?;
    assert_eq!(cluster.annotation(&mesh.outsider), None);

    // Whoever takes it off does not change what is so.
    api.pod_with(&mesh.near, &BTreeMap::new());
    cluster.annotation_becomes(&mesh.near, Some("enabled")).await?;

    // An agent that comes after another finds it so, and leaves it so without a certificate.
    drop(agent);
    let asked = || api.asked("PATCH /api/v1/namespaces/default/pods/near");
    let before = asked();
    let _agent = cluster.agent(&mesh.a).await?;
    wait_until_captured(&mesh.a, &mesh.near, true).await?;
    assert_eq!(asked(), before);

    cluster.label(false);
    cluster.annotation_becomes(&mesh.near, None).await
}

#[tokio::test]
async fn a_certificate_that_is_missing_withdraws_no_annotation() -> anyhow::Result<()> {
    let cluster = Cluster::of(Mesh::new()?, |mesh| vec![&mesh.near, &mesh.outsider])?;
    let Cluster { api, mesh } = &cluster;
    let declined = BTreeMap::from([("istio.io/dataplane-mode", "none")]);
    api.pod_with(&mesh.outsider, &declined);
    cluster.label(true);
    let agent = cluster.agent(&mesh.a).await?;
    cluster.annotation_becomes(&mesh.near, Some("enabled")).await?;
    drop(agent);

    // The next one's CA is away.
    let token = mesh.lab.directory().join("token");
    fs::write(&token, "a token")?;
    let root = mesh.lab.directory().join("ca/ca-cert.pem");
    let (root, token) = (root.display().to_string(), token.display().to_string());
    let flags = ["--ca-address", "https://127.0.0.1:1", "--ca-root", &root, "--ca-token", &token];
    let options = mesh.agent_options(&flags);
    let options = AgentOptions { kubeconfig: Some(cluster.api.kubeconfig()), ..options };
    let _agent = Agent::launch(&mesh.a, &mesh.config, options)?;
    // It is not ready, and does not answer at once.
    let captured =
        || async { Ok(is_captured(&mesh.a, &mesh.near).is_ok_and(|is| is).then_some(())) };
    eventually("the pod is captured", captured).await?;

    // When this one is put right, the other has been looked at too.
    let mut wrong = KubePod::new(&mesh.outsider, &declined).0;
    wrong["metadata"]["annotations"] = json!({REDIRECTION: "enabled"});
    api.apply(KubeKind::Pod, wrong);
    cluster.annotation_becomes(&mesh.outsider, None).await?;
    assert_eq!(cluster.annotation(&mesh.near), Some("enabled".into()));
    Ok(())
}

#[tokio::test]
async fn a_pod_is_dialled_in_plaintext_until_it_is_captured() -> anyhow::Result<()> {
    let cluster = Cluster::of(Mesh::new()?, |mesh| vec![&mesh.client, &mesh.far])?;
    let mesh = &cluster.mesh;
    let _at_client = cluster.agent(&mesh.a).await?;
    cluster.label(true);
    cluster.annotation_becomes(&mesh.client, Some("enabled")).await?;
    // Its node has no agent.
    assert_eq!(cluster.security().await?, "none");
    cluster.api.refuse_patches(true);
    let agent = cluster.agent(&mesh.b).await?;
    wait_until_captured(&mesh.b, &mesh.far, true).await?;
    let says = |line: &str| line.contains("peers are not told which pods are captured");
    agent.process().output().line(PATIENCE, says).await?;
    assert_eq!(cluster.security().await?, "none");
    cluster.api.refuse_patches(false);
    cluster.annotation_becomes(&mesh.far, Some("enabled")).await?;
    while cluster.security().await? != "mutual_tls" {}
    Ok(())
}

#[tokio::test]
async fn under_strict_nobody_dials_what_is_not_captured_in_plaintext() -> anyhow::Result<()> {
    let cluster = Cluster::of(Mesh::new()?, |mesh| vec![&mesh.client, &mesh.far])?;
    let mesh = &cluster.mesh;
    let metadata = json!({"name": "strict", "namespace": "default"});
    let strict = json!({"metadata": metadata, "spec": {"mtls": {"mode": "STRICT"}}});
    cluster.api.apply(KubeKind::PeerAuthentication, strict);
    let _at_client = cluster.agent(&mesh.a).await?;
    cluster.label(true);
    cluster.annotation_becomes(&mesh.client, Some("enabled")).await?;
    let listener = mesh.far.listen(PORT)?;
    refused(&mesh.client, SocketAddr::new(mesh.far.ip(), PORT), &listener, PATIENCE).await?;
    drop(listener);
    let _agent = cluster.agent(&mesh.b).await?;
    wait_until_captured(&mesh.b, &mesh.far, true).await?;
    assert_eq!(cluster.security().await?, "mutual_tls");
    Ok(())
}

/// Pods that are dialled, all on one node.
const SERVERS: usize = 100;
/// Pods of another node that dial them. Each has its share.
const CLIENTS: usize = 10;

/// Answers whoever connects with what it sends.
async fn echo(pod: Arc<Pod>) -> anyhow::Result<()> {
    let listener = pod.listen(PORT)?;
    let mut open = JoinSet::new();
    loop {
        let (mut stream, _) = listener.accept().await?;
        open.spawn(async move {
            let (mut read, mut write) = stream.split();
            // A client that goes is no matter.
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        while open.try_join_next().is_some() {}
    }
}

/// One connection with an answer.
async fn ask(client: &Pod, to: SocketAddr) -> anyhow::Result<()> {
    let mut stream = client.connect(to).await?;
    stream.write_all(b"ping").await?;
    stream.read_exact(&mut [0; 4]).await?;
    Ok(())
}

#[tokio::test]
async fn labelling_a_namespace_of_a_hundred_pods_under_load_loses_no_connection()
-> anyhow::Result<()> {
    let cluster = Cluster::of(Mesh::new()?, |_| Vec::new())?;
    let Cluster { api, mesh } = &cluster;
    let mut pods = Vec::new();
    for (node, name, count) in [(&mesh.a, "from", CLIENTS), (&mesh.b, "to", SERVERS)] {
        for number in 0..count {
            let options = PodOptions { meshed: false, ..PodOptions::default() };
            let pod = node.pod_with(&format!("{name}-{number}"), options)?;
            api.pod_with(&pod, &BTreeMap::new());
            pods.push(Arc::new(pod));
        }
    }
    let _agents = tokio::try_join!(cluster.agent(&mesh.a), cluster.agent(&mesh.b))?;
    let (clients, servers) = pods.split_at(CLIENTS);
    let mut serving = JoinSet::new();
    for server in servers {
        serving.spawn(echo(server.clone()));
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let mut asking: JoinSet<anyhow::Error> = JoinSet::new();
    for (client, servers) in clients.iter().zip(servers.chunks(SERVERS / CLIENTS)) {
        let (client, servers, asked) = (client.clone(), servers.to_vec(), asked.clone());
        asking.spawn(async move {
            loop {
                for to in servers.iter().flat_map(|server| server.ips()) {
                    let to = SocketAddr::new(to, PORT);
                    if let Err(error) = ask(&client, to).await {
                        return error.context(format!("{} to {to}", client.name()));
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    // Each of them twice, by each family, if none is slower than others.
    let more = async |what: &str| {
        let enough = asked.load(Ordering::Relaxed) + 4 * SERVERS;
        let is_enough = || async { Ok((asked.load(Ordering::Relaxed) >= enough).then_some(())) };
        eventually(what, is_enough).await
    };
    let joins = async {
        more("load without the mesh").await?;
        let (before, began) = (asked.load(Ordering::Relaxed), Instant::now());
        cluster.label(true);
        for pod in &pods {
            cluster.annotation_becomes(pod, Some("enabled")).await?;
        }
        let meanwhile = asked.load(Ordering::Relaxed) - before;
        println!(
            "{} pods are captured after {:.1?}, during {meanwhile} connections",
            pods.len(),
            began.elapsed()
        );
        more("load in the mesh").await
    };
    tokio::select! {
        joined = joins => joined?,
        Some(failed) = asking.join_next() => return Err(failed?),
    }
    asking.shutdown().await;
    println!("{} connections, each with an answer", asked.load(Ordering::Relaxed));
    Ok(())
}
