//! How many objects say the same.

use std::collections::BTreeMap;

/// By what they say, how many say it.
#[derive(Clone, Debug)]
pub(super) struct Counts<T>(BTreeMap<T, usize>);

impl<T> Default for Counts<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Clone + Ord> Counts<T> {
    /// Notes that an object says `now` what was `former`. Whether nobody said the one before, or nobody
    /// says the other any more.
    pub(super) fn change(&mut self, former: Option<&T>, now: Option<&T>) -> bool {
        if former == now {
            return false;
        }
        let mut is_other = false;
        if let Some(now) = now {
            let count = self.0.entry(now.clone()).or_default();
            *count += 1;
            is_other |= *count == 1;
        }
        if let Some(former) = former
            && let Some(count) = self.0.get_mut(former)
        {
            *count -= 1;
            if *count == 0 {
                self.0.remove(former);
                is_other = true;
            }
        }
        is_other
    }

    /// What is said, in order, and by how many.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&T, usize)> {
        self.0.iter().map(|(said, count)| (said, *count))
    }
}
