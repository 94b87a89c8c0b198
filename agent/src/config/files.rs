//! The source that reads Kubernetes YAML from a directory, and follows its changes.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::{Pod, Service};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    MeshSettings, Origin, SourceState,
    compile::Compiler,
    directory::{self, File},
    error::{ConfigError, Problem},
    manifest::Manifests,
    object::named,
    watch::Watch,
};
use crate::{essential::Essential, mesh::SnapshotStore};

/// Keeps a [`SnapshotStore`] what a directory of Kubernetes YAML says; until it is dropped.
///
/// The whole directory is one configuration: while anything in it is wrong, nothing of the
/// newest change is in force and the last good snapshot stays. What a reload sees of a file
/// that is being written is partial; who replaces files by renaming over them, as editors
/// and Kubernetes' ConfigMap volumes do, never meets that.
#[derive(Debug)]
pub struct FileSource {
    state: watch::Receiver<SourceState>,
    following: JoinHandle<()>,
}

impl FileSource {
    /// Reads `dir`, publishes the first snapshot into `store`, and follows changes from then
    /// on. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the directory or anything in it cannot be read or obeyed, or cannot be watched.
    pub fn start(
        dir: &Path,
        settings: MeshSettings,
        store: Arc<SnapshotStore>,
        essential: &Essential,
    ) -> Result<Self, ConfigError> {
        let watch =
            Watch::new(dir).map_err(|cause| ConfigError::Watch { dir: dir.to_owned(), cause })?;
        let (dir, compiler) = (dir.into(), Mutex::new(Compiler::new(settings.clone())));
        let loader = Arc::new(Loader { dir, settings, compiler, store, watch });
        loader.load()?;
        let (publish, state) = watch::channel(SourceState::new(Origin::Files));
        let following = essential.spawn("following the directory", follow(loader, publish));
        Ok(Self { state, following })
    }

    /// How the source is doing.
    pub(super) fn state(&self) -> watch::Receiver<SourceState> {
        self.state.clone()
    }
}

impl Drop for FileSource {
    fn drop(&mut self) {
        self.following.abort();
    }
}

/// Loads again after each change.
async fn follow(loader: Arc<Loader>, state: watch::Sender<SourceState>) {
    loop {
        if let Err(error) = loader.watch.changed().await {
            let error =
                format!("changes are no longer followed: {error} (hint: restart the agent)");
            tracing::error!(error, "configuration");
            state.send_modify(|state| state.error = Some(error));
            return;
        }
        let loading = loader.clone();
        let result = match tokio::task::spawn_blocking(move || loading.load()).await {
            Ok(Ok(published)) => Ok(published),
            Ok(Err(error)) => Err(error.to_string()),
            // Only a runtime that shuts down cancels it.
            Err(ended) if ended.is_cancelled() => return,
            Err(panic) => Err(format!("reading the configuration failed: {panic}")),
        };
        state.send_modify(|state| state.note(result));
    }
}

/// Reads the directory into the store.
#[derive(Debug)]
struct Loader {
    dir: Box<Path>,
    settings: MeshSettings,
    /// What is in force; one load at a time has it.
    compiler: Mutex<Compiler>,
    store: Arc<SnapshotStore>,
    watch: Watch,
}

impl Loader {
    /// Reads the directory and publishes what it says if that is news; whether it was.
    fn load(&self) -> Result<bool, ConfigError> {
        let unwatched = |cause| ConfigError::Watch { dir: self.dir.to_path_buf(), cause };
        self.watch.begin().map_err(unwatched)?;
        let mut problems = Vec::new();
        let files = directory::read(&self.dir, |file| self.watch.file(file), &mut problems)?;
        let mut compiler = self.compiler.lock().unwrap_or_else(PoisonError::into_inner);
        // A copy shares what neither changes; this one is in force until the other is known to be good.
        let mut next = compiler.clone();
        let (changed, warnings) = compile(&files, &self.settings, &mut next, &mut problems);
        if !problems.is_empty() {
            problems.sort();
            return Err(ConfigError::Invalid(problems));
        }
        *compiler = next;
        let former = self.store.load();
        if former.version > 0 && !changed {
            return Ok(false);
        }
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let mut snapshot = compiler.snapshot().clone();
        (snapshot.version, snapshot.complete) = (former.version + 1, true);
        tracing::info!(
            version = snapshot.version,
            workloads = snapshot.workloads().len(),
            services = snapshot.services().len(),
            "configuration in force"
        );
        self.store.publish(snapshot);
        Ok(true)
    }
}

/// Compiles `files` into what `compiler` knows; whether that changed anything, and what is legal but
/// probably not meant. Whatever cannot be obeyed is added to `problems`.
pub(super) fn compile(
    files: &[File],
    settings: &MeshSettings,
    compiler: &mut Compiler,
    problems: &mut Vec<Problem>,
) -> (bool, Vec<String>) {
    let manifests = Manifests::read(files, problems);
    problems.extend(manifests.foreign.iter().map(|foreign| foreign.problem.clone()));
    compiler.replace(manifests.facts(settings, problems));
    let changed = compiler.compile();
    let conflicts = compiler.conflicts();
    problems.extend(conflicts.iter().map(|conflict| manifests.conflict(conflict)));
    let facts = compiler.facts();
    let unaddressed = facts.pods.iter().filter(|(_, pod)| pod.addresses().is_empty());
    let unaddressed = unaddressed.map(|((namespace, name), _)| {
        format!("{} is left out: no status.podIPs", named::<Pod>(namespace, name))
    });
    let unassigned = facts.services.iter().filter(|(_, service)| service.lacks_vip);
    let unassigned = unassigned.map(|((namespace, name), _)| {
        format!(
            "{} has no spec.clusterIP, and nothing assigns one to a file: it is reached by its \
             pods' addresses alone",
            named::<Service>(namespace, name)
        )
    });
    (changed, unaddressed.chain(unassigned).collect())
}

#[cfg(test)]
mod tests;
