//! The plugin: what the runtime tells of pods, handed to whoever captures them.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite, WriteHalf},
    net::UnixStream,
    sync::{Mutex, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    NriError,
    messages::{
        ConfigureRequest, ConfigureResponse, Empty, Event, PLUGIN_SERVICE, PodSandbox,
        PodSandboxRequest, RUNTIME_SERVICE, RegisterPluginRequest, Request, StateChangeEvent,
        SynchronizeRequest, SynchronizeResponse,
    },
    rpc::{self, Incoming, Messages},
    trunk,
};

/// Late among the plugins: what others do to a pod is done by then.
const INDEX: &str = "90";
/// The runtime's own default for how long a plugin may take to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after a lost connection the next is tried: doubled each time, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// A pod's sandbox: its network is there, its containers are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The pod's UID.
    pub uid: String,
    /// The pod's namespace in the cluster.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// Its network namespace, a path of the runtime's own file system; `None` for a pod on the
    /// host's network.
    pub netns: Option<PathBuf>,
    /// The addresses it was given. Runtimes with an older NRI do not tell.
    pub ips: Vec<IpAddr>,
}

/// Whoever wants to know of pods.
#[async_trait]
pub trait PodEvents: Send + Sync + 'static {
    /// A pod's sandbox is ready. Its containers start when this returns, or when the runtime has
    /// waited nearly as long as it would.
    async fn started(&self, sandbox: Sandbox);

    /// Pods that run already; told at each connection to the runtime, which waits for the return:
    /// whatever takes time goes on after it.
    async fn running(self: Arc<Self>, sandboxes: Vec<Sandbox>);

    /// The pod with this UID is stopping. The runtime waits for the return.
    async fn stopped(&self, uid: &str);
}

/// Our side of the runtime's interface.
#[derive(Debug)]
pub struct Plugin<E> {
    name: String,
    events: Arc<E>,
    connected: watch::Sender<bool>,
}

impl<E: PodEvents> Plugin<E> {
    /// A plugin that the runtime will know by `name`. `connected` is kept: whether a runtime tells
    /// of its pods.
    pub fn new(name: &str, events: Arc<E>, connected: watch::Sender<bool>) -> Self {
        Self { name: name.to_owned(), events, connected }
    }

    /// Serves the runtime that listens at `socket`, and the next one after it restarts. A node
    /// without NRI is told of once.
    pub async fn serve(self, socket: &Path) {
        let mut retry = RETRY.0;
        let mut said = None;
        loop {
            let ended = match UnixStream::connect(socket).await {
                Ok(stream) => self.session(stream).await,
                Err(error) => Err(NriError::Unreachable { path: socket.to_owned(), error }),
            };
            // A runtime that accepts connections and wants no plugin is none that came back.
            if self.connected.send_replace(false) {
                (retry, said) = (RETRY.0, None);
            }
            let why = match ended {
                Ok(()) => NriError::Closed.to_string(),
                Err(error) => error.to_string(),
            };
            if said.as_ref() != Some(&why) {
                tracing::warn!(
                    why,
                    "not connected to the container runtime: new pods are found by the watch alone"
                );
                said = Some(why);
            }
            sleep(retry).await;
            retry = (retry * 2).min(RETRY.1);
        }
    }

    /// One connection, from the registration to its end.
    pub(super) async fn session<S>(&self, stream: S) -> Result<(), NriError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut reader, writer) = tokio::io::split(stream);
        let writer = Arc::new(Mutex::new(writer));
        let register =
            RegisterPluginRequest { plugin_name: self.name.clone(), plugin_idx: INDEX.into() };
        let call = rpc::request(1, RUNTIME_SERVICE, "RegisterPlugin", &register);
        trunk::write(&mut *writer.lock().await, trunk::RUNTIME, &call).await?;

        let (mut calls, mut answers) = (Messages::default(), Messages::default());
        let mut session = Session { patience: REQUEST_TIMEOUT, listing: Vec::new() };
        // Ends with the session: what a pod's handler still does is of no use to anyone then.
        let mut handling = JoinSet::new();
        while let Some((connection, bytes)) = trunk::read(&mut reader).await? {
            match connection {
                trunk::PLUGIN => calls.push(&bytes),
                trunk::RUNTIME => answers.push(&bytes),
                _ => {}
            }
            if let Some(Incoming::Response(response)) = answers.next()?
                && let Some(status) = response.status.filter(|status| status.code != 0)
            {
                return Err(NriError::Refused(status.message));
            }
            while let Some(incoming) = calls.next()? {
                let Incoming::Request(stream, request) = incoming else { continue };
                self.call(stream, &request, &mut session, &writer, &mut handling).await?;
            }
            while handling.try_join_next().is_some() {}
        }
        Ok(())
    }

    /// Answers a call, or sees to it that it is answered when the pod has been seen to.
    async fn call<S>(
        &self,
        stream: u32,
        request: &Request,
        session: &mut Session,
        writer: &Arc<Mutex<WriteHalf<S>>>,
        handling: &mut JoinSet<()>,
    ) -> Result<(), NriError>
    where
        S: AsyncWrite + Send + Unpin + 'static,
    {
        let answer = if request.service == PLUGIN_SERVICE {
            match session.understand(stream, request)? {
                Call::Answer(answer) => answer,
                Call::Running(sandboxes, answer) => {
                    self.events.clone().running(sandboxes).await;
                    self.connected.send_replace(true);
                    answer
                }
                Call::Pod(event, pod) => {
                    let (events, writer) = (self.events.clone(), writer.clone());
                    let patience = session.patience;
                    handling.spawn(async move {
                        tell(&*events, event, pod, patience).await;
                        let answer = rpc::answer(stream, &Empty {});
                        // A connection that broke ends the session elsewhere.
                        let _ =
                            trunk::write(&mut *writer.lock().await, trunk::PLUGIN, &answer).await;
                    });
                    return Ok(());
                }
            }
        } else {
            rpc::unimplemented(stream, &request.service)
        };
        trunk::write(&mut *writer.lock().await, trunk::PLUGIN, &answer).await
    }
}

/// What a connection has come to.
struct Session {
    /// How long an answer may take.
    patience: Duration,
    /// Running pods, of which more are to come.
    listing: Vec<Sandbox>,
}

/// What is to be done about a call.
enum Call {
    Answer(Vec<u8>),
    Running(Vec<Sandbox>, Vec<u8>),
    Pod(Event, PodSandbox),
}

impl Session {
    fn understand(&mut self, stream: u32, request: &Request) -> Result<Call, NriError> {
        let payload = &request.payload[..];
        Ok(match request.method.as_str() {
            "Configure" => {
                let configure: ConfigureRequest = decode(payload)?;
                if let Ok(milliseconds @ 1..) = u64::try_from(configure.request_timeout) {
                    self.patience = Duration::from_millis(milliseconds);
                }
                tracing::info!(
                    runtime = configure.runtime_name,
                    version = configure.runtime_version,
                    "connected to the container runtime: new pods are captured before they start"
                );
                let wanted = [Event::RunPodSandbox, Event::StopPodSandbox, Event::RemovePodSandbox];
                let events = wanted.into_iter().fold(0, |mask, event| mask | event.bit());
                Call::Answer(rpc::answer(stream, &ConfigureResponse { events }))
            }
            "Synchronize" => {
                let request: SynchronizeRequest = decode(payload)?;
                self.listing.extend(request.pods.into_iter().map(Sandbox::from));
                let answer = rpc::answer(stream, &SynchronizeResponse { more: request.more });
                if request.more {
                    Call::Answer(answer)
                } else {
                    Call::Running(std::mem::take(&mut self.listing), answer)
                }
            }
            "StateChange" => {
                let change: StateChangeEvent = decode(payload)?;
                pod(stream, change.event(), change.pod)
            }
            "RunPodSandbox" => pod_call(stream, Event::RunPodSandbox, payload)?,
            "StopPodSandbox" => pod_call(stream, Event::StopPodSandbox, payload)?,
            "RemovePodSandbox" => pod_call(stream, Event::RemovePodSandbox, payload)?,
            "Shutdown" => Call::Answer(rpc::answer(stream, &Empty {})),
            other => Call::Answer(rpc::unimplemented(stream, other)),
        })
    }
}

fn pod_call(stream: u32, event: Event, payload: &[u8]) -> Result<Call, NriError> {
    Ok(pod(stream, event, decode::<PodSandboxRequest>(payload)?.pod))
}

fn pod(stream: u32, event: Event, pod: Option<PodSandbox>) -> Call {
    match pod {
        Some(pod) if event != Event::Unknown => Call::Pod(event, pod),
        _ => Call::Answer(rpc::answer(stream, &Empty {})),
    }
}

fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, NriError> {
    M::decode(payload)
        .map_err(|_| NriError::Malformed("a call whose argument is no protobuf of NRI"))
}

/// Tells of a pod, for as long as the runtime waits and a little less: it drops a plugin that is
/// late, and with it the news of every pod after.
async fn tell(events: &impl PodEvents, event: Event, pod: PodSandbox, patience: Duration) {
    let name = format!("{}/{}", pod.namespace, pod.name);
    let told = async {
        match event {
            Event::RunPodSandbox => events.started(pod.into()).await,
            Event::StopPodSandbox | Event::RemovePodSandbox => events.stopped(&pod.uid).await,
            Event::Unknown => {}
        }
    };
    if timeout(patience * 3 / 4, told).await.is_err() {
        tracing::warn!(
            pod = name,
            "the container runtime waits no longer: the pod starts as it is"
        );
    }
}

impl From<PodSandbox> for Sandbox {
    fn from(pod: PodSandbox) -> Self {
        let namespaces = pod.linux.map(|linux| linux.namespaces).unwrap_or_default();
        let netns = namespaces.into_iter().find(|namespace| namespace.r#type == "network");
        Self {
            uid: pod.uid,
            namespace: pod.namespace,
            name: pod.name,
            labels: pod.labels.into_iter().collect(),
            // No path means the host's.
            netns: netns.map(|netns| netns.path).filter(|path| !path.is_empty()).map(Into::into),
            ips: pod.ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
        }
    }
}
