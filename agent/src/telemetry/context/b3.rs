//! B3, as Zipkin and older meshes propagate it: one `b3` header or several `x-b3-*`.

use super::{Hex, Parent, SAMPLED, SpanContext, SpanId, TraceId, TraceState, hex};
use crate::http::Fields;

const SINGLE: &str = "b3";
const TRACE_ID: &str = "x-b3-traceid";
const SPAN_ID: &str = "x-b3-spanid";
const PARENT_SPAN_ID: &str = "x-b3-parentspanid";
const SAMPLED_FIELD: &str = "x-b3-sampled";
const FLAGS: &str = "x-b3-flags";

/// Which of its two forms a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::telemetry) enum Form {
    Single,
    Multi,
}

impl Form {
    pub(super) fn of(headers: &impl Fields) -> Option<Self> {
        let has = |name| headers.value_of(name).is_some();
        if has(SINGLE) {
            return Some(Form::Single);
        }
        (has(TRACE_ID) || has(SAMPLED_FIELD) || has(FLAGS)).then_some(Form::Multi)
    }

    pub(super) fn inject(
        self,
        context: &SpanContext,
        parent: Option<SpanId>,
        headers: &mut impl Fields,
    ) {
        let (trace_id, span_id) = (Hex::of(context.trace_id.0), Hex::of(context.span_id.0));
        let sampled = if context.sampled() { &b"1"[..] } else { b"0" };
        let parent = parent.map(|parent| Hex::of(parent.0));
        match self {
            Form::Single => {
                let parent = parent.as_ref().map(Hex::as_bytes);
                let parts =
                    [Some(trace_id.as_bytes()), Some(span_id.as_bytes()), Some(sampled), parent];
                let parts: Vec<_> = parts.into_iter().flatten().collect();
                headers.set(SINGLE, &parts.join(&b'-'));
            }
            Form::Multi => {
                headers.set(TRACE_ID, trace_id.as_bytes());
                headers.set(SPAN_ID, span_id.as_bytes());
                headers.set(SAMPLED_FIELD, sampled);
                // `d`, debug, implies sampled and has become the sampled flag.
                headers.remove(FLAGS);
                match parent {
                    Some(id) => headers.set(PARENT_SPAN_ID, id.as_bytes()),
                    None => headers.remove(PARENT_SPAN_ID),
                }
            }
        }
    }
}

/// What a request says in B3.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Which span it was sent under.
    Parent(Parent),
    /// Only whether its trace is to be recorded.
    Decision(bool),
}

pub(super) fn extract(headers: &impl Fields) -> Option<Said> {
    match Form::of(headers)? {
        Form::Single => single(headers.value_of(SINGLE)?),
        Form::Multi => {
            let sampling = match headers.value_of(FLAGS) {
                Some(b"1") => Some(&b"d"[..]),
                _ => headers.value_of(SAMPLED_FIELD),
            };
            match headers.value_of(TRACE_ID) {
                Some(id) => parent(id, headers.value_of(SPAN_ID)?, sampling).map(Said::Parent),
                None => decision(sampling?).map(Said::Decision),
            }
        }
    }
}

fn decision(sampling: &[u8]) -> Option<bool> {
    match sampling {
        b"1" | b"d" | b"true" => Some(true),
        b"0" | b"false" => Some(false),
        _ => None,
    }
}

/// `{trace id}-{span id}[-{sampling}[-{parent span id}]]`, or a sampling state alone.
fn single(text: &[u8]) -> Option<Said> {
    let mut parts = text.split(|byte| *byte == b'-');
    let trace_id = parts.next()?;
    let Some(span_id) = parts.next() else { return decision(trace_id).map(Said::Decision) };
    let sampling = parts.next();
    if let Some(parent) = parts.next() {
        hex::<8>(parent)?;
    }
    match parts.next() {
        Some(_) => None,
        None => parent(trace_id, span_id, sampling).map(Said::Parent),
    }
}

fn parent(trace_id: &[u8], span_id: &[u8], sampling: Option<&[u8]>) -> Option<Parent> {
    let trace_id = match trace_id.len() {
        // The older, 64-bit ids are the low half.
        16 => {
            let mut id = [0; 16];
            id[8..].copy_from_slice(&hex::<8>(trace_id)?);
            id
        }
        _ => hex(trace_id)?,
    };
    let decided = match sampling {
        Some(sampling) => Some(decision(sampling)?),
        None => None,
    };
    let flags = if decided == Some(true) { SAMPLED } else { 0 };
    let context = SpanContext {
        trace_id: TraceId::new(trace_id)?,
        span_id: SpanId::new(hex(span_id)?)?,
        flags,
        state: TraceState::default(),
    };
    Some(Parent { context, undecided: decided.is_none() })
}

#[cfg(test)]
mod tests {
    use super::{super::tests::headers, *};

    fn parent_of(fields: &[(&str, &str)]) -> Option<Parent> {
        match extract(&headers(fields))? {
            Said::Parent(parent) => Some(parent),
            Said::Decision(_) => None,
        }
    }

    #[test]
    fn both_forms_say_the_same() {
        let single = [("b3", "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1")];
        let multi = [
            ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
            ("x-b3-spanid", "a2fb4a1d1a96d312"),
            ("x-b3-sampled", "1"),
        ];
        let read = parent_of(&single).unwrap();
        assert!(read.context.sampled());
        assert_eq!(parent_of(&multi), Some(read));
    }

    #[test]
    fn a_short_trace_id_is_the_low_half() {
        let read = parent_of(&[("b3", "48485a3953bb6124-a2fb4a1d1a96d312-0")]).unwrap();
        assert_eq!(read.context.trace_id.to_string(), "000000000000000048485a3953bb6124");
    }

    #[test]
    fn without_a_sampling_state_the_decision_is_ours() {
        assert!(parent_of(&[("b3", "48485a3953bb6124-a2fb4a1d1a96d312")]).unwrap().undecided);
    }

    #[test]
    fn debug_means_sampled() {
        let debug = [
            ("x-b3-traceid", "48485a3953bb6124"),
            ("x-b3-spanid", "a2fb4a1d1a96d312"),
            ("x-b3-flags", "1"),
        ];
        assert!(parent_of(&debug).unwrap().context.sampled());
        let debug = [("b3", "48485a3953bb6124-a2fb4a1d1a96d312-d")];
        assert!(parent_of(&debug).unwrap().context.sampled());
    }

    #[test]
    fn a_decision_needs_no_span() {
        for (fields, decided) in [
            (("b3", "0"), false),
            (("b3", "1"), true),
            (("b3", "d"), true),
            (("x-b3-sampled", "0"), false),
            (("x-b3-sampled", "1"), true),
            (("x-b3-flags", "1"), true),
        ] {
            assert_eq!(extract(&headers(&[fields])), Some(Said::Decision(decided)), "{fields:?}");
        }
    }

    #[test]
    fn what_names_no_span_is_no_parent() {
        for broken in [
            "2",
            "48485a3953bb6124",
            "48485a3953bb612-a2fb4a1d1a96d312-1",
            "0000000000000000-a2fb4a1d1a96d312-1",
            "48485a3953bb6124-0000000000000000-1",
            "48485a3953bb6124-a2fb4a1d1a96d312-2",
            "48485a3953bb6124-a2fb4a1d1a96d312-1-x",
            "48485a3953bb6124-a2fb4a1d1a96d312-1-a2fb4a1d1a96d312-1",
        ] {
            assert_eq!(extract(&headers(&[("b3", broken)])), None, "{broken:?} was believed");
        }
    }

    #[test]
    fn several_headers_are_written_again_with_our_span() {
        let mut map = headers(&[
            ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
            ("x-b3-spanid", "a2fb4a1d1a96d312"),
            ("x-b3-flags", "1"),
        ]);
        let Some(Said::Parent(Parent { context: parent, .. })) = extract(&map) else { panic!() };
        let ours = SpanContext { span_id: SpanId([2; 8]), ..parent.clone() };
        Form::Multi.inject(&ours, Some(parent.span_id), &mut map);
        assert_eq!(map["x-b3-spanid"], "0202020202020202");
        assert_eq!(map["x-b3-parentspanid"], "a2fb4a1d1a96d312");
        assert_eq!(map["x-b3-sampled"], "1");
        assert!(!map.contains_key("x-b3-flags"));
    }
}
