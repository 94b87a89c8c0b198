//! How long the body of a message is, judged once and strictly (RFC 9112 §6).
//!
//! What two readers could take for two lengths is refused in a request, since the second could be
//! made to see a request that the first did not. Of a response the client would have made something
//! without a mesh, so that what is said about it there is followed as far as it is safe.

use super::{
    head::{Lines, RequestHead, ResponseHead},
    known::Known,
};
use crate::http::message::{AnyRequest, AnyResponse, Version};

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// As many bytes; none at all where it is 0.
    Length(u64),
    /// Chunks (RFC 9112 §7.1).
    Chunked,
    /// All bytes until the sender closes.
    UntilClose,
    /// No message any more: bytes in both directions.
    Tunnel,
}

/// Why a message has no length that everybody would read in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ambiguous {
    #[error("more than one Content-Length")]
    Lengths,
    #[error("a Content-Length that is no number")]
    NoNumber,
    #[error("a Content-Length beside a Transfer-Encoding")]
    LengthBesideCoding,
    #[error("a Transfer-Encoding that does not end in chunked")]
    Coding,
    #[error("a Transfer-Encoding in HTTP/1.0")]
    OldCoding,
    #[error("more than one Host")]
    Hosts,
    #[error("no Host in HTTP/1.1")]
    NoHost,
}

/// Of a request.
pub(super) fn of_request(head: &RequestHead) -> Result<Framing, Ambiguous> {
    match head.known(Known::Host).count() {
        0 if head.version() == Version::Http11 => return Err(Ambiguous::NoHost),
        0 | 1 => {}
        _ => return Err(Ambiguous::Hosts),
    }
    let length = length(head)?;
    match coding(head) {
        Coding::None => Ok(Framing::Length(length.unwrap_or(0))),
        _ if head.version() == Version::Http10 => Err(Ambiguous::OldCoding),
        Coding::Other => Err(Ambiguous::Coding),
        Coding::Chunked if length.is_some() => Err(Ambiguous::LengthBesideCoding),
        Coding::Chunked => Ok(Framing::Chunked),
    }
}

/// Of the response to a request of `method`. A length beside chunks is taken out of the head
/// (RFC 9112 §6.3).
pub(super) fn of_response(head: &mut ResponseHead, method: &[u8]) -> Result<Framing, Ambiguous> {
    match head.status() {
        101 => return Ok(Framing::Tunnel),
        200..300 if method == b"CONNECT" => return Ok(Framing::Tunnel),
        100..200 | 204 | 304 => return Ok(Framing::Length(0)),
        _ if method == b"HEAD" => return Ok(Framing::Length(0)),
        _ => {}
    }
    match coding(head) {
        // A server of HTTP/1.0 does not know what it says (RFC 9112 §6.1).
        Coding::Chunked if head.version() == Version::Http11 => {
            head.remove_known(Known::ContentLength);
            Ok(Framing::Chunked)
        }
        Coding::Chunked | Coding::Other => {
            head.remove_known(Known::ContentLength);
            Ok(Framing::UntilClose)
        }
        Coding::None => Ok(one_length(head)?.map_or(Framing::UntilClose, Framing::Length)),
    }
}

enum Coding {
    None,
    /// The last one is chunked, and no other is.
    Chunked,
    Other,
}

fn coding(head: &impl Lines) -> Coding {
    let mut codings = head
        .known(Known::TransferEncoding)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .peekable();
    if codings.peek().is_none() {
        return Coding::None;
    }
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    // Nothing behind it, and it once: a second time it would be a chunked body within chunks.
    match codings.position(is_chunked) {
        Some(_) if codings.next().is_none() => Coding::Chunked,
        _ => Coding::Other,
    }
}

fn length(head: &impl Lines) -> Result<Option<u64>, Ambiguous> {
    let mut values = head.known(Known::ContentLength);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Ambiguous::Lengths);
    }
    number(value).map(Some)
}

/// The same where one that is said several times, alike, may be taken for one (RFC 9110 §8.6).
fn one_length(head: &impl Lines) -> Result<Option<u64>, Ambiguous> {
    let values = head.known(Known::ContentLength).flat_map(|value| value.split(|b| *b == b','));
    let mut numbers = values.map(|value| number(value.trim_ascii()));
    let Some(first) = numbers.next().transpose()? else { return Ok(None) };
    for other in numbers {
        if other? != first {
            return Err(Ambiguous::Lengths);
        }
    }
    Ok(Some(first))
}

fn number(value: &[u8]) -> Result<u64, Ambiguous> {
    // Neither a sign nor a list.
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Ambiguous::NoNumber);
    }
    let digits = str::from_utf8(value).expect("digits are ASCII");
    digits.parse().map_err(|_| Ambiguous::NoNumber)
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use super::*;

    fn request(fields: &str) -> Result<Framing, Ambiguous> {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        of_request(&RequestHead::parse(Bytes::from(head)).unwrap())
    }

    /// The framing, and the head as it goes on.
    fn response(method: &str, head: &str) -> Result<(Framing, String), Ambiguous> {
        let mut head = ResponseHead::parse(BytesMut::from(head)).unwrap();
        let framing = of_response(&mut head, method.as_bytes())?;
        let mut out = BytesMut::new();
        head.write(&mut out);
        Ok((framing, String::from_utf8(out.to_vec()).unwrap()))
    }

    #[test]
    fn a_request_is_as_long_as_it_says_in_one_way() {
        for (fields, framing) in [
            ("", Framing::Length(0)),
            ("Content-Length: 0\r\n", Framing::Length(0)),
            ("content-length:  17 \r\n", Framing::Length(17)),
            ("Content-Length: 18446744073709551615\r\n", Framing::Length(u64::MAX)),
            ("Transfer-Encoding: chunked\r\n", Framing::Chunked),
            ("transfer-encoding: gzip, Chunked\r\n", Framing::Chunked),
            ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", Framing::Chunked),
        ] {
            assert_eq!(request(fields), Ok(framing), "{fields:?}");
        }
    }

    #[test]
    fn a_request_of_two_lengths_or_of_none_that_can_be_told_is_refused() {
        for (fields, why) in [
            ("Content-Length: 1\r\nContent-Length: 1\r\n", Ambiguous::Lengths),
            ("Content-Length: 1, 1\r\n", Ambiguous::NoNumber),
            ("Content-Length: +1\r\n", Ambiguous::NoNumber),
            ("Content-Length: 1 1\r\n", Ambiguous::NoNumber),
            ("Content-Length: 0x1\r\n", Ambiguous::NoNumber),
            ("Content-Length:\r\n", Ambiguous::NoNumber),
            ("Content-Length: 18446744073709551616\r\n", Ambiguous::NoNumber),
            ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", Ambiguous::LengthBesideCoding),
            ("Transfer-Encoding: gzip\r\n", Ambiguous::Coding),
            ("Transfer-Encoding: identity\r\n", Ambiguous::Coding),
            ("Transfer-Encoding:\r\n", Ambiguous::Coding),
            ("Transfer-Encoding: chunked, gzip\r\n", Ambiguous::Coding),
            ("Transfer-Encoding: chunked, chunked\r\n", Ambiguous::Coding),
            ("Transfer-Encoding: \"chunked\"\r\n", Ambiguous::Coding),
            ("Transfer-Encoding: \x0bchunked\r\n", Ambiguous::Coding),
            ("Host: b\r\n", Ambiguous::Hosts),
        ] {
            if fields.contains('\x0b') {
                let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
                assert!(RequestHead::parse(Bytes::from(head)).is_err());
                continue;
            }
            assert_eq!(request(fields), Err(why), "{fields:?}");
        }
        let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        let old = RequestHead::parse(Bytes::from(old)).unwrap();
        assert_eq!(of_request(&old), Err(Ambiguous::OldCoding));
    }

    #[test]
    fn a_response_ends_where_its_request_and_status_say() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        for (method, head, framing) in [
            ("GET", ok, Framing::Length(3)),
            ("HEAD", ok, Framing::Length(0)),
            ("CONNECT", ok, Framing::Tunnel),
            ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", Framing::Length(0)),
            ("GET", "HTTP/1.1 304 \r\nContent-Length: 3\r\n\r\n", Framing::Length(0)),
            ("GET", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", Framing::Length(0)),
            ("GET", "HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n", Framing::Tunnel),
            ("GET", "HTTP/1.1 200\r\n\r\n", Framing::UntilClose),
            ("CONNECT", "HTTP/1.1 407 No\r\nContent-Length: 3\r\n\r\n", Framing::Length(3)),
        ] {
            let (framed, out) = response(method, head).unwrap();
            assert_eq!(framed, framing, "{method} {head:?}");
            assert_eq!(out, head);
        }
    }

    #[test]
    fn a_length_beside_chunks_goes_and_other_codings_last_until_the_end() {
        let fields = "Content-Length: 3\r\nA: b\r\nTransfer-Encoding";
        for (version, coding, framing) in [
            ("1.1", "chunked", Framing::Chunked),
            ("1.1", "gzip", Framing::UntilClose),
            ("1.0", "chunked", Framing::UntilClose),
        ] {
            let head = format!("HTTP/{version} 200 OK\r\n{fields}: {coding}\r\n\r\n");
            let out =
                format!("HTTP/{version} 200 OK\r\nA: b\r\nTransfer-Encoding: {coding}\r\n\r\n");
            assert_eq!(response("GET", &head), Ok((framing, out)));
        }
    }

    #[test]
    fn a_response_may_say_its_length_twice_but_not_two_lengths() {
        for fields in ["Content-Length: 3\r\ncontent-length: 3\r\n", "Content-Length: 3, 3\r\n"] {
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            assert_eq!(response("GET", &head).unwrap().0, Framing::Length(3));
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n";
        assert_eq!(response("GET", head), Err(Ambiguous::Lengths));
    }
}
