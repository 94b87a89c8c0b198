//! A total, and what each holder has of it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// A total of something, which many share.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    /// What each holder may have even when nothing is free.
    guaranteed: u64,
    used: AtomicU64,
}

/// One in so many of a total is guaranteed to each holder. On a node of 110 pods, the most that
/// the kubelet takes by default, guaranteed parts can exceed the total by less than a half.
const GUARANTEED: u64 = 500;

/// What one holder has of a budget.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    held: AtomicU64,
}

/// Something taken from a share; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    share: Arc<Share>,
    amount: u64,
}

impl Budget {
    /// All of it is free.
    pub fn new(total: u64) -> Arc<Self> {
        let guaranteed = total.div_ceil(GUARANTEED);
        Arc::new(Self { total, guaranteed, used: AtomicU64::new(0) })
    }

    /// A holder that has nothing yet.
    pub fn share(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share { budget: self.clone(), held: AtomicU64::new(0) })
    }

    /// What all holders have together.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// What there is.
    pub fn total(&self) -> u64 {
        self.total
    }
}

impl Share {
    /// Takes `amount`, unless the holder would then have more than is left for all others.
    ///
    /// Counted first and asked then, so that those who ask at once cannot all be let in by the
    /// same free room. At worst one of them is refused who would have fit.
    pub fn take(self: &Arc<Self>, amount: u64) -> Option<Permit> {
        let permit = self.count(amount);
        let used = self.budget.used.load(Relaxed);
        let held = self.held.load(Relaxed);
        let Budget { total, guaranteed, .. } = &*self.budget;
        let shared = used <= *total && held <= total - used + amount;
        (shared || held <= *guaranteed).then_some(permit)
    }

    /// What the holder has.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// What is left for everybody.
    pub fn free(&self) -> u64 {
        self.budget.total.saturating_sub(self.budget.used())
    }

    /// What the holder may have at least.
    pub fn guaranteed(&self) -> u64 {
        self.budget.guaranteed
    }

    fn count(self: &Arc<Self>, amount: u64) -> Permit {
        self.budget.used.fetch_add(amount, Relaxed);
        self.held.fetch_add(amount, Relaxed);
        Permit { share: self.clone(), amount }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.share.held.fetch_sub(self.amount, Relaxed);
        self.share.budget.used.fetch_sub(self.amount, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take_all(share: &Arc<Share>) -> Vec<Permit> {
        std::iter::from_fn(|| share.take(1)).collect()
    }

    #[test]
    fn one_holder_gets_half_and_leaves_the_other_half() {
        let budget = Budget::new(100);
        let (greedy, other) = (budget.share(), budget.share());
        assert_eq!(take_all(&greedy).len(), 50);
        let permits = take_all(&greedy);
        assert_eq!((permits.len(), budget.used()), (50, 50));
        assert!(!take_all(&other).is_empty());
        drop(permits);
        assert_eq!((budget.used(), greedy.held(), other.held()), (0, 0, 0));
    }

    #[test]
    fn who_comes_last_finds_a_share_whatever_the_others_took() {
        let budget = Budget::new(1000);
        let greedy: Vec<_> = (0..9).map(|_| budget.share()).collect();
        let mut taken: Vec<Vec<Permit>> = greedy.iter().map(take_all).collect();
        // Again, for what is free now.
        taken.extend(greedy.iter().map(take_all));
        let last = budget.share();
        assert!(take_all(&last).len() >= 2, "{} of 1000 are used", budget.used());
    }

    proptest! {
        #[test]
        fn the_total_is_exceeded_by_guaranteed_parts_only_and_all_comes_back(
            asked in proptest::collection::vec((0_usize..4, 1_u64..40, any::<bool>()), 0..200),
        ) {
            let budget = Budget::new(256);
            let shares: Vec<_> = (0..4).map(|_| budget.share()).collect();
            let mut kept = Vec::new();
            for (who, amount, keep) in asked {
                if let Some(permit) = shares[who].take(amount) {
                    let (held, free) = (shares[who].held(), shares[who].free());
                    prop_assert!(held <= 1 || held <= free + amount, "{held} held, {free} free");
                    prop_assert!(budget.used() <= budget.total() + 4);
                    if keep { kept.push(permit); }
                }
            }
            kept.clear();
            prop_assert_eq!(budget.used(), 0);
            prop_assert!(shares.iter().all(|share| share.held() == 0));
        }
    }
}
