//! The source that reads Kubernetes YAML from a directory, and follows its changes.

use std::{path::Path, sync::Arc, time::SystemTime};

use tokio::{sync::watch, task::JoinHandle};

use super::{compile::Compiled, directory, error::ConfigError, manifest::Manifests, watch::Watch};
use crate::mesh::{SnapshotStore, TrustDomain};

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

/// How a source is doing.
#[derive(Clone, Debug)]
pub struct SourceState {
    /// When the snapshot in force was read.
    pub loaded_at: SystemTime,
    /// Why the newest change is not in force, if it is not.
    pub error: Option<String>,
}

impl FileSource {
    /// Reads `dir`, publishes the first snapshot into `store`, and follows changes from then
    /// on. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the directory or anything in it cannot be read or obeyed, or cannot be watched.
    pub fn start(
        dir: &Path,
        trust_domain: TrustDomain,
        store: Arc<SnapshotStore>,
    ) -> Result<Self, ConfigError> {
        let watch =
            Watch::new(dir).map_err(|cause| ConfigError::Watch { dir: dir.to_owned(), cause })?;
        let loader = Arc::new(Loader { dir: dir.into(), trust_domain, store, watch });
        loader.load()?;
        let (publish, state) =
            watch::channel(SourceState { loaded_at: SystemTime::now(), error: None });
        Ok(Self { state, following: tokio::spawn(follow(loader, publish)) })
    }

    /// How the source is doing right now.
    pub fn state(&self) -> SourceState {
        self.state.borrow().clone()
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

impl SourceState {
    /// Takes the result of a load in: whether it published something, or why it failed.
    fn note(&mut self, result: Result<bool, String>) {
        match result {
            Ok(published) => {
                if published {
                    self.loaded_at = SystemTime::now();
                }
                if self.error.take().is_some() {
                    tracing::info!("the newest configuration is in force again");
                }
            }
            Err(error) => {
                if self.error.as_ref() != Some(&error) {
                    tracing::error!(error, "the newest configuration is not in force");
                }
                self.error = Some(error);
            }
        }
    }
}

/// Reads the directory into the store.
#[derive(Debug)]
struct Loader {
    dir: Box<Path>,
    trust_domain: TrustDomain,
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
        let manifests = Manifests::read(&files, &mut problems);
        let former = self.store.load();
        let compiled = Compiled::new(&manifests, &self.trust_domain, &former, &mut problems);
        if !problems.is_empty() {
            problems.sort();
            return Err(ConfigError::Invalid(problems));
        }
        if former.version > 0 && compiled.is_in(&former) {
            return Ok(false);
        }
        for warning in &compiled.warnings {
            tracing::warn!("{warning}");
        }
        let snapshot = compiled.snapshot(self.trust_domain.clone(), former.version + 1);
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

#[cfg(test)]
mod tests;
