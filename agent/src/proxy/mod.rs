//! Decides per connection: who dialled, where to, how to get there, and what it speaks.
//!
//! Enters: sockets that [`crate::capture`] accepted in a pod's netns. Leaves: the same bytes
//! or requests at the destination's application, and one span a side. Protocols live in
//! [`crate::http`] and [`crate::tunnel`]; what the mesh looks like comes from one
//! [`crate::mesh::Snapshot`] a decision.

mod admission;
mod affinity;
mod authentication;
mod authorization;
mod carried;
mod cut;
mod detect;
mod direction;
mod drain;
mod external;
mod generation;
mod hop;
mod inbound;
mod io;
mod last_words;
mod loops;
mod outbound;
mod pods;
mod refusal;
mod relay;
mod requests;
mod same_node;

use std::{future::poll_fn, pin::pin, sync::Arc, time::Duration};

pub use admission::Admissions;
pub use affinity::Affinity;
pub use detect::Contradictions;
pub use drain::Drain;
pub use external::Channels;
pub use hop::{Hop, NoEndpoint, Way};
pub use io::Io;
pub use pods::{LocalPod, LocalPods};
pub use same_node::SameNode;
use tokio::{net::TcpListener, sync::Notify};

use crate::{
    capture,
    identity::IdentityStore,
    jwt::Issuers,
    limits::{Limit, Limits, is_exhaustion},
    mesh::SnapshotStore,
    telemetry::Telemetry,
    workers::Workers,
};

/// How long an application, or a server outside the mesh, may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What every connection of the node shares.
pub struct Proxy {
    /// What the mesh looks like.
    pub snapshots: Arc<SnapshotStore>,
    /// Certificates of this node's pods.
    pub identity: Arc<IdentityStore>,
    /// Spans and metrics.
    pub telemetry: Telemetry,
    /// This node's enrolled pods.
    pub pods: LocalPods,
    /// Every open connection.
    pub drain: Drain,
    /// Tells the node's own connections from others.
    pub node_sockets: Arc<capture::NodeSockets>,
    /// Told of every client that is no pod's and proved no identity.
    pub unknown_clients: Notify,
    /// The keys of issuers that are elsewhere.
    pub issuers: Arc<Issuers>,
    /// What policy decided.
    pub admissions: Admissions,
    /// What turned out to be something else than HTTP.
    pub contradictions: Contradictions,
    /// Where Services that keep their clients have them.
    pub affinity: Affinity,
    /// How pods of this node reach each other.
    pub same_node: SameNode,
    /// What there is for all pods to share.
    pub limits: Arc<Limits>,
    /// The threads that carry traffic.
    pub workers: Workers,
}

/// Serves the two listeners of an enrolled pod, which are of its home, until the returned handle is
/// dropped, or until they have run dry after another agent took over.
/// Connections already accepted live on until the pod is [released](LocalPod::release).
pub fn serve(
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    outbound: TcpListener,
    inbound: TcpListener,
) -> Serving {
    let mut accepting = tokio::task::JoinSet::new();
    let drain = proxy.drain.clone();
    let outbound = accept(outbound, proxy.clone(), pod.clone(), outbound::connection);
    let inbound = accept(inbound, proxy, pod.clone(), inbound::connection);
    accepting.spawn_on(drain.listener(outbound), pod.home.thread());
    accepting.spawn_on(drain.listener(inbound), pod.home.thread());
    Serving { _accepting: accepting }
}

/// The accept loops of one pod; dropping it closes the pod's listeners.
pub struct Serving {
    _accepting: tokio::task::JoinSet<()>,
}

async fn accept<F>(
    listener: TcpListener,
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    connection: impl Fn(Arc<Proxy>, Arc<LocalPod>, capture::Accepted) -> F + Copy + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut pause = FIRST_PAUSE;
    loop {
        let (mut accepting, mut waited) = (pin!(capture::accept(&listener)), false);
        let accepting = poll_fn(|cx| {
            let accepted = accepting.as_mut().poll(cx);
            waited |= accepted.is_pending();
            accepted
        });
        let accepted = tokio::select! {
            biased;
            accepted = accepting => accepted,
            () = proxy.drain.dry() => return,
        };
        match accepted {
            Ok(accepted) => {
                pause = FIRST_PAUSE;
                let elsewhere = proxy.workers.elsewhere();
                let thread = elsewhere.as_ref().unwrap_or(pod.home.thread());
                let (proxy, pod, moves) = (proxy.clone(), pod.clone(), elsewhere.is_some());
                let drain = proxy.drain.clone();
                // Boxed: each future around it would have room for it twice.
                let carried = Box::pin({
                    let pod = pod.clone();
                    async move {
                        let here = if moves { accepted.moved_here() } else { Ok(accepted) };
                        match here {
                            Ok(accepted) => connection(proxy, pod, accepted).await,
                            Err(error) => {
                                tracing::debug!(pod = %pod.uid, %error, "could not move a connection");
                            }
                        }
                    }
                });
                drain.connection(thread, async move { pod.while_captured(carried).await });
                // One at a time: the kernel may have any number ready, and each has much to do at
                // first.
                if !waited {
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => {
                // Out of file descriptors or memory, or a client gone before it was accepted.
                // Neither gets better by trying again at once.
                if is_exhaustion(&error) {
                    proxy.limits.descriptors.in_need(|| refuse_one(&listener));
                    if proxy.limits.refused(Limit::Descriptors) {
                        tracing::warn!(pod = %pod.uid, %error, "connections are refused: {}", Limit::Descriptors);
                    }
                } else {
                    tracing::debug!(pod = %pod.uid, %error, "could not accept a captured connection");
                }
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
        }
    }
}

/// How long nothing is accepted after accepting failed, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Resets the next connection that waits to be accepted, if one does.
fn refuse_one(listener: &TcpListener) {
    let mut now = std::task::Context::from_waker(std::task::Waker::noop());
    if let std::task::Poll::Ready(Ok((stream, _))) = listener.poll_accept(&mut now) {
        io::reset(&stream);
    }
}
