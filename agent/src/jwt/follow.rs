//! Keeps keys fresh for as long as a pod of this node has a use for them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Issuers, RemoteSource,
    fetch::{Client, Resolve},
    issuers::Held,
};

/// Asks for the keys of sources, each by a task of its own.
pub struct Following {
    issuers: Arc<Issuers>,
    client: Arc<Client>,
    tasks: HashMap<RemoteSource, AbortOnDropHandle<()>>,
}

impl Following {
    /// Of none yet.
    pub fn new(issuers: Arc<Issuers>, resolve: Arc<dyn Resolve>) -> Self {
        let client = Client { resolve, roots: None, allows_loopback: false };
        Self::by(issuers, client)
    }

    pub(super) fn by(issuers: Arc<Issuers>, client: Client) -> Self {
        Self { issuers, client: Arc::new(client), tasks: HashMap::new() }
    }

    /// Asks for the keys of these from now on, and of no others. To be called inside a runtime that
    /// carries no traffic.
    pub fn want<'a>(&mut self, sources: impl Iterator<Item = &'a RemoteSource>) {
        let mut tasks = HashMap::new();
        for source in sources {
            if tasks.contains_key(source) {
                continue;
            }
            let task = self.tasks.remove(source).unwrap_or_else(|| {
                let (issuers, client) = (self.issuers.clone(), self.client.clone());
                let source = source.clone();
                AbortOnDropHandle::new(tokio::spawn(keep(issuers, client, source)))
            });
            tasks.insert(source.clone(), task);
        }
        for (gone, _) in std::mem::replace(&mut self.tasks, tasks) {
            self.issuers.forget(&gone);
        }
    }
}

/// Asks for the keys of `source` now, whenever they may be other ones, and when a token has a key that is
/// not known.
async fn keep(issuers: Arc<Issuers>, client: Arc<Client>, source: RemoteSource) {
    let held = issuers.held(&source);
    let mut told: Option<String> = None;
    loop {
        held.begins();
        let answer = client.keys(&source).await;
        issuers.count(answer.is_ok());
        let error = answer.as_ref().err().cloned();
        match &error {
            Some(error) if told.as_ref() != Some(error) => {
                tracing::warn!(source = %source, error, "the keys of an issuer are not to be had");
            }
            None if told.is_some() => {
                tracing::info!(source = %source, "the keys of an issuer are back")
            }
            _ => {}
        }
        told = error;
        let pause = held.answered(answer).mul_f64(rand::random_range(0.9..1.1));
        wait(&held, pause).await;
    }
}

/// Until `pause` is over, or somebody has asked: who asks has looked whether it is too soon.
async fn wait(held: &Held, pause: Duration) {
    let until = Instant::now() + pause;
    let _ = timeout_at(until, held.wanted.notified()).await;
}
