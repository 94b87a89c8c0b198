//! How long to wait before something is tried again.

use std::time::Duration;

/// Twice as long each time, up to a bound, and never quite the same as another agent waits: a
/// thousand nodes must not come back to a server that just came up all at once.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: FIRST }
    }

    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }

    pub(super) fn next(&mut self) -> Duration {
        let wait = self.next.mul_f64(rand::random_range(0.5..1.0));
        self.next = (self.next * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::new();
        for expected in [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
            let waited = backoff.next().as_secs_f64();
            assert!((expected / 2.0..expected).contains(&waited), "{waited} for {expected}");
        }
        backoff.reset();
        assert!(backoff.next() < FIRST);
    }
}
