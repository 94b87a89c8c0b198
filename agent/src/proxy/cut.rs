//! Why the agent itself puts an end to what it carries.
//!
//! Whatever carries a connection or a request is dropped half way when it is cut, and has to say why in its
//! span. It asks here, when it is dropped: [`Cause::why`]. What a drain or a pod's leaving cuts is known by
//! itself; whoever cuts for a reason of its own says so first, with [`Cut::because`]. The end of a drain
//! waits for all of them.

use std::{
    future::pending,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{LocalPod, Proxy};
use crate::telemetry::{Cause, Failure};

/// What may end one connection, and all that it carries, before its ends want. Clones are of one
/// connection.
#[derive(Clone)]
pub(super) struct Cut {
    connection: Arc<Connection>,
    /// The server's, where it is on this node too.
    server: Option<Arc<LocalPod>>,
}

struct Connection {
    proxy: Arc<Proxy>,
    pod: Arc<LocalPod>,
    because: OnceLock<Failure>,
    /// How many there are under way.
    requests: AtomicUsize,
    /// Whoever may have to say why is waited for.
    _carried: TaskTrackerToken,
}

impl Cut {
    /// Of a connection that `pod` has, as client or as server.
    pub(super) fn of(proxy: &Arc<Proxy>, pod: &Arc<LocalPod>) -> Self {
        let connection = Connection {
            proxy: proxy.clone(),
            pod: pod.clone(),
            because: OnceLock::new(),
            requests: AtomicUsize::new(0),
            _carried: proxy.drain.carries(),
        };
        Self { connection: Arc::new(connection), server: None }
    }

    /// Of what the connection carries to `server`, a pod of this node.
    pub(super) fn with(&self, server: &Arc<LocalPod>) -> Self {
        Self { connection: self.connection.clone(), server: Some(server.clone()) }
    }

    /// Says that it is about to be cut, for a reason that cannot be seen here. The first counts.
    pub(super) fn because(&self, why: Failure) {
        let _ = self.connection.because.set(why);
    }

    /// A request is under way on it, until what is returned is dropped.
    pub(super) fn request(&self) -> UnderWay {
        self.connection.requests.fetch_add(1, Relaxed);
        UnderWay(self.connection.clone())
    }

    /// Whether no request is under way on it, so that nothing would be cut but the next.
    pub(super) fn is_idle(&self) -> bool {
        self.connection.requests.load(Relaxed) == 0
    }

    /// Waits until it is cut by what is known here. For whoever has more to do then than to be dropped.
    pub(super) async fn happens(&self) -> Failure {
        let Connection { proxy, pod, .. } = &*self.connection;
        let server_left = async {
            match &self.server {
                Some(server) => server.left().await,
                None => pending().await,
            }
        };
        tokio::select! {
            why = pod.left() => why,
            why = server_left => why,
            () = proxy.drain.cut() => Failure::DrainTimeout,
        }
    }

    /// For a span.
    pub(super) fn cause(&self) -> Arc<dyn Cause> {
        Arc::new(self.clone())
    }
}

/// A request on its way.
pub(super) struct UnderWay(Arc<Connection>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

impl Cause for Cut {
    /// Why it was cut, or is being cut; `None` where one of its ends broke off.
    fn why(&self) -> Option<Failure> {
        let Connection { proxy, pod, because, .. } = &*self.connection;
        if let Some(why) = because.get() {
            return Some(*why);
        }
        if pod.has_left() || self.server.as_ref().is_some_and(|server| server.has_left()) {
            return Some(Failure::PodLeft);
        }
        proxy.drain.has_cut().then_some(Failure::DrainTimeout)
    }
}
