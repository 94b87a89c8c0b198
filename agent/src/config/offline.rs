//! Snapshots of files that no agent reads: what the mesh would be, were they all there is.
//!
//! Where files leave something open that a running cluster settles, it is taken for granted, which is told:
//! pods get addresses, controllers one pod each, and namespaces that are not among the files are in the
//! mesh.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use super::{
    MeshSettings,
    compile::{Compiler, Facts, Key},
    error::ConfigError,
    facts::{Mode, NamespaceFacts, PodFacts},
    manifest::Manifests,
    shared::Shared,
    template::Template,
    validate::{InputError, files},
    workload,
};
use crate::mesh::{Snapshot, Workload};

/// Where the made-up addresses begin: a block for tests alone (RFC 2544).
const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 1]);

/// Why there is no such snapshot.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The files cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Something in them cannot be obeyed, so that nobody can tell what they come to.
    #[error("{0} (hint: `sluice validate` says more)")]
    Invalid(ConfigError),
}

/// What files come to.
#[derive(Debug)]
pub struct Offline {
    facts: Facts,
    settings: MeshSettings,
    notes: Vec<String>,
}

impl Offline {
    /// Of `paths`: files, directories, and `-` for standard input.
    ///
    /// # Errors
    /// Where something cannot be read or obeyed.
    pub fn read(paths: &[PathBuf], settings: MeshSettings) -> Result<Self, OfflineError> {
        let mut problems = Vec::new();
        let files = files(paths, &mut problems)?;
        let manifests = Manifests::read(&files, &mut problems);
        let mut facts = manifests.facts(&settings, &mut problems);
        let mut notes = Vec::new();
        let mut shared = Shared::default();
        for template in manifests.foreign.iter().filter_map(Template::of) {
            let key: Key = (template.pod.namespace().into(), template.pod.name().into());
            match workload::read(&template.pod, &settings.trust_domain, "", &mut shared) {
                // A controller whose pods were read has made them already.
                Ok(Some(pod)) if has_pods(&facts, &pod.workload) => {}
                Ok(Some(pod)) if !facts.pods.contains_key(&key) => {
                    drop(facts.pods.insert(key, pod));
                }
                Ok(_) => {}
                Err(problem) => problems.push(problem),
            }
        }
        notes.extend(give_addresses(&mut facts));
        notes.extend(enrol_namespaces(&mut facts));
        let offline = Self { facts, settings, notes };
        let mut compiler = Compiler::new(offline.settings.clone());
        compiler.replace(offline.facts.clone());
        compiler.compile();
        let conflicts = compiler.conflicts();
        problems.extend(conflicts.iter().map(|conflict| manifests.conflict(conflict)));
        if problems.is_empty() {
            return Ok(offline);
        }
        problems.sort();
        Err(OfflineError::Invalid(ConfigError::Invalid(problems)))
    }

    /// The mesh as `node` sees it.
    pub fn snapshot(&self, node: &str) -> Arc<Snapshot> {
        let settings = MeshSettings { node: node.into(), ..self.settings.clone() };
        let mut compiler = Compiler::new(settings);
        compiler.replace(self.facts.clone());
        compiler.compile();
        Arc::new(compiler.snapshot().clone())
    }

    /// What was taken for granted.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

fn has_pods(facts: &Facts, of: &Workload) -> bool {
    facts
        .pods
        .iter()
        .any(|((namespace, _), pod)| *namespace == of.namespace && pod.workload.owner == of.owner)
}

/// Gives pods addresses that have none.
fn give_addresses(facts: &mut Facts) -> Option<String> {
    let without: Vec<Key> = facts
        .pods
        .iter()
        .filter(|(_, pod)| pod.addresses().is_empty())
        .map(|(key, _)| key.clone())
        .collect();
    for (number, key) in (FIRST..).zip(&without) {
        let Some(pod) = facts.pods.get_mut(key) else { continue };
        let ip = IpAddr::V4(Ipv4Addr::from_bits(number));
        *pod = with_address(pod, ip);
    }
    (!without.is_empty()).then(|| {
        format!(
            "pods without an address in the files were given one of 198.18.0.0/15 ({} of {}): rules about \
             addresses are judged by that",
            without.len(),
            facts.pods.len()
        )
    })
}

fn with_address(pod: &PodFacts, ip: IpAddr) -> PodFacts {
    if pod.host_network {
        return PodFacts { host_addresses: [ip].into(), ..pod.clone() };
    }
    let workload = Workload { ips: vec![ip], ..(*pod.workload).clone() };
    PodFacts { workload: Arc::new(workload), ..pod.clone() }
}

/// Takes namespaces of which nothing is said to be in the mesh: labels are mostly put on by other means than
/// files.
fn enrol_namespaces(facts: &mut Facts) -> Option<String> {
    let named = |namespace: &Arc<str>| ("".into(), namespace.clone());
    let of_pods: BTreeSet<_> = facts.pods.keys().map(|(namespace, _)| namespace.clone()).collect();
    let unnamed: Vec<_> = of_pods
        .into_iter()
        .filter(|namespace| !facts.namespaces.contains_key(&named(namespace)))
        .collect();
    for namespace in &unnamed {
        let in_the_mesh = NamespaceFacts { mode: Some(Mode::Ambient) };
        facts.namespaces.insert(named(namespace), in_the_mesh);
    }
    (!unnamed.is_empty()).then(|| {
        format!(
            "the files have no Namespace {}: the pods there are taken to be in the mesh",
            unnamed.join(", ")
        )
    })
}
