//! The source that watches an API server.
//!
//! Eight watches, for namespaces, pods, Services, EndpointSlices, PeerAuthentications,
//! NetworkPolicies, AuthorizationPolicies and RequestAuthentications, turn each object into facts as
//! it arrives and let go of it; beside them the server is asked which kinds of policies it has. Their
//! changes meet in one place, which gathers those that come together, compiles what they change, publishes the snapshot and now and then saves
//! the facts on the node.
//! An agent that starts while the API server is gone goes on from there.

mod addresses;
mod arrival;
mod backoff;
mod discovery;
mod gather;
mod kinds;
mod said;
mod saved;
mod tables;
#[cfg(test)]
mod tests;
mod watch;

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::FutureExt;
use kube::{Client, Config};
use tokio::{
    sync::{mpsc, watch::Receiver, watch::Sender},
    task::JoinSet,
};

use super::{
    ConfigError, MeshSettings, SourceState,
    facts::{
        AuthorizationPolicyFacts, MeshConfigFacts, NamespaceFacts, NetworkPolicyFacts,
        PeerAuthenticationFacts, PodFacts, RequestAuthenticationFacts, ServiceFacts, SliceFacts,
    },
};
use crate::{causes::causes, essential::Essential, mesh::SnapshotStore};
pub use addresses::{Membership, PodAddresses};
use gather::Gather;
use kinds::{Kind, Reader};
use saved::SavedFacts;
use watch::Watch;

/// How long the API server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Changes on their way from the watches to the one place; watches wait while there are more.
const CHANGES: usize = 1024;

/// Keeps a [`SnapshotStore`] what an API server says; until it is dropped.
///
/// Nothing is published before everything was listed once, or the copy saved on this node was
/// read. An object that cannot be obeyed is reported, and its last good version stays in force.
#[derive(Debug)]
pub struct KubeSource {
    state: Receiver<SourceState>,
    told: mpsc::UnboundedSender<addresses::Told>,
    _following: JoinSet<()>,
}

impl KubeSource {
    /// A client of the API server that KUBECONFIG names, or of the cluster the agent is in.
    ///
    /// # Errors
    /// When there is neither, or what there is cannot be read. Whether the server answers is not
    /// asked.
    pub async fn client() -> Result<Client, ConfigError> {
        let failed = |error: &dyn std::error::Error| ConfigError::Cluster { cause: causes(error) };
        let mut config = Config::infer().await.map_err(|error| failed(&error))?;
        config.connect_timeout = Some(CONNECT);
        Client::try_from(config).map_err(|error| failed(&error))
    }

    /// Starts watching. To be called inside a tokio runtime. `state_dir` is where the facts are
    /// saved.
    pub fn start(
        client: Client,
        settings: MeshSettings,
        state_dir: &Path,
        store: Arc<SnapshotStore>,
        essential: &Essential,
    ) -> Self {
        let (report, state) = tokio::sync::watch::channel(SourceState::watching(&tables::KINDS));
        let (changes, arriving) = mpsc::channel(CHANGES);
        let (told, telling) = mpsc::unbounded_channel();
        let mut following = JoinSet::new();
        let saved = SavedFacts::new(state_dir, &settings);
        let gather = Gather::new(saved, settings.clone(), store, report.clone());
        following.spawn(essential.task("making snapshots", gather.run(arriving, telling)));
        let discovering = discovery::follow(client.clone(), changes.clone());
        following.spawn(essential.task("asking which policies there are", discovering));
        let reader = Reader::new(settings);
        let watching = Watching { client, reader, changes, report };
        let mut watch = |task| following.spawn(essential.task("watching the API server", task));
        watch(watching.of::<NamespaceFacts>(0).boxed());
        watch(watching.of::<PodFacts>(1).boxed());
        watch(watching.of::<ServiceFacts>(2).boxed());
        watch(watching.of::<SliceFacts>(3).boxed());
        watch(watching.of::<PeerAuthenticationFacts>(4).boxed());
        watch(watching.of::<NetworkPolicyFacts>(5).boxed());
        watch(watching.of::<AuthorizationPolicyFacts>(6).boxed());
        watch(watching.of::<RequestAuthenticationFacts>(7).boxed());
        watch(watching.of::<MeshConfigFacts>(8).boxed());
        Self { state, told, _following: following }
    }

    /// Takes addresses that the API server does not tell yet.
    pub fn addresses(&self) -> PodAddresses {
        PodAddresses { told: self.told.clone(), state: self.state.clone() }
    }

    /// How the source is doing.
    pub(super) fn state(&self) -> Receiver<SourceState> {
        self.state.clone()
    }
}

/// What the watches have in common.
struct Watching {
    client: Client,
    reader: Reader,
    changes: mpsc::Sender<tables::Change>,
    report: Sender<SourceState>,
}

impl Watching {
    /// The watch of one kind, reported as number `index`.
    fn of<F: Kind>(&self, index: usize) -> impl Future<Output = ()> + Send + use<F> {
        let reader = self.reader.clone();
        let reporter = watch::Reporter::new(self.report.clone(), index);
        Watch::<F>::new(self.client.clone(), self.changes.clone(), reader, reporter).follow()
    }
}
