//! `traceparent` and `tracestate` (W3C Trace Context, level 2).

use super::{Hex, RANDOM, SAMPLED, SpanContext, SpanId, TraceId, TraceState, hex};
use crate::http::Fields;

pub(super) const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// `00-` trace id `-` span id `-` flags.
const LENGTH: usize = 55;

pub(super) fn extract(headers: &impl Fields) -> Option<SpanContext> {
    let mut values = headers.values_of(TRACEPARENT);
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    let (trace_id, span_id, flags) = traceparent(value.trim_ascii())?;
    let state = TraceState::read(headers.values_of(TRACESTATE));
    Some(SpanContext { trace_id, span_id, flags, state })
}

/// §3.2: version 00 is exactly this long; a version to come may say more behind another dash.
fn traceparent(text: &[u8]) -> Option<(TraceId, SpanId, u8)> {
    let (known, more) = text.split_at_checked(LENGTH)?;
    let [version] = hex(&known[..2])?;
    match version {
        0xff => return None,
        0x00 if !more.is_empty() => return None,
        _ if !more.is_empty() && more[0] != b'-' => return None,
        _ => {}
    }
    if known[2] != b'-' || known[35] != b'-' || known[52] != b'-' {
        return None;
    }
    let trace_id = TraceId::new(hex(&known[3..35])?)?;
    let span_id = SpanId::new(hex(&known[36..52])?)?;
    let [flags] = hex(&known[53..])?;
    Some((trace_id, span_id, flags & (SAMPLED | RANDOM)))
}

pub(super) fn inject(context: &SpanContext, headers: &mut impl Fields) {
    let SpanContext { trace_id, span_id, flags, state } = context;
    let mut text = *b"00-________________________________-________________-__";
    text[3..35].copy_from_slice(Hex::of(trace_id.0).as_bytes());
    text[36..52].copy_from_slice(Hex::of(span_id.0).as_bytes());
    text[53..].copy_from_slice(Hex::of([*flags]).as_bytes());
    headers.set(TRACEPARENT, &text);
    match state.as_str() {
        "" => headers.remove(TRACESTATE),
        state => headers.set(TRACESTATE, state.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::headers, *};

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(traceparent: &str) -> Option<SpanContext> {
        extract(&headers(&[("traceparent", traceparent)]))
    }

    #[test]
    fn a_valid_header_reads_and_writes_back() {
        let context = read(VALID).unwrap();
        assert!(context.sampled());
        let mut map = http::HeaderMap::new();
        inject(&context, &mut map);
        assert_eq!(map["traceparent"], VALID);
    }

    #[test]
    fn white_space_around_it_is_stripped() {
        assert_eq!(read(&format!(" \t{VALID}  ")), read(VALID));
    }

    #[test]
    fn the_random_flag_is_kept_and_unknown_flags_are_not() {
        let flags = |text: &str| read(&format!("{}{text}", &VALID[..53])).unwrap().flags;
        assert_eq!(flags("03"), SAMPLED | RANDOM);
        assert_eq!(flags("02"), RANDOM);
        assert_eq!(flags("ff"), SAMPLED | RANDOM);
        assert_eq!(flags("04"), 0);
    }

    #[test]
    fn a_higher_version_is_read_as_a_prefix_and_written_as_00() {
        for future in [
            VALID.replacen("00", "cc", 1),
            VALID.replacen("00", "01", 1) + "-what-the-future-brings",
        ] {
            let context = read(&future).unwrap();
            let mut map = http::HeaderMap::new();
            inject(&context, &mut map);
            assert_eq!(map["traceparent"], VALID);
        }
    }

    #[test]
    fn whatever_breaks_a_rule_starts_a_new_trace() {
        let zero = "00-00000000000000000000000000000000-0000000000000000-01";
        assert_eq!(zero.len(), LENGTH);
        for broken in [
            "",
            zero,
            // One id of zeros is enough.
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            // Version ff is forbidden.
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            // Version 00 is exactly 55 characters.
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            // What follows in a later version follows a dash.
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
            // Lower case only.
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-B7AD6B7169203331-01",
            "0A-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            // Dashes where they belong.
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c.b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331.01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
        ] {
            assert_eq!(read(broken), None, "{broken:?} was believed");
        }
    }

    #[test]
    fn two_headers_are_none() {
        let map = headers(&[("traceparent", VALID), ("traceparent", VALID)]);
        assert_eq!(extract(&map), None);
    }

    #[test]
    fn tracestate_is_dropped_with_a_broken_traceparent_and_replaced_with_ours() {
        let mut map = headers(&[("traceparent", "00"), ("tracestate", "a=1")]);
        assert_eq!(extract(&map), None);
        inject(&read(VALID).unwrap(), &mut map);
        assert!(!map.contains_key("tracestate"));
    }
}
