//! A histogram that many threads add to without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Istio's bucket bounds, for milliseconds and for bytes, with their text.
pub(super) const BOUNDS: [(u64, &str); 19] = [
    (500, "0.5"),
    (1_000, "1.0"),
    (5_000, "5.0"),
    (10_000, "10.0"),
    (25_000, "25.0"),
    (50_000, "50.0"),
    (100_000, "100.0"),
    (250_000, "250.0"),
    (500_000, "500.0"),
    (1_000_000, "1000.0"),
    (2_500_000, "2500.0"),
    (5_000_000, "5000.0"),
    (10_000_000, "10000.0"),
    (30_000_000, "30000.0"),
    (60_000_000, "60000.0"),
    (300_000_000, "300000.0"),
    (600_000_000, "600000.0"),
    (1_800_000_000, "1800000.0"),
    (3_600_000_000, "3600000.0"),
];

/// Counts by bucket, and the sum, in thousandths so that it is an integer and needs no loop to
/// add to.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn observe(&self, thousandths: u64) {
        self.buckets[bucket(thousandths)].fetch_add(1, Relaxed);
        self.sum.fetch_add(thousandths, Relaxed);
    }

    /// How many values were at most the bound of each bucket; the last is their number.
    pub(super) fn cumulative(&self) -> [u64; BOUNDS.len() + 1] {
        let mut total = 0;
        self.buckets.each_ref().map(|bucket| {
            total += bucket.load(Relaxed);
            total
        })
    }

    /// How many values there were.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    pub(super) fn sum(&self) -> f64 {
        self.sum.load(Relaxed) as f64 / 1000.0
    }
}

/// The index of the bucket a value falls into.
pub(super) fn bucket(thousandths: u64) -> usize {
    BOUNDS.partition_point(|(bound, _)| *bound < thousandths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_at_a_bound_is_within_it() {
        let histogram = Histogram::default();
        for value in [0, 500, 501, 1_000, 3_600_000_000, 3_600_000_001] {
            histogram.observe(value);
        }
        let counts = histogram.cumulative();
        assert_eq!(counts[..3], [2, 4, 4]);
        assert_eq!(counts[18..], [5, 6]);
        assert_eq!(histogram.sum(), 7_200_002.002);
    }

    #[test]
    fn the_text_of_a_bound_is_its_value() {
        for (bound, text) in BOUNDS {
            assert_eq!(text.parse::<f64>().unwrap() * 1000.0, bound as f64);
        }
    }
}
