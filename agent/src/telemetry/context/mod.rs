//! Trace context: what a request says about the trace it belongs to, and what it says next.
//!
//! W3C Trace Context is believed strictly, B3 only where W3C is absent. Nothing here panics on
//! what a client sends.

mod b3;
mod tracestate;
mod w3c;

use std::fmt;

use crate::http::Fields;

use b3::Form;
pub(super) use tracestate::TraceState;

/// Names a trace; never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TraceId(pub(super) [u8; 16]);

/// Names a span within a trace; never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SpanId(pub(super) [u8; 8]);

impl TraceId {
    pub(super) fn random() -> Self {
        loop {
            if let Some(id) = Self::new(rand::random()) {
                return id;
            }
        }
    }

    fn new(id: [u8; 16]) -> Option<Self> {
        (id != [0; 16]).then_some(Self(id))
    }
}

impl SpanId {
    pub(super) fn random() -> Self {
        loop {
            if let Some(id) = Self::new(rand::random()) {
                return id;
            }
        }
    }

    fn new(id: [u8; 8]) -> Option<Self> {
        (id != [0; 8]).then_some(Self(id))
    }
}

/// The sender recorded the trace.
pub(super) const SAMPLED: u8 = 0x01;
/// The trace id's low 56 bits are random (W3C level 2).
pub(super) const RANDOM: u8 = 0x02;

/// One span's place in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SpanContext {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    /// [`SAMPLED`] and [`RANDOM`]; other bits of a version we do not know are not passed on.
    pub(super) flags: u8,
    pub(super) state: TraceState,
}

impl SpanContext {
    pub(super) fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// The span a request says it was sent under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) context: SpanContext,
    /// The sender left the decision whether to record to us; only B3 can say that.
    pub(super) undecided: bool,
}

/// What the headers of a request say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Incoming {
    pub(super) parent: Option<Parent>,
    /// Whether to record was decided without a parent; only B3 can say that.
    pub(super) decided: Option<bool>,
    /// B3 headers were there, so that those behind us may read B3 only.
    pub(super) b3: Option<Form>,
}

impl From<Parent> for Incoming {
    fn from(parent: Parent) -> Self {
        Self { parent: Some(parent), ..Self::default() }
    }
}

impl Incoming {
    /// Reads W3C, or B3 where there is no `traceparent` at all.
    pub(super) fn extract(headers: &impl Fields) -> Self {
        let b3 = Form::of(headers);
        let (parent, decided) = if headers.value_of(w3c::TRACEPARENT).is_some() {
            (w3c::extract(headers).map(|context| Parent { context, undecided: false }), None)
        } else {
            match b3.and_then(|_| b3::extract(headers)) {
                Some(b3::Said::Parent(parent)) => (Some(parent), None),
                Some(b3::Said::Decision(decided)) => (None, Some(decided)),
                None => (None, None),
            }
        };
        Self { parent, decided, b3 }
    }

    /// Makes `context` the parent of whatever receives `headers`, in W3C and in the B3 form
    /// the headers already had.
    pub(super) fn replace(&self, context: &SpanContext, headers: &mut impl Fields) {
        inject(context, headers);
        match self.b3 {
            // It says no more than that nothing is to be recorded, and that is so.
            Some(_) if self.decided == Some(false) => {}
            Some(form) => {
                let parent = self.parent.as_ref().map(|parent| parent.context.span_id);
                form.inject(context, parent, headers);
            }
            None => {}
        }
    }
}

/// Writes `context` as W3C.
pub(super) fn inject(context: &SpanContext, headers: &mut impl Fields) {
    w3c::inject(context, headers);
}

/// Lower-case hexadecimal of exactly `N` bytes.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Bytes as lower-case hexadecimal: two digits each, of which there are at most 32.
struct Hex {
    digits: [u8; 32],
    length: usize,
}

impl Hex {
    fn of<const N: usize>(bytes: [u8; N]) -> Self {
        const { assert!(N <= 16) };
        let mut digits = [0; 32];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
            let digit = |four: u8| b"0123456789abcdef"[usize::from(four)];
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
        }
        Self { digits, length: 2 * N }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.digits[..self.length]
    }
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::{super::oracle, *};

    pub(in crate::telemetry) fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    const W3C: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const B3: &str = "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-0";

    #[test]
    fn w3c_wins_over_b3() {
        let incoming = Incoming::extract(&headers(&[("traceparent", W3C), ("b3", B3)]));
        let context = incoming.parent.unwrap().context;
        assert_eq!(context.trace_id.to_string(), "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn a_broken_traceparent_is_not_replaced_by_b3() {
        let incoming = Incoming::extract(&headers(&[("traceparent", "00-nonsense"), ("b3", B3)]));
        assert_eq!(incoming.parent, None);
    }

    #[test]
    fn b3_is_written_again_beside_w3c_with_our_own_span() {
        let mut map = headers(&[("b3", B3)]);
        let incoming = Incoming::extract(&map);
        let parent = incoming.parent.clone().unwrap().context;
        let ours = SpanContext { span_id: SpanId([1; 8]), ..parent };
        incoming.replace(&ours, &mut map);
        assert_eq!(
            map["b3"],
            "463ac35c9f6413ad48485a3953bb6124-0101010101010101-0-a2fb4a1d1a96d312"
        );
        assert_eq!(map["traceparent"], "00-463ac35c9f6413ad48485a3953bb6124-0101010101010101-00");
    }

    #[test]
    fn no_b3_is_written_for_those_who_did_not_speak_it() {
        let mut map = headers(&[("traceparent", W3C)]);
        let incoming = Incoming::extract(&map);
        let ours = incoming.parent.clone().unwrap().context;
        incoming.replace(&ours, &mut map);
        assert_eq!(map.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["traceparent"]);
    }

    #[test]
    fn a_refusal_to_record_passes_as_it_came() {
        for field in [("b3", "0"), ("x-b3-sampled", "0")] {
            let mut map = headers(&[field]);
            let incoming = Incoming::extract(&map);
            assert_eq!((incoming.parent.as_ref(), incoming.decided), (None, Some(false)));
            let ours = SpanContext {
                trace_id: TraceId([1; 16]),
                span_id: SpanId([1; 8]),
                flags: 0,
                state: TraceState::default(),
            };
            incoming.replace(&ours, &mut map);
            assert_eq!(map[field.0], field.1);
            assert_eq!(map.len(), 2, "traceparent beside it");
        }
    }

    proptest! {
        #[test]
        fn whatever_headers_say_is_said_on_in_the_same_way(
            fields in prop::collection::vec(
                (
                    prop::sample::select(vec![
                        "traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid",
                        "x-b3-sampled", "x-b3-flags",
                    ]),
                    prop_oneof![
                        prop::collection::vec(any::<u8>(), 0..80),
                        "[0-9a-f]{2}-[0-9a-f]{31,33}-[0-9a-f]{15,17}-[0-9a-f]{2}-?".prop_map(String::into_bytes),
                        "[a-z0-9@=, ]{0,60}".prop_map(String::into_bytes),
                    ],
                ),
                0..8,
            )
        ) {
            let line = |(name, value): (&str, Vec<u8>)| [name.as_bytes(), b":", &value].concat();
            let lines: Vec<_> = fields.into_iter().map(line).collect();
            oracle::context(&lines.join(&b'\n'));
        }
    }
}
