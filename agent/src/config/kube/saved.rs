//! The facts as they are saved on the node.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    config::{
        MeshSettings,
        compile::{Facts, Key, Table},
        facts::{
            AuthorizationPolicyFacts, MeshConfigFacts, NamespaceFacts, NetworkPolicyFacts,
            PeerAuthenticationFacts, PodFacts, RequestAuthenticationFacts, ServiceFacts,
            SliceFacts,
        },
    },
    mesh::TrustDomain,
};

/// Counts up when the form changes: what another version wrote is not guessed at.
const FORMAT: u32 = 7;

/// Where the facts are saved, and for which mesh.
#[derive(Clone, Debug)]
pub(super) struct SavedFacts {
    path: PathBuf,
    trust_domain: TrustDomain,
    node: Arc<str>,
}

/// The file, with lists of each kind that are read or written.
#[derive(Deserialize, Serialize)]
struct Saved<N, P, S, E, A, W, Z, R, M> {
    format: u32,
    /// Identities hold it, so that the facts are of use in this one only.
    trust_domain: String,
    /// Facts say what is on it.
    node: String,
    /// Unix time.
    saved_at: u64,
    namespaces: N,
    pods: P,
    services: S,
    slices: E,
    peer_authentications: A,
    network_policies: W,
    authorization_policies: Z,
    request_authentications: R,
    mesh_config: M,
    cni_policies: Option<bool>,
}

type Read = Saved<
    Vec<(Key, NamespaceFacts)>,
    Vec<(Key, PodFacts)>,
    Vec<(Key, ServiceFacts)>,
    Vec<(Key, SliceFacts)>,
    Vec<(Key, PeerAuthenticationFacts)>,
    Vec<(Key, NetworkPolicyFacts)>,
    Vec<(Key, AuthorizationPolicyFacts)>,
    Vec<(Key, RequestAuthenticationFacts)>,
    Vec<(Key, MeshConfigFacts)>,
>;

/// A table, written entry by entry.
struct Written<'a, F>(&'a Table<F>);

impl<F: Serialize> Serialize for Written<'_, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter())
    }
}

/// What is read first, to see whether the rest can be.
#[derive(Deserialize)]
struct Head {
    format: u32,
    #[serde(default)]
    trust_domain: String,
    #[serde(default)]
    node: String,
}

impl SavedFacts {
    pub(super) fn new(state_dir: &Path, settings: &MeshSettings) -> Self {
        let MeshSettings { trust_domain, node, .. } = settings.clone();
        Self { path: state_dir.join("snapshot.json"), trust_domain, node }
    }

    /// Where they are.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The facts and when they were saved; `None` when there are none.
    ///
    /// # Errors
    /// When what is there is of no use, in words.
    pub(super) fn load(&self) -> Result<Option<(Facts, SystemTime)>, String> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let head: Head = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        if head.format != FORMAT {
            return Err(format!("it has format {}, and this agent reads {FORMAT}", head.format));
        }
        if head.trust_domain != self.trust_domain.as_str() {
            let (saved, ours) = (head.trust_domain, &self.trust_domain);
            return Err(format!("it is of the trust domain {saved}, and the agent is of {ours}"));
        }
        if head.node != *self.node {
            return Err(format!("it is of the node {}, and this is {}", head.node, self.node));
        }
        let saved: Read =
            serde_json::from_reader(BufReader::new(&*text)).map_err(|error| error.to_string())?;
        let facts = Facts {
            namespaces: saved.namespaces.into_iter().collect(),
            pods: saved.pods.into_iter().collect(),
            services: saved.services.into_iter().collect(),
            slices: saved.slices.into_iter().collect(),
            peer_authentications: saved.peer_authentications.into_iter().collect(),
            network_policies: saved.network_policies.into_iter().collect(),
            authorization_policies: saved.authorization_policies.into_iter().collect(),
            request_authentications: saved.request_authentications.into_iter().collect(),
            mesh_config: saved.mesh_config.into_iter().collect(),
            cni_policies: saved.cni_policies,
        };
        Ok(Some((facts, SystemTime::UNIX_EPOCH + Duration::from_secs(saved.saved_at))))
    }

    /// Saves `facts`: all of it, or what was saved before stays. Takes as long as the disk does.
    pub(super) fn save(&self, facts: &Facts) -> io::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let saved = Saved {
            format: FORMAT,
            trust_domain: self.trust_domain.to_string(),
            node: self.node.to_string(),
            saved_at: now.map_or(0, |since| since.as_secs()),
            namespaces: Written(&facts.namespaces),
            pods: Written(&facts.pods),
            services: Written(&facts.services),
            slices: Written(&facts.slices),
            peer_authentications: Written(&facts.peer_authentications),
            network_policies: Written(&facts.network_policies),
            authorization_policies: Written(&facts.authorization_policies),
            request_authentications: Written(&facts.request_authentications),
            mesh_config: Written(&facts.mesh_config),
            cni_policies: facts.cni_policies,
        };
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // While one agent takes over from another, two of them save here.
        let _alone = Flock::lock(File::open(folder)?, FlockArg::LockExclusive)
            .map_err(|(_, error)| io::Error::from(error))?;
        let draft = self.path.with_extension("draft");
        let file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        let mut file = BufWriter::new(file);
        serde_json::to_writer(&mut file, &saved)?;
        // Before the name leads to it: after a power cut it is whole or not there.
        file.into_inner()?.sync_all()?;
        fs::rename(&draft, &self.path)
    }
}
