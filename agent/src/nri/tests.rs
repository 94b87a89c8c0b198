//! The plugin against a runtime's side of the protocol, over a socket pair.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};

use super::{
    NriError, Plugin, PodEvents, Sandbox,
    messages::{
        ConfigureRequest, ConfigureResponse, Empty, Event, LinuxNamespace, LinuxPodSandbox,
        PLUGIN_SERVICE, PodSandbox, PodSandboxRequest, RegisterPluginRequest, Response,
        StateChangeEvent, Status, SynchronizeRequest, SynchronizeResponse,
    },
    rpc::{self, Incoming, Messages},
    trunk,
};

/// What the plugin told.
#[derive(Debug, PartialEq)]
enum Told {
    Started(Sandbox),
    Running(Vec<Sandbox>),
    Stopped(String),
}

/// Passes on what it is told; holds starting pods until `go`, where there is one.
struct Listener {
    told: mpsc::UnboundedSender<Told>,
    go: Option<Notify>,
}

#[async_trait]
impl PodEvents for Listener {
    async fn started(&self, sandbox: Sandbox) {
        self.told.send(Told::Started(sandbox)).unwrap();
        if let Some(go) = &self.go {
            go.notified().await;
        }
    }

    async fn running(self: Arc<Self>, sandboxes: Vec<Sandbox>) {
        self.told.send(Told::Running(sandboxes)).unwrap();
    }

    async fn stopped(&self, uid: &str) {
        self.told.send(Told::Stopped(uid.to_owned())).unwrap();
    }
}

/// The runtime's end of a session.
struct Runtime {
    stream: DuplexStream,
    messages: Messages,
    told: mpsc::UnboundedReceiver<Told>,
    listener: Arc<Listener>,
    session: JoinHandle<Result<(), NriError>>,
}

impl Runtime {
    fn start(go: Option<Notify>) -> Self {
        let (stream, theirs) = duplex(1 << 16);
        let (sender, told) = mpsc::unbounded_channel();
        let listener = Arc::new(Listener { told: sender, go });
        let plugin = Plugin::new("sluice", listener.clone(), watch::Sender::new(false));
        let session = tokio::spawn(async move { plugin.session(theirs).await });
        Self { stream, messages: Messages::default(), told, listener, session }
    }

    /// The next message on `connection`.
    async fn read(&mut self, connection: u32) -> Incoming {
        loop {
            if let Some(incoming) = self.messages.next().unwrap() {
                return incoming;
            }
            let (from, bytes) = trunk::read(&mut self.stream).await.unwrap().unwrap();
            assert_eq!(from, connection);
            self.messages.push(&bytes);
        }
    }

    async fn call(&mut self, stream: u32, method: &str, argument: &impl Message) {
        let call = rpc::request(stream, PLUGIN_SERVICE, method, argument);
        trunk::write(&mut self.stream, trunk::PLUGIN, &call).await.unwrap();
    }

    async fn answer(&mut self) -> Response {
        match self.read(trunk::PLUGIN).await {
            Incoming::Response(response) => response,
            other => panic!("not an answer: {other:?}"),
        }
    }

    /// What containerd does with a plugin that registers.
    async fn accept(&mut self, request_timeout: i64) {
        let Incoming::Request(stream, request) = self.read(trunk::RUNTIME).await else {
            panic!("the plugin answers before it is asked")
        };
        assert_eq!(request.method, "RegisterPlugin");
        let register = RegisterPluginRequest::decode(&request.payload[..]).unwrap();
        assert_eq!((&*register.plugin_name, &*register.plugin_idx), ("sluice", "90"));
        let answer = rpc::answer(stream, &Empty {});
        trunk::write(&mut self.stream, trunk::RUNTIME, &answer).await.unwrap();
        let configure = ConfigureRequest {
            runtime_name: "containerd".into(),
            runtime_version: "v2.4.2".into(),
            request_timeout,
        };
        self.call(1, "Configure", &configure).await;
        let answer = ConfigureResponse::decode(&self.answer().await.payload[..]).unwrap();
        assert_eq!(answer.events, 0b111);
    }
}

fn pod(uid: &str) -> PodSandbox {
    PodSandbox {
        name: "web".into(),
        uid: uid.into(),
        namespace: "shop".into(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        linux: Some(LinuxPodSandbox {
            namespaces: vec![
                LinuxNamespace { r#type: "ipc".into(), path: "/proc/7/ns/ipc".into() },
                LinuxNamespace { r#type: "network".into(), path: "/run/netns/cni-1".into() },
            ],
        }),
        ips: vec!["10.244.1.7".into(), "fd00::7".into()],
    }
}

fn sandbox(uid: &str) -> Sandbox {
    Sandbox {
        uid: uid.into(),
        namespace: "shop".into(),
        name: "web".into(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        netns: Some("/run/netns/cni-1".into()),
        ips: vec!["10.244.1.7".parse().unwrap(), "fd00::7".parse().unwrap()],
    }
}

#[tokio::test]
async fn a_pods_containers_wait_until_it_has_been_seen_to() {
    let mut runtime = Runtime::start(Some(Notify::new()));
    runtime.accept(60_000).await;
    runtime.call(3, "RunPodSandbox", &PodSandboxRequest { pod: Some(pod("a")) }).await;
    assert_eq!(runtime.told.recv().await, Some(Told::Started(sandbox("a"))));
    // Another call is answered meanwhile, and the first is not.
    runtime.call(5, "StopPodSandbox", &PodSandboxRequest { pod: Some(pod("b")) }).await;
    assert_eq!(runtime.told.recv().await, Some(Told::Stopped("b".into())));
    assert_eq!(runtime.answer().await, Response::default());
    runtime.listener.go.as_ref().unwrap().notify_one();
    assert_eq!(runtime.answer().await, Response::default());
}

#[tokio::test(start_paused = true)]
async fn the_runtime_is_answered_before_it_gives_up() {
    let mut runtime = Runtime::start(Some(Notify::new()));
    runtime.accept(2_000).await;
    let asked = tokio::time::Instant::now();
    runtime.call(3, "RunPodSandbox", &PodSandboxRequest { pod: Some(pod("a")) }).await;
    assert_eq!(runtime.answer().await, Response::default());
    assert!(asked.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn older_runtimes_tell_of_changes_in_one_call() {
    let mut runtime = Runtime::start(None);
    runtime.accept(0).await;
    let change = |event, pod| StateChangeEvent { event: event as i32, pod };
    runtime.call(3, "StateChange", &change(Event::RunPodSandbox, Some(pod("a")))).await;
    assert_eq!(runtime.told.recv().await, Some(Told::Started(sandbox("a"))));
    runtime.answer().await;
    runtime.call(5, "StateChange", &change(Event::RemovePodSandbox, Some(pod("a")))).await;
    assert_eq!(runtime.told.recv().await, Some(Told::Stopped("a".into())));
    runtime.answer().await;
    // An event that came into being later.
    runtime.call(7, "StateChange", &StateChangeEvent { event: 99, pod: Some(pod("a")) }).await;
    assert_eq!(runtime.answer().await, Response::default());
    assert!(runtime.told.try_recv().is_err());
}

#[tokio::test]
async fn pods_that_run_already_are_told_of_at_once_however_many_messages_it_takes() {
    let mut runtime = Runtime::start(None);
    runtime.accept(2_000).await;
    for (uid, more) in [("a", true), ("b", false)] {
        let request = SynchronizeRequest { pods: vec![pod(uid)], more };
        runtime.call(3, "Synchronize", &request).await;
        let answer = SynchronizeResponse::decode(&runtime.answer().await.payload[..]).unwrap();
        assert_eq!(answer.more, more);
    }
    let all = vec![sandbox("a"), sandbox("b")];
    assert_eq!(runtime.told.recv().await, Some(Told::Running(all)));
}

#[tokio::test]
async fn messages_may_be_split_over_frames_anywhere() {
    let mut runtime = Runtime::start(None);
    runtime.accept(2_000).await;
    let request = PodSandboxRequest { pod: Some(pod("a")) };
    let call = rpc::request(3, PLUGIN_SERVICE, "RunPodSandbox", &request);
    for piece in call.chunks(7) {
        trunk::write(&mut runtime.stream, trunk::PLUGIN, piece).await.unwrap();
    }
    assert_eq!(runtime.told.recv().await, Some(Told::Started(sandbox("a"))));
}

#[tokio::test]
async fn a_pod_on_the_hosts_network_has_no_namespace() {
    let mut runtime = Runtime::start(None);
    runtime.accept(2_000).await;
    let host = PodSandbox { linux: None, ..pod("a") };
    runtime.call(3, "RunPodSandbox", &PodSandboxRequest { pod: Some(host) }).await;
    let expected = Sandbox { netns: None, ..sandbox("a") };
    assert_eq!(runtime.told.recv().await, Some(Told::Started(expected)));
}

#[tokio::test]
async fn calls_that_came_into_being_later_are_refused_in_order() {
    let mut runtime = Runtime::start(None);
    runtime.accept(2_000).await;
    runtime.call(3, "Foresee", &Empty {}).await;
    let Status { code, message } = runtime.answer().await.status.unwrap();
    assert_eq!((code, &*message), (12, "no method Foresee"));
}

#[tokio::test]
async fn a_runtime_that_refuses_the_plugin_is_quoted() {
    let mut runtime = Runtime::start(None);
    let Incoming::Request(..) = runtime.read(trunk::RUNTIME).await else { panic!("no request") };
    let status = Status { code: 7, message: "plugins are not wanted here".into() };
    let mut refusal = Vec::new();
    let body = Response { status: Some(status), payload: Vec::new() }.encode_to_vec();
    refusal.extend((body.len() as u32).to_be_bytes());
    refusal.extend([0, 0, 0, 1, 2, 0]);
    refusal.extend(body);
    trunk::write(&mut runtime.stream, trunk::RUNTIME, &refusal).await.unwrap();
    let ended = runtime.session.await.unwrap().unwrap_err();
    assert!(ended.to_string().contains("plugins are not wanted here"), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_accepts_and_closes_is_asked_ever_more_seldom() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nri.sock");
    let runtime = tokio::net::UnixListener::bind(&socket).unwrap();
    let (told, _telling) = mpsc::unbounded_channel();
    let listener = Arc::new(Listener { told, go: None });
    let plugin = Plugin::new("sluice", listener, watch::Sender::new(false));
    let serving = tokio::spawn(async move { plugin.serve(&socket).await });
    let mut asked = Vec::new();
    for _ in 0..5 {
        drop(runtime.accept().await.unwrap());
        asked.push(tokio::time::Instant::now());
    }
    serving.abort();
    let pauses: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.is_sorted() && pauses[3] >= 4 * pauses[0], "{pauses:?}");
}

#[tokio::test]
async fn what_is_no_nri_ends_the_session() {
    let mut runtime = Runtime::start(None);
    runtime.accept(2_000).await;
    runtime.stream.write_all(&[0xff; 64]).await.unwrap();
    assert!(matches!(runtime.session.await.unwrap(), Err(NriError::Malformed(_))));
    let mut rest = Vec::new();
    runtime.stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}
