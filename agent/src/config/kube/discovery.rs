//! Which groups of kinds the API server has: what it takes to know that policies may exist that
//! the agent cannot read.

use std::time::Duration;

use kube::Client;
use tokio::{
    sync::mpsc::Sender,
    time::{sleep, timeout},
};

use super::{backoff::Backoff, tables::Change};
use crate::config::network_policy::is_of_cni;

/// How often it is asked again. A group is there before the first object of it; every account may
/// ask (`system:discovery`), and the answer is a few KiB.
const AGAIN: Duration = Duration::from_secs(60);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);

/// Tells whether there are kinds of policies that the CNI alone understands, whenever that
/// changes, until nobody listens any more.
pub(super) async fn follow(client: Client, changes: Sender<Change>) {
    let mut backoff = Backoff::new();
    let mut former: Option<Vec<String>> = None;
    loop {
        let wait = match timeout(ANSWER, client.list_api_groups()).await {
            Ok(Ok(list)) => {
                backoff.reset();
                let groups = list.groups.into_iter().map(|group| group.name);
                let groups: Vec<_> = groups.filter(|name| is_of_cni(name)).collect();
                if former.as_ref() != Some(&groups) {
                    tracing::info!(?groups, "policies that only the CNI understands");
                    if changes.send(Change::CniPolicies(!groups.is_empty())).await.is_err() {
                        return;
                    }
                    former = Some(groups);
                }
                AGAIN.mul_f64(rand::random_range(0.9..1.1))
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "the API server does not tell its groups");
                backoff.next()
            }
            Err(_) => backoff.next(),
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = changes.closed() => return,
        }
    }
}
