//! What a request asks for, taken apart without a judgement on it.

/// The parts of a request's target, as they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target<'a> {
    /// Such as `http`; HTTP/1 has it only in the absolute form.
    pub scheme: Option<&'a [u8]>,
    /// Host and port, where the target names them: in absolute form, of CONNECT, in HTTP/2.
    pub authority: Option<&'a [u8]>,
    /// What comes before the query; `*` of an OPTIONS for the server as a whole, nothing of a CONNECT.
    pub path: &'a [u8],
    /// What comes behind the first question mark.
    pub query: Option<&'a [u8]>,
}

impl<'a> Target<'a> {
    /// Of the target in a request line of HTTP/1 (RFC 9112 §3.2). Only CONNECT has the authority
    /// form: `method` tells.
    pub fn of(method: &[u8], target: &'a [u8]) -> Self {
        if method == b"CONNECT" {
            return Self { authority: Some(target), ..Self::default() };
        }
        let (scheme, authority, rest) = match absolute(target) {
            Some((scheme, authority, rest)) => (Some(scheme), Some(authority), rest),
            None => (None, None, target),
        };
        let (path, query) = match memchr::memchr(b'?', rest) {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        Self { scheme, authority, path, query }
    }
}

/// Scheme, authority and what follows of a target in absolute form.
fn absolute(target: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let colon = target.iter().position(|byte| !is_scheme(byte))?;
    let (scheme, rest) = target.split_at(colon);
    let rest = rest.strip_prefix(b"://")?;
    if !scheme.first()?.is_ascii_alphabetic() {
        return None;
    }
    let ends = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
    let (authority, rest) = rest.split_at(ends.unwrap_or(rest.len()));
    Some((scheme, authority, rest))
}

fn is_scheme(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::oracle::target_is_right, *};

    fn parts(method: &str, target: &'static str) -> [Option<&'static str>; 4] {
        let Target { scheme, authority, path, query } =
            Target::of(method.as_bytes(), target.as_bytes());
        [scheme, authority, Some(path), query]
            .map(|part| part.map(|part| str::from_utf8(part).unwrap()))
    }

    #[test]
    fn each_of_the_four_forms_is_taken_apart() {
        for (method, target, expected) in [
            ("GET", "/a/b?c=d?e", [None, None, Some("/a/b"), Some("c=d?e")]),
            ("GET", "/a#b", [None, None, Some("/a#b"), None]),
            ("GET", "/?", [None, None, Some("/"), Some("")]),
            ("GET", "/x?u=http://a/", [None, None, Some("/x"), Some("u=http://a/")]),
            ("GET", "http://u@h:80/a?b", [Some("http"), Some("u@h:80"), Some("/a"), Some("b")]),
            ("GET", "HTTP://h?b", [Some("HTTP"), Some("h"), Some(""), Some("b")]),
            ("OPTIONS", "*", [None, None, Some("*"), None]),
            ("CONNECT", "h:443", [None, Some("h:443"), Some(""), None]),
            ("GET", "h:443", [None, None, Some("h:443"), None]),
            ("GET", "://a", [None, None, Some("://a"), None]),
        ] {
            assert_eq!(parts(method, target), expected, "{method} {target}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_target_is_taken_apart_in_the_one_way_there_is(
            method in "(GET|CONNECT)", target in "([a-zA-Z+.0-9-]{0,3}:?//)?[a-z/?#:@*]{0,12}",
        ) {
            target_is_right(method.as_bytes(), target.as_bytes());
        }
    }
}
