//! B3, as Zipkin and older meshes propagate it: one `b3` header or several `x-b3-*`.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Parent, SAMPLED, SpanContext, SpanId, TraceId, TraceState, hex};

const SINGLE: HeaderName = HeaderName::from_static("b3");
const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED_FIELD: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Which of its two forms a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Single,
    Multi,
}

impl Form {
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        if headers.contains_key(SINGLE) {
            Some(Form::Single)
        } else {
            headers.contains_key(TRACE_ID).then_some(Form::Multi)
        }
    }

    pub(super) fn inject(
        self,
        context: &SpanContext,
        parent: Option<SpanId>,
        headers: &mut HeaderMap,
    ) {
        let SpanContext { trace_id, span_id, .. } = context;
        let sampled = if context.sampled() { "1" } else { "0" };
        let mut set = |name: HeaderName, value: String| {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        };
        match self {
            Form::Single => {
                let parent = parent.map(|id| format!("-{id}")).unwrap_or_default();
                set(SINGLE, format!("{trace_id}-{span_id}-{sampled}{parent}"));
            }
            Form::Multi => {
                set(TRACE_ID, trace_id.to_string());
                set(SPAN_ID, span_id.to_string());
                set(SAMPLED_FIELD, sampled.to_owned());
                // `d`, debug, implies sampled and has become the sampled flag.
                headers.remove(FLAGS);
                match parent {
                    Some(id) => {
                        if let Ok(value) = HeaderValue::try_from(id.to_string()) {
                            headers.insert(PARENT_SPAN_ID, value);
                        }
                    }
                    None => drop(headers.remove(PARENT_SPAN_ID)),
                }
            }
        }
    }
}

pub(super) fn extract(headers: &HeaderMap) -> Option<Parent> {
    match Form::of(headers)? {
        Form::Single => single(headers.get(SINGLE)?.as_bytes()),
        Form::Multi => {
            let field = |name| headers.get(name).map(HeaderValue::as_bytes);
            let sampling = match field(FLAGS) {
                Some(b"1") => Some(&b"d"[..]),
                _ => field(SAMPLED_FIELD),
            };
            parent(field(TRACE_ID)?, field(SPAN_ID)?, sampling)
        }
    }
}

/// `{trace id}-{span id}[-{sampling}[-{parent span id}]]`; a sampling state alone names no span.
fn single(text: &[u8]) -> Option<Parent> {
    let mut parts = text.split(|byte| *byte == b'-');
    let (trace_id, span_id, sampling) = (parts.next()?, parts.next()?, parts.next());
    if let Some(parent) = parts.next() {
        hex::<8>(parent)?;
    }
    match parts.next() {
        Some(_) => None,
        None => parent(trace_id, span_id, sampling),
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
    let (flags, undecided) = match sampling {
        Some(b"1" | b"d" | b"true") => (SAMPLED, false),
        Some(b"0" | b"false") => (0, false),
        Some(_) => return None,
        None => (0, true),
    };
    let context = SpanContext {
        trace_id: TraceId::new(trace_id)?,
        span_id: SpanId::new(hex(span_id)?)?,
        flags,
        state: TraceState::default(),
    };
    Some(Parent { context, undecided })
}

#[cfg(test)]
mod tests {
    use super::{super::tests::headers, *};

    #[test]
    fn both_forms_say_the_same() {
        let single = headers(&[("b3", "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1")]);
        let multi = headers(&[
            ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
            ("x-b3-spanid", "a2fb4a1d1a96d312"),
            ("x-b3-sampled", "1"),
        ]);
        let read = extract(&single).unwrap();
        assert!(read.context.sampled());
        assert_eq!(extract(&multi), Some(read));
    }

    #[test]
    fn a_short_trace_id_is_the_low_half() {
        let read = extract(&headers(&[("b3", "48485a3953bb6124-a2fb4a1d1a96d312-0")])).unwrap();
        assert_eq!(read.context.trace_id.to_string(), "000000000000000048485a3953bb6124");
    }

    #[test]
    fn without_a_sampling_state_the_decision_is_ours() {
        assert!(
            extract(&headers(&[("b3", "48485a3953bb6124-a2fb4a1d1a96d312")])).unwrap().undecided
        );
    }

    #[test]
    fn debug_means_sampled() {
        let debug = headers(&[
            ("x-b3-traceid", "48485a3953bb6124"),
            ("x-b3-spanid", "a2fb4a1d1a96d312"),
            ("x-b3-flags", "1"),
        ]);
        assert!(extract(&debug).unwrap().context.sampled());
        assert!(
            extract(&headers(&[("b3", "48485a3953bb6124-a2fb4a1d1a96d312-d")]))
                .unwrap()
                .context
                .sampled()
        );
    }

    #[test]
    fn what_names_no_span_is_no_parent() {
        for broken in [
            "0",
            "d",
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
        let parent = extract(&map).unwrap().context;
        let ours = SpanContext { span_id: SpanId([2; 8]), ..parent.clone() };
        Form::Multi.inject(&ours, Some(parent.span_id), &mut map);
        assert_eq!(map["x-b3-spanid"], "0202020202020202");
        assert_eq!(map["x-b3-parentspanid"], "a2fb4a1d1a96d312");
        assert_eq!(map["x-b3-sampled"], "1");
        assert!(!map.contains_key("x-b3-flags"));
    }
}
