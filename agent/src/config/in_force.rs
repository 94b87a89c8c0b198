//! What the policies of a kind come to for each workload.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::Arc,
};

use super::{
    compile::Table,
    facts::{Selects, ServiceFacts},
    selection::Selection,
};
use crate::mesh::RootNamespace;

/// The policies of a workload, put together.
pub(super) trait Together: Debug + Sized {
    /// One of them.
    type Policy: Debug;

    /// What holds where there is none.
    fn none() -> Arc<Self>;

    /// What holds by those that select a workload, in order.
    fn of(policies: Vec<Arc<Self::Policy>>) -> Self;

    fn policies(&self) -> &[Arc<Self::Policy>];
}

/// All policies of a kind, and what was put together of them.
#[derive(Debug)]
pub(super) struct InForce<T: Together> {
    policies: Selection<T::Policy>,
    /// By the addresses of the policies, which are held above.
    known: HashMap<Vec<usize>, Arc<T>>,
}

impl<T: Together> Default for InForce<T> {
    fn default() -> Self {
        Self { policies: Selection::default(), known: HashMap::new() }
    }
}

impl<T: Together> Clone for InForce<T> {
    fn clone(&self) -> Self {
        Self { policies: self.policies.clone(), known: self.known.clone() }
    }
}

impl<T: Together> InForce<T> {
    /// Of policies with their namespaces and whom they select. Those of `root` speak for all namespaces.
    pub(super) fn of_all<'a>(
        all: impl Iterator<Item = (&'a Arc<str>, &'a Selects, &'a Arc<T::Policy>)>,
        root: &RootNamespace,
    ) -> Self
    where
        T::Policy: 'a,
    {
        let mut policies = Selection::new(root);
        all.for_each(|(namespace, selects, policy)| policies.add(namespace, selects, policy));
        Self { policies, ..Self::default() }
    }

    /// Whether one of `namespace` is about the pods of Services.
    pub(super) fn speak_of_services(&self, namespace: &str) -> bool {
        self.policies.speaks_of_services(namespace)
    }

    /// What is in force for a workload of `namespace` with `labels`, for which `former` was. Most have it
    /// in common with others, and with what they had before.
    pub(super) fn of(
        &mut self,
        namespace: &Arc<str>,
        labels: &BTreeMap<String, String>,
        services: &Table<ServiceFacts>,
        former: &Arc<T>,
    ) -> Arc<T> {
        let policies = self.policies.of(namespace, labels, services);
        if policies.is_empty() {
            return T::none();
        }
        let key = policies.iter().map(|policy| Arc::as_ptr(policy).addr()).collect();
        let known =
            self.known.entry(key).or_insert_with(|| match are_same(former.policies(), &policies) {
                true => former.clone(),
                false => Arc::new(T::of(policies)),
            });
        known.clone()
    }
}

/// Whether these are the very same policies.
fn are_same<P>(before: &[Arc<P>], now: &[Arc<P>]) -> bool {
    before.len() == now.len() && before.iter().zip(now).all(|(one, other)| Arc::ptr_eq(one, other))
}
