//! Which traces are recorded.
//!
//! A caller's decision is followed. Where a trace starts here, OpenTelemetry's consistent
//! probability decides: the trace id's low 56 bits against a threshold, so that every sampler
//! with a lower probability keeps a subset of what this one keeps.

use super::context::{Incoming, Parent, RANDOM, SAMPLED, SpanContext, SpanId, TraceId, TraceState};

/// Decides at the start of a trace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampler {
    /// Traces whose randomness is at least this are recorded; 2^56 records none.
    threshold: u64,
}

impl Sampler {
    /// Records the share `probability` of traces, 0 to 1.
    pub(super) fn new(probability: f64) -> Self {
        let probability = probability.clamp(0.0, 1.0);
        Self { threshold: ((1.0 - probability) * (1u64 << 56) as f64) as u64 }
    }

    /// A new span as `incoming` wants it: under its parent, or the root of a new trace.
    pub(super) fn span(&self, incoming: &Incoming) -> SpanContext {
        match (&incoming.parent, incoming.decided) {
            (Some(Parent { context, undecided: false }), _) => {
                SpanContext { span_id: SpanId::random(), ..context.clone() }
            }
            (Some(Parent { context, undecided: true }), _) => self.decide(context.trace_id, 0),
            (None, None) => self.decide(TraceId::random(), RANDOM),
            (None, Some(record)) => SpanContext {
                trace_id: TraceId::random(),
                span_id: SpanId::random(),
                flags: if record { RANDOM | SAMPLED } else { RANDOM },
                state: TraceState::default(),
            },
        }
    }

    fn decide(&self, trace_id: TraceId, flags: u8) -> SpanContext {
        let [.., a, b, c, d, e, f, g] = trace_id.0;
        let randomness = u64::from_be_bytes([0, a, b, c, d, e, f, g]);
        let (flags, state) = if randomness >= self.threshold {
            (flags | SAMPLED, TraceState::threshold(self.threshold))
        } else {
            (flags, TraceState::default())
        };
        SpanContext { trace_id, span_id: SpanId::random(), flags, state }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn under(flags: u8, undecided: bool) -> Incoming {
        let context = SpanContext {
            trace_id: TraceId([0xff; 16]),
            span_id: SpanId([1; 8]),
            flags,
            state: TraceState::default(),
        };
        Parent { context, undecided }.into()
    }

    #[test]
    fn a_callers_decision_is_followed_whatever_ours_would_be() {
        let kept = Sampler::new(0.0).span(&under(SAMPLED | RANDOM, false));
        assert_eq!(kept.flags, SAMPLED | RANDOM);
        assert_ne!(kept.span_id, SpanId([1; 8]));
        let left = Sampler::new(1.0).span(&under(0, false));
        assert!(!left.sampled());
    }

    #[test]
    fn a_decision_without_a_trace_starts_one_that_follows_it() {
        for (probability, decided) in [(0.0, true), (1.0, false)] {
            let incoming = Incoming { decided: Some(decided), ..Incoming::default() };
            assert_eq!(Sampler::new(probability).span(&incoming).sampled(), decided);
        }
    }

    #[test]
    fn an_undecided_caller_gets_our_decision_in_its_trace() {
        let span = Sampler::new(0.5).span(&under(0, true));
        assert_eq!(span.trace_id, TraceId([0xff; 16]));
        assert!(span.sampled());
    }

    #[test]
    fn a_new_trace_says_that_its_id_is_random_and_how_it_was_sampled() {
        let span = Sampler::new(1.0).span(&Incoming::default());
        assert_eq!(span.flags, SAMPLED | RANDOM);
        assert_eq!(span.state.as_str(), "ot=th:0");
    }

    #[test]
    fn a_trace_that_is_not_recorded_has_no_threshold() {
        let span = Sampler::new(0.0).span(&Incoming::default());
        assert_eq!(span.flags, RANDOM);
        assert_eq!(span.state.as_str(), "");
    }

    #[test]
    fn the_share_is_about_the_probability() {
        let sampler = Sampler::new(0.1);
        let kept = (0..20_000).filter(|_| sampler.span(&Incoming::default()).sampled()).count();
        assert!((1_700..2_300).contains(&kept), "{kept} of 20000");
    }

    proptest! {
        #[test]
        fn a_lower_probability_keeps_a_subset(id: [u8; 16], p in 0.0..=1.0, q in 0.0..=1.0) {
            let (low, high) = if p < q { (p, q) } else { (q, p) };
            let kept = |probability| Sampler::new(probability).decide(TraceId(id), 0).sampled();
            prop_assert!(!kept(low) || kept(high));
        }
    }
}
