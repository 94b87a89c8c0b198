//! What would become of a connection or a request, and why.
//!
//! Enters: snapshots, as nodes see the mesh, and a [`Question`]. Leaves: an [`Explanation`], or what is not
//! clear about the question. It decides nothing itself: who may pass is asked of
//! [`Authorization::decide`](crate::policy::Authorization::decide), the way of a connection of the same
//! functions as traffic goes by. It knows no sockets and changes nothing; whether the snapshots are an
//! agent's or made of files is for others to know.

mod answer;
mod judge;
mod parties;
mod policies;
mod question;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use answer::{Explanation, Judgement, Outcome};
pub use policies::{Listing, Meant, PodPolicies, PolicyInForce, list};
pub use question::{Ask, Question};

use crate::mesh::{Destination, Snapshot};
use judge::Judge;
use parties::{Dialled, Source};

/// What there is to look at.
pub struct View<'a> {
    /// The mesh as the client's node sees it.
    pub snapshot: &'a Snapshot,
    /// The mesh as the node of that name sees it, where that is known. Policies are known of a node's own
    /// pods alone.
    pub of_node: &'a dyn Fn(&str) -> Option<Arc<Snapshot>>,
    /// Whatever was taken for granted to make it.
    pub notes: &'a [String],
}

/// Why a question has no answer, with a hint.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unclear(String);

/// Answers `question`.
///
/// # Errors
/// Where it names what is not there, or not enough.
pub fn explain(view: &View<'_>, question: &Question) -> Result<Explanation, Unclear> {
    let source = Source::resolve(view.snapshot, &question.source)?;
    let dialled = Dialled::resolve(view.snapshot, &source, &question.destination)?;
    let mut notes = view.notes.to_vec();
    notes.extend(source.note.clone());
    let endpoints = dialled.endpoints(&source);
    let judge = Judge { view, source: &source, dialled: &dialled, ask: question.ask.as_ref() };
    let mut judgements: Vec<Judgement> = Vec::new();
    for endpoint in &endpoints {
        let judgement = judge.judge(endpoint)?;
        // Pods of one kind are mostly treated alike.
        match judgements.iter_mut().find(|known| known.is_like(&judgement)) {
            Some(known) => known.endpoints.extend(judgement.endpoints),
            None => judgements.push(judgement),
        }
    }
    let service = match &dialled.destination {
        Destination::Service(service, _) | Destination::Workload(_, Some((service, _))) => {
            Some(service.id.to_string())
        }
        Destination::Workload(_, None) | Destination::Unknown => None,
    };
    Ok(Explanation {
        notes,
        source: source.words.clone(),
        destination: dialled.words.clone(),
        service,
        nowhere: endpoints.is_empty().then(|| dialled.why_nowhere()),
        judgements,
    })
}
