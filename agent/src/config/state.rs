//! How a source is doing.

use std::time::SystemTime;

/// How a source is doing.
#[derive(Clone, Debug)]
pub struct SourceState {
    /// When the snapshot in force was read.
    pub loaded_at: SystemTime,
    /// Where it is from.
    pub origin: Origin,
    /// What is said and not in force, and why.
    pub error: Option<String>,
    /// How many objects are not in force as they are.
    pub rejected: usize,
    /// The watches on the API server, a kind each; none where files are read.
    pub watches: Vec<WatchState>,
}

/// Where a snapshot is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing was read yet.
    Nowhere,
    /// A directory of files.
    Files,
    /// What an agent saved on this node, some time ago. Pods it does not name may exist.
    Saved,
    /// The API server.
    Cluster,
}

/// One watch on the API server.
#[derive(Clone, Debug)]
pub struct WatchState {
    /// The kind it watches, in plural: `pods`.
    pub kind: &'static str,
    /// Whether it is up.
    pub connected: bool,
    /// The server does not have the kind, which is not installed. It is asked again now and then.
    pub absent: bool,
    /// When the server last said something, bookmarks included; `None` before it ever did.
    pub heard_at: Option<SystemTime>,
    /// How often it had to start again because of an error.
    pub restarts: u64,
    /// How often everything was listed, the first time included.
    pub lists: u64,
    /// Why it is down.
    pub error: Option<String>,
}

impl SourceState {
    pub(super) fn new(origin: Origin) -> Self {
        Self { loaded_at: SystemTime::now(), origin, error: None, rejected: 0, watches: Vec::new() }
    }

    /// Of a source with a watch on each of `kinds`, none of which is up yet.
    pub(super) fn watching(kinds: &[&'static str]) -> Self {
        let watch = |&kind| WatchState {
            kind,
            connected: false,
            absent: false,
            heard_at: None,
            restarts: 0,
            lists: 0,
            error: None,
        };
        Self { watches: kinds.iter().map(watch).collect(), ..Self::new(Origin::Nowhere) }
    }

    /// Takes the result of a load in: whether it published something, or why it failed.
    pub(super) fn note(&mut self, result: Result<bool, String>) {
        match result {
            Ok(published) => {
                if published {
                    self.loaded_at = SystemTime::now();
                }
                self.report(None);
            }
            Err(error) => self.report(Some(error)),
        }
    }

    /// Replaces what is not in force, and says so where that is news.
    pub(super) fn report(&mut self, error: Option<String>) {
        match &error {
            Some(error) if self.error.as_ref() != Some(error) => {
                tracing::error!(error, "the newest configuration is not in force");
            }
            None if self.error.is_some() => {
                tracing::info!("the newest configuration is in force again");
            }
            _ => {}
        }
        self.error = error;
    }
}

impl Origin {
    /// In words, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nowhere => "nothing yet",
            Self::Files => "files",
            Self::Saved => "the copy saved on this node",
            Self::Cluster => "the API server",
        }
    }
}
