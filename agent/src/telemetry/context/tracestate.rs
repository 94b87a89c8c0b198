//! The `tracestate` list (W3C Trace Context level 2, §3.3).

use std::sync::Arc;

/// §3.3.1.1: at most so many members.
const MOST_MEMBERS: usize = 32;

/// A valid list, or none. It is passed on as it came; only the start of a trace adds to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::telemetry) struct TraceState(Option<Arc<str>>);

impl TraceState {
    /// Joins every header of a request. A list that breaks a rule is dropped as a whole.
    pub(super) fn read<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Self {
        let Some(first) = values.next() else { return Self::default() };
        let kept = |list: &[u8]| match count(list) {
            // Every member has been found to be printable ASCII; what is between is not looked at.
            Some(1..=MOST_MEMBERS) => Self(str::from_utf8(list).ok().map(Arc::from)),
            _ => Self::default(),
        };
        let Some(second) = values.next() else { return kept(first) };
        let mut joined = first.to_vec();
        for value in std::iter::once(second).chain(values) {
            joined.push(b',');
            joined.extend_from_slice(value);
        }
        kept(&joined)
    }

    /// What OpenTelemetry's consistent probability sampling says about a trace that starts here:
    /// `ot=th:` and the threshold, of 56 bits, without trailing zeros.
    pub(in crate::telemetry) fn threshold(threshold: u64) -> Self {
        let digits = format!("{threshold:014x}");
        let digits = match digits.trim_end_matches('0') {
            "" => "0",
            digits => digits,
        };
        Self(Some(format!("ot=th:{digits}").into()))
    }

    /// The list as text; empty when there is none.
    pub(in crate::telemetry) fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("")
    }
}

/// How many members a list has; `None` when one of them is malformed. Empty members are legal.
fn count(list: &[u8]) -> Option<usize> {
    let mut members = 0;
    for member in list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        if member.is_empty() {
            continue;
        }
        let equals = member.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&member[..equals], &member[equals + 1..]);
        if !is_key(key) || !is_value(value) {
            return None;
        }
        members += 1;
    }
    Some(members)
}

fn is_key(key: &[u8]) -> bool {
    matches!(key, [b'a'..=b'z' | b'0'..=b'9', ..])
        && key.len() <= 256
        && key.iter().all(
            |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@'),
        )
}

fn is_value(value: &[u8]) -> bool {
    // White space at the end has been trimmed, so the last character is not blank.
    !value.is_empty()
        && value.len() <= 256
        && value.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> String {
        TraceState::read(values.iter().map(|value| value.as_bytes())).as_str().to_owned()
    }

    #[test]
    fn one_header_passes_as_it_came() {
        let list = "rojo=00f067aa0ba902b7 ,, congo@tenant=t61rcWkgMzE, ot=th:8;rv:0123456789abcd";
        assert_eq!(read(&[list]), list);
    }

    #[test]
    fn several_headers_are_joined_in_order() {
        assert_eq!(read(&["a=1", "b=2,c=3"]), "a=1,b=2,c=3");
    }

    #[test]
    fn a_malformed_member_drops_the_list() {
        let long_key = format!("{}=1", "k".repeat(257));
        let long_value = format!("k={}", "v".repeat(257));
        for list in [
            "a",
            "=1",
            "a=",
            "A=1",
            "a b=1",
            "a=1=2",
            "_a=1",
            "@a=1",
            "a=1,b",
            "a=\t1",
            "é=1",
            &long_key,
            &long_value,
        ] {
            assert_eq!(read(&[list]), "", "{list:?} was kept");
        }
    }

    #[test]
    fn thirty_two_members_are_kept_and_one_more_is_too_many() {
        let list = |n: usize| (0..n).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
        assert_eq!(read(&[&list(32)]), list(32));
        assert_eq!(read(&[&list(33)]), "");
        assert_eq!(read(&[&list(20), &list(13)]), "");
    }

    #[test]
    fn an_empty_list_is_none() {
        assert_eq!(read(&["", " , "]), "");
    }

    #[test]
    fn thresholds_lose_their_trailing_zeros() {
        assert_eq!(TraceState::threshold(0).as_str(), "ot=th:0");
        assert_eq!(TraceState::threshold(1 << 55).as_str(), "ot=th:8");
        assert_eq!(TraceState::threshold(0xfd70a3d70a3d70).as_str(), "ot=th:fd70a3d70a3d7");
    }
}
