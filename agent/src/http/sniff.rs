//! Telling HTTP from everything else by the first bytes a client sends.

/// The start of every HTTP/2 connection (RFC 9113 §3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest request line looked at; a longer first line is not taken for HTTP.
const LONGEST_REQUEST_LINE: usize = 16 * 1024;

/// The longest method that is taken for one. The IANA registry's longest has 17 characters.
const LONGEST_METHOD: usize = 24;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else.
    Opaque,
}

/// The verdict on the bytes seen so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniff {
    /// More bytes cannot change this.
    Is(Protocol),
    /// The bytes fit HTTP so far; more are needed to be sure.
    Undecided,
}

/// Methods that are registered (RFC 9110 §16.1.1) or widely used, and the preface's.
const METHODS: [&str; 44] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "M-SEARCH",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "NOTIFY",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
    "UPDATE",
    "VERSION-CONTROL",
];

/// What Icecast's sources send: a request in its looks, whose body begins with the answer and has no
/// length.
const NO_REQUEST: &[u8] = b"SOURCE ";

/// Judges the first bytes of a client.
///
/// HTTP/1 is recognised by its whole request line, version included, so that a text
/// protocol whose command happens to be `GET` stays opaque.
pub fn sniff(bytes: &[u8]) -> Sniff {
    if bytes.len() >= H2_PREFACE.len() && bytes.starts_with(H2_PREFACE) {
        return Sniff::Is(Protocol::Http2);
    }
    if H2_PREFACE.starts_with(bytes) {
        return Sniff::Undecided;
    }
    let bounded = bytes.len() < LONGEST_REQUEST_LINE;
    let (line, whole) = first_line(bytes);
    if !whole {
        let open = bounded && (line.is_empty() || may_become_request_line(line));
        return if open { Sniff::Undecided } else { Sniff::Is(Protocol::Opaque) };
    }
    let is_http = may_become_request_line(line)
        && [&b" HTTP/1.1"[..], b" HTTP/1.0"].iter().any(|version| line.ends_with(version))
        && !line.starts_with(NO_REQUEST);
    Sniff::Is(if is_http { Protocol::Http1 } else { Protocol::Opaque })
}

/// Whether first bytes that are undecided hardly are anything but the start of a request: a method
/// that servers know, or part of one, or whatever method and a blank behind it.
pub fn is_likely_http(bytes: &[u8]) -> bool {
    let (line, _) = first_line(bytes);
    let known = METHODS.iter().any(|method| method.as_bytes().starts_with(line));
    !line.is_empty() && (known || line.contains(&b' '))
}

/// Whether the first line of a client says that it is a request of HTTP, be it one as it should be
/// or not.
pub fn claims_http(bytes: &[u8]) -> bool {
    let (line, _) = first_line(bytes);
    line.windows(6).any(|window| window == b" HTTP/") && !line.starts_with(NO_REQUEST)
}

/// The first line without its end, as far as it has come, and whether it is all of it. Empty lines
/// before a request are no part of it (RFC 9112 §2.2).
fn first_line(bytes: &[u8]) -> (&[u8], bool) {
    let begins = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let bytes = &bytes[begins.unwrap_or(bytes.len())..];
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]), true),
        None => (bytes, false),
    }
}

/// Whether `line` starts as `METHOD SP target` does.
fn may_become_request_line(line: &[u8]) -> bool {
    let method_ends = line.iter().position(|byte| *byte == b' ');
    let method = &line[..method_ends.unwrap_or(line.len())];
    let token = |byte: &u8| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_');
    let rest = method_ends.map_or(&[][..], |end| &line[end + 1..]);
    !method.is_empty()
        && method.len() <= LONGEST_METHOD
        && method.iter().all(token)
        && rest.iter().all(|byte| *byte >= b' ' && *byte != 0x7f || *byte == b'\r')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::oracle::verdict_stays, *};

    #[test]
    fn a_request_line_is_http_1_and_a_preface_is_http_2() {
        assert_eq!(sniff(b"GET / HTTP/1.1\r\nhost: a\r\n"), Sniff::Is(Protocol::Http1));
        assert_eq!(sniff(b"M-SEARCH * HTTP/1.0\n"), Sniff::Is(Protocol::Http1));
        assert_eq!(sniff(b"\r\n\r\nGET / HTTP/1.1\r\n"), Sniff::Is(Protocol::Http1));
        assert_eq!(sniff(H2_PREFACE), Sniff::Is(Protocol::Http2));
    }

    #[test]
    fn text_protocols_with_http_like_commands_stay_opaque() {
        for bytes in [
            &b"GET key\r\n"[..],
            b"get key\r\n",
            b"EHLO mail.example\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"\x16\x03\x01\x02\x00",
            b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
            b" GET / HTTP/1.1\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSN",
            b"SOURCE /radio HTTP/1.0\r\n",
            b"SOURCE /radio ICE/1.0\r\n",
            b"ICY 200 OK\r\n",
            b"DESCRIBE rtsp://media/film RTSP/1.0\r\n",
            b"REGISTER sip:example SIP/2.0\r\n",
        ] {
            assert_eq!(sniff(bytes), Sniff::Is(Protocol::Opaque), "{bytes:?}");
        }
    }

    #[test]
    fn a_line_that_never_ends_is_opaque() {
        let line = [b"GET /".as_slice(), &[b'a'; LONGEST_REQUEST_LINE]].concat();
        assert_eq!(sniff(&line), Sniff::Is(Protocol::Opaque));
    }

    #[test]
    fn the_start_of_a_request_is_told_from_other_words() {
        for start in ["G", "GE", "GET", "GET ", "GET /a", "VERSION-C", "PR", "ANY ", "\r\nP"] {
            assert!(is_likely_http(start.as_bytes()), "{start}");
        }
        for start in ["", "\r\n", "HELLO", "GETS", "PING"] {
            assert!(!is_likely_http(start.as_bytes()), "{start}");
        }
        for line in ["GET / HTTP/1.1\r\n", "get / HTTP/1.1\r\n", "GET / HTTP/9\r\n", "GET / HTTP/"]
        {
            assert!(claims_http(line.as_bytes()), "{line}");
        }
        for line in ["OPTIONS * RTSP/1.0\r\n", "SOURCE /a HTTP/1.0\r\n", "GET /\r\nA: HTTP/1.1\r\n"]
        {
            assert!(!claims_http(line.as_bytes()), "{line}");
        }
    }

    proptest! {
        #[test]
        fn every_prefix_of_a_request_is_undecided_until_its_line_ends(
            method in "[A-Z]{1,12}", target in "/[!-~]{0,40}",
        ) {
            let line = format!("{method} {target} HTTP/1.1\r\n");
            for end in 0..line.len() {
                prop_assert_eq!(sniff(&line.as_bytes()[..end]), Sniff::Undecided);
            }
            prop_assert_eq!(sniff(line.as_bytes()), Sniff::Is(Protocol::Http1));
        }

        #[test]
        fn a_verdict_never_changes_with_more_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            verdict_stays(&bytes);
        }
    }
}
