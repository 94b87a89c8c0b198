//! The head of a message: its bytes as they came, and marks on them.
//!
//! A head goes on as it came. What is said about it is read from marks into its bytes, what is
//! changed of it is a list of lines left out and lines added, and nothing is allocated per field.

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderName;

use super::known::Known;
use crate::http::{
    message::{AnyRequest, AnyResponse, Fields, Version},
    target::Target,
};

/// The most bytes a head may have, with its start line and the empty line at its end.
pub(super) const MOST_BYTES: usize = 64 << 10;
/// The most fields a head may have.
pub(super) const MOST_FIELDS: usize = 1000;
/// As many have room on the stack; what has more is parsed again.
const FEW_FIELDS: usize = 64;

/// Why bytes are no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the start line is not HTTP/1")]
    StartLine,
    #[error("a field's name is not a token")]
    Name,
    #[error("a field's value has a byte that none may have")]
    Value,
    #[error("the head is longer than {MOST_BYTES} bytes")]
    Long,
    #[error("the head has more than {MOST_FIELDS} fields")]
    Many,
}

/// A place in a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mark {
    start: u32,
    end: u32,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    known: Known,
    name: Mark,
    value: Mark,
    /// Not to be sent on.
    gone: bool,
    /// It was not there when the head came: the marks are in what was added.
    added: bool,
}

/// The bytes of a head, and where its fields are.
#[derive(Debug)]
struct Marked {
    bytes: Bytes,
    /// The start line, without its end.
    start: Mark,
    /// Another one in its place.
    line: Option<Vec<u8>>,
    /// Those that came, then those that were added.
    lines: Vec<Line>,
    /// Lines, with their ends, that go out after the others.
    added: Vec<u8>,
}

/// The head of a request.
#[derive(Debug)]
pub(super) struct RequestHead {
    marked: Marked,
    method: Mark,
    target: Mark,
    version: Version,
}

/// The head of a response.
#[derive(Debug)]
pub(super) struct ResponseHead {
    marked: Marked,
    status: u16,
    version: Version,
}

/// Where the head ends that begins `bytes`; `None` while it has no end yet.
///
/// `searched` of the bytes have been looked at before.
pub(super) fn end(bytes: &[u8], searched: usize) -> Option<usize> {
    // Of an end that came in two pieces, three bytes may have been there.
    let from = searched.saturating_sub(3);
    memchr::memchr_iter(b'\n', &bytes[from..]).map(|at| from + at).find_map(|at| {
        match bytes[at + 1..] {
            [b'\n', ..] => Some(at + 2),
            [b'\r', b'\n', ..] => Some(at + 3),
            _ => None,
        }
    })
}

impl RequestHead {
    /// Of `bytes`, which are a head to the last byte.
    pub(super) fn parse(bytes: Bytes) -> Result<Self, Malformed> {
        let (line, fields) = start_line(&bytes)?;
        let mut words = line.split(|byte| *byte == b' ');
        let mut next = || words.next().filter(|word| !word.is_empty()).ok_or(Malformed::StartLine);
        let (method, target, version) = (next()?, next()?, version(next()?)?);
        let visible = |byte: &u8| *byte > b' ' && *byte != 0x7f;
        if words.next().is_some() || !method.iter().all(is_token) || !target.iter().all(visible) {
            return Err(Malformed::StartLine);
        }
        let method = Mark { start: 0, end: method.len() as u32 };
        let target = Mark { start: method.end + 1, end: method.end + 1 + target.len() as u32 };
        let lines = lines(&bytes, fields)?;
        let start = Mark { start: 0, end: line.len() as u32 };
        let marked = Marked { bytes, start, line: None, lines, added: Vec::new() };
        Ok(Self { marked, method, target, version })
    }
}

impl AnyRequest for RequestHead {
    fn method(&self) -> &[u8] {
        self.marked.in_line(self.method)
    }

    fn target(&self) -> Target<'_> {
        Target::of(self.method(), self.marked.in_line(self.target))
    }

    fn version(&self) -> Version {
        self.version
    }

    fn set_path(&mut self, path: &[u8]) {
        let Target { path: former, .. } = self.target();
        let (start, end) = (self.within_line(former), self.within_line(former) + former.len());
        self.replace_in_target(start, end, path);
    }

    fn set_query(&mut self, query: Option<&[u8]>) {
        let Target { path, query: former, .. } = self.target();
        let start = self.within_line(path) + path.len();
        // With the question mark.
        let end = start + former.map_or(0, |query| 1 + query.len());
        let query = query.map(|query| [b"?", query].concat());
        self.replace_in_target(start, end, &query.unwrap_or_default());
    }
}

impl RequestHead {
    /// Where `part`, which is a piece of the start line, begins in it.
    fn within_line(&self, part: &[u8]) -> usize {
        part.as_ptr() as usize - self.marked.line().as_ptr() as usize
    }

    /// Writes something else there, within the target. What is before and behind it stays as it came.
    fn replace_in_target(&mut self, start: usize, end: usize, with: &[u8]) {
        let line = self.marked.line();
        let line = [&line[..start], with, &line[end..]].concat();
        self.target.end = (self.target.end as usize + with.len() - (end - start)) as u32;
        self.marked.line = Some(line);
    }
}

impl ResponseHead {
    /// Of `bytes`, which are a head to the last byte. A field that goes on in the next line is made
    /// one line of, with spaces (RFC 9112 §5.2).
    pub(super) fn parse(bytes: BytesMut) -> Result<Self, Malformed> {
        let bytes = unfolded(bytes);
        let (line, fields) = start_line(&bytes)?;
        let (version_word, rest) = split_word(line);
        let version = version(version_word)?;
        let (code, reason) = split_word(rest);
        let printable = |byte: &u8| matches!(byte, b'\t' | b' '..=0x7e | 0x80..);
        let &[a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] = code else {
            return Err(Malformed::StartLine);
        };
        if !reason.iter().all(printable) {
            return Err(Malformed::StartLine);
        }
        let status = [a, b, c].iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
        let start = Mark { start: 0, end: line.len() as u32 };
        let lines = lines(&bytes, fields)?;
        let marked = Marked { bytes, start, line: None, lines, added: Vec::new() };
        Ok(Self { marked, status, version })
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }
}

impl AnyResponse for ResponseHead {
    fn status(&self) -> u16 {
        self.status
    }
}

/// What heads of both kinds have, as HTTP/1 needs it.
pub(super) trait Lines: Fields {
    /// Every value of the fields of a name that the engine knows.
    fn known(&self, name: Known) -> impl Iterator<Item = &[u8]>;
    /// Leaves these fields out.
    fn remove_known(&mut self, name: Known);
    /// Appends the head to `out`, as it goes on.
    fn write(&self, out: &mut BytesMut);
}

macro_rules! fields {
    ($head:ty) => {
        impl Fields for $head {
            fn values_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
                let marked = &self.marked;
                let lines = marked.lines.iter().filter(move |line| marked.is_called(line, name));
                lines.map(|line| marked.of(line, line.value))
            }

            fn remove(&mut self, name: &str) {
                self.marked.remove(name);
            }

            fn add(&mut self, name: &'static str, value: &[u8]) {
                debug_assert!(
                    name.bytes().all(|byte| is_token(&byte)) && value.iter().all(is_value)
                );
                self.marked.add(name, value);
            }

            fn add_field(&mut self, name: &HeaderName, value: &[u8]) {
                debug_assert!(value.iter().all(is_value));
                self.marked.add(name.as_str(), value);
            }

            fn each(&self, show: &mut dyn FnMut(&[u8], &[u8])) {
                let marked = &self.marked;
                for line in marked.lines.iter().filter(|line| !line.gone) {
                    show(marked.of(line, line.name), marked.of(line, line.value));
                }
            }
        }

        impl Lines for $head {
            fn known(&self, name: Known) -> impl Iterator<Item = &[u8]> {
                let marked = &self.marked;
                let lines =
                    marked.lines.iter().filter(move |line| !line.gone && line.known == name);
                lines.map(|line| marked.of(line, line.value))
            }

            fn remove_known(&mut self, name: Known) {
                let lines = self.marked.lines.iter_mut();
                lines.filter(|line| line.known == name).for_each(|line| line.gone = true);
            }

            fn write(&self, out: &mut BytesMut) {
                self.marked.write(out);
            }
        }
    };
}

fields!(RequestHead);
fields!(ResponseHead);

impl Marked {
    fn at(&self, mark: Mark) -> &[u8] {
        &self.bytes[mark.start as usize..mark.end as usize]
    }

    /// The start line as it goes on.
    fn line(&self) -> &[u8] {
        self.line.as_deref().unwrap_or_else(|| self.at(self.start))
    }

    fn in_line(&self, mark: Mark) -> &[u8] {
        &self.line()[mark.start as usize..mark.end as usize]
    }

    /// What `mark`, of `line`, is of.
    fn of(&self, line: &Line, mark: Mark) -> &[u8] {
        let bytes = if line.added { &self.added[..] } else { &self.bytes[..] };
        &bytes[mark.start as usize..mark.end as usize]
    }

    fn is_called(&self, line: &Line, name: &str) -> bool {
        !line.gone && self.of(line, line.name).eq_ignore_ascii_case(name.as_bytes())
    }

    fn remove(&mut self, name: &str) {
        for at in 0..self.lines.len() {
            if self.is_called(&self.lines[at], name) {
                self.lines[at].gone = true;
            }
        }
    }

    fn add(&mut self, name: &str, value: &[u8]) {
        let mut put = |piece: &[u8]| {
            let start = self.added.len() as u32;
            self.added.extend_from_slice(piece);
            Mark { start, end: self.added.len() as u32 }
        };
        let name_at = put(name.as_bytes());
        put(b": ");
        let value = put(value);
        put(b"\r\n");
        let known = Known::of(name.as_bytes());
        self.lines.push(Line { known, name: name_at, value, gone: false, added: true });
    }

    fn write(&self, out: &mut BytesMut) {
        let line = self.line();
        let rest = self.bytes.len() + self.added.len() + 2 * self.lines.len() + 4;
        out.reserve(line.len() + rest);
        out.put_slice(line);
        out.put_slice(b"\r\n");
        // Lines that follow each other and end as they should go in one piece.
        let mut run = Mark::default();
        let (came, added) = self.lines.split_at(self.lines.partition_point(|line| !line.added));
        for line in came.iter().filter(|line| !line.gone) {
            let follows = run.end == line.name.start && run.end > 0;
            if !follows {
                out.put_slice(self.at(run));
                run = Mark { start: line.name.start, end: line.name.start };
            }
            let end = line.value.end as usize;
            if self.bytes[end..].starts_with(b"\r\n") {
                run.end = line.value.end + 2;
            } else {
                // Blanks behind the value, or a line feed alone.
                out.put_slice(self.at(Mark { start: run.start, end: line.value.end }));
                out.put_slice(b"\r\n");
                run = Mark::default();
            }
        }
        out.put_slice(self.at(run));
        for line in added.iter().filter(|line| !line.gone) {
            out.put_slice(&self.added[line.name.start as usize..line.value.end as usize + 2]);
        }
        out.put_slice(b"\r\n");
    }
}

/// The first line without its end, and where the fields begin.
fn start_line(bytes: &[u8]) -> Result<(&[u8], usize), Malformed> {
    if bytes.len() > MOST_BYTES {
        return Err(Malformed::Long);
    }
    let feed = memchr::memchr(b'\n', bytes).ok_or(Malformed::StartLine)?;
    let line = &bytes[..feed];
    Ok((line.strip_suffix(b"\r").unwrap_or(line), feed + 1))
}

fn split_word(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b' ', line) {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line, &[]),
    }
}

fn version(word: &[u8]) -> Result<Version, Malformed> {
    match word {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        _ => Err(Malformed::StartLine),
    }
}

fn lines(bytes: &[u8], from: usize) -> Result<Vec<Line>, Malformed> {
    match parse(bytes, from, &mut [httparse::EMPTY_HEADER; FEW_FIELDS]) {
        Err(Malformed::Many) => parse(bytes, from, &mut vec![httparse::EMPTY_HEADER; MOST_FIELDS]),
        parsed => parsed,
    }
}

fn parse<'b>(
    bytes: &'b [u8],
    from: usize,
    room: &mut [httparse::Header<'b>],
) -> Result<Vec<Line>, Malformed> {
    let fields = match httparse::parse_headers(&bytes[from..], room) {
        Ok(httparse::Status::Complete((_, fields))) => fields,
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::Many),
        Err(httparse::Error::HeaderName) => return Err(Malformed::Name),
        Ok(httparse::Status::Partial) | Err(_) => return Err(Malformed::Value),
    };
    let mark = |piece: &[u8]| {
        let start = (piece.as_ptr() as usize - bytes.as_ptr() as usize) as u32;
        Mark { start, end: start + piece.len() as u32 }
    };
    let line = |field: &httparse::Header<'_>| Line {
        known: Known::of(field.name.as_bytes()),
        name: mark(field.name.as_bytes()),
        value: mark(field.value),
        gone: false,
        added: false,
    };
    Ok(fields.iter().map(line).collect())
}

/// Joins lines that begin with a blank to the one before.
fn unfolded(mut bytes: BytesMut) -> Bytes {
    let mut from = 0;
    while let Some(at) = memchr::memchr(b'\n', &bytes[from..]).map(|at| from + at) {
        from = at + 1;
        if matches!(bytes.get(from), Some(b' ' | b'\t')) {
            bytes[at] = b' ';
            if at > 0 && bytes[at - 1] == b'\r' {
                bytes[at - 1] = b' ';
            }
        }
    }
    bytes.freeze()
}

fn is_token(byte: &u8) -> bool {
    matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'0'..=b'9' | b'A'..=b'Z'
        | b'^'..=b'z' | b'|' | b'~')
}

fn is_value(byte: &u8) -> bool {
    matches!(byte, b'\t' | b' '..=0x7e | 0x80..)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{super::oracle, *};

    fn request(head: &str) -> Result<RequestHead, Malformed> {
        RequestHead::parse(Bytes::copy_from_slice(head.as_bytes()))
    }

    fn written(head: &impl Lines) -> Vec<u8> {
        let mut out = BytesMut::new();
        head.write(&mut out);
        out.to_vec()
    }

    #[test]
    fn a_head_goes_on_byte_for_byte() {
        let head = b"GET /caf\xe9?q=up{job=\"<a>\"}#x HTTP/1.1\r\nhOST:a\r\nX-Empty:\r\nx-2: \xff b\r\n\r\n";
        let parsed = RequestHead::parse(Bytes::from_static(head)).unwrap();
        assert_eq!(parsed.method(), b"GET");
        assert_eq!(parsed.target().path, b"/caf\xe9");
        assert_eq!(parsed.target().query, Some(&b"q=up{job=\"<a>\"}#x"[..]));
        assert_eq!(parsed.values_of("X-2").collect::<Vec<_>>(), [b"\xff b"]);
        assert_eq!(parsed.known(Known::Host).collect::<Vec<_>>(), [b"a"]);
        assert_eq!(written(&parsed), head);
    }

    #[test]
    fn what_is_removed_goes_and_what_is_added_comes_last() {
        let mut head =
            request("GET / HTTP/1.1\r\nA: 1\r\nHost: h\r\na: 2\r\nB: 3\r\n\r\n").unwrap();
        head.remove("a");
        head.add("traceparent", b"00-1");
        head.add("c", b"");
        assert_eq!(head.values_of("Traceparent").collect::<Vec<_>>(), [b"00-1"]);
        let expected = "GET / HTTP/1.1\r\nHost: h\r\nB: 3\r\ntraceparent: 00-1\r\nc: \r\n\r\n";
        assert_eq!(written(&head), expected.as_bytes());
        assert_eq!(head.values_of("A").count(), 0);
        head.remove_known(Known::Host);
        assert_eq!(head.known(Known::Host).count(), 0);
        head.set("traceparent", b"00-2");
        assert_eq!(head.values_of("traceparent").collect::<Vec<_>>(), [b"00-2"]);
        let expected = "GET / HTTP/1.1\r\nB: 3\r\nc: \r\ntraceparent: 00-2\r\n\r\n";
        assert_eq!(written(&head), expected.as_bytes());
    }

    #[test]
    fn another_path_takes_the_place_of_the_one_that_came() {
        for (line, path, expected) in [
            ("GET /a/../b?c=/d HTTP/1.1", "/b", "GET /b?c=/d HTTP/1.1"),
            ("GET /a HTTP/1.0", "/longer/path", "GET /longer/path HTTP/1.0"),
            ("GET http://a:80/./b?c HTTP/1.1", "/b", "GET http://a:80/b?c HTTP/1.1"),
        ] {
            let mut head = request(&format!("{line}\r\nHost: a\r\n\r\n")).unwrap();
            head.set_path(path.as_bytes());
            assert_eq!(head.target().path, path.as_bytes());
            assert_eq!(head.method(), b"GET");
            head.set_path(path.as_bytes());
            assert_eq!(written(&head), format!("{expected}\r\nHost: a\r\n\r\n").as_bytes());
        }
    }

    #[test]
    fn another_query_takes_the_place_of_the_one_that_came() {
        for (line, query, expected) in [
            ("GET /a?b=1&c=2 HTTP/1.1", Some("c=2"), "GET /a?c=2 HTTP/1.1"),
            ("GET /a?b=1 HTTP/1.0", None, "GET /a HTTP/1.0"),
            ("GET /a HTTP/1.1", Some("b"), "GET /a?b HTTP/1.1"),
            ("GET /a? HTTP/1.1", None, "GET /a HTTP/1.1"),
            ("GET http://a:80?b HTTP/1.1", Some("c"), "GET http://a:80?c HTTP/1.1"),
            ("GET http://a:80/d?b HTTP/1.1", None, "GET http://a:80/d HTTP/1.1"),
        ] {
            let mut head = request(&format!("{line}\r\nHost: a\r\n\r\n")).unwrap();
            for _ in 0..2 {
                head.set_query(query.map(str::as_bytes));
                assert_eq!(head.target().query, query.map(str::as_bytes), "{line}");
                assert_eq!(written(&head), format!("{expected}\r\nHost: a\r\n\r\n").as_bytes());
            }
            head.set_path(b"/x");
            assert_eq!(head.target().query, query.map(str::as_bytes), "{line}");
        }
    }

    #[test]
    fn lines_end_in_one_way_whatever_they_ended_in() {
        let head = request("GET / HTTP/1.1\nA: 1\nB: 2 \t\r\nC: 3\n\n").unwrap();
        assert_eq!(written(&head), b"GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n");
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_is_malformed() {
        for (head, why) in [
            ("GET  / HTTP/1.1\r\n\r\n", Malformed::StartLine),
            ("GET / HTTP/1.1 \r\n\r\n", Malformed::StartLine),
            ("GET /a b HTTP/1.1\r\n\r\n", Malformed::StartLine),
            ("GET /a\tb HTTP/1.1\r\n\r\n", Malformed::StartLine),
            ("GET /a\rb HTTP/1.1\r\n\r\n", Malformed::StartLine),
            ("G:T / HTTP/1.1\r\n\r\n", Malformed::StartLine),
            (" GET / HTTP/1.1\r\n\r\n", Malformed::StartLine),
            ("GET / HTTP/1.2\r\n\r\n", Malformed::StartLine),
            ("GET / http/1.1\r\n\r\n", Malformed::StartLine),
            ("GET /\r\n\r\n", Malformed::StartLine),
            ("GET / HTTP/1.1\r\nA : 1\r\n\r\n", Malformed::Name),
            ("GET / HTTP/1.1\r\n A: 1\r\n\r\n", Malformed::Name),
            ("GET / HTTP/1.1\r\n: 1\r\n\r\n", Malformed::Name),
            ("GET / HTTP/1.1\r\nA: 1\r\n B: 2\r\n\r\n", Malformed::Name),
            ("GET / HTTP/1.1\r\nA: 1\0\r\n\r\n", Malformed::Value),
            ("GET / HTTP/1.1\r\nA: 1\rB: 2\r\n\r\n", Malformed::Value),
        ] {
            let parsed = request(head).map(drop);
            assert!(parsed.is_err(), "{head:?}");
            assert_eq!(parsed, Err(why), "{head:?}");
        }
    }

    #[test]
    fn as_many_fields_as_servers_take_are_taken() {
        let head = |fields: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(fields));
        for fields in [0, 63, 64, 65, 120, MOST_FIELDS] {
            let head = head(fields);
            assert_eq!(written(&request(&head).unwrap()), head.as_bytes(), "{fields}");
        }
        assert_eq!(request(&head(MOST_FIELDS + 1)).map(drop), Err(Malformed::Many));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MOST_BYTES));
        assert_eq!(request(&long).map(drop), Err(Malformed::Long));
    }

    #[test]
    fn a_responses_folded_field_becomes_one_line() {
        let head =
            BytesMut::from(&b"HTTP/1.1 200 Fine \xe9\r\nA: 1\r\n\t2\n 3\r\nB: 4\r\n\r\n"[..]);
        let head = ResponseHead::parse(head).unwrap();
        assert_eq!(head.status(), 200);
        assert_eq!(head.values_of("a").collect::<Vec<_>>(), [b"1  \t2  3"]);
    }

    #[test]
    fn a_status_is_three_digits() {
        for line in
            ["HTTP/1.1 20 OK", "HTTP/1.1 2000 OK", "HTTP/1.1 099 OK", "HTTP/2 200 OK", "ICY 200 OK"]
        {
            let head = format!("{line}\r\n\r\n");
            assert!(ResponseHead::parse(BytesMut::from(head.as_str())).is_err(), "{line}");
        }
        let bare = ResponseHead::parse(BytesMut::from("HTTP/1.0 599\r\n\r\n")).unwrap();
        assert_eq!((bare.status(), bare.version()), (599, Version::Http10));
    }

    #[test]
    fn a_head_ends_at_its_empty_line_in_however_many_pieces_it_came() {
        let bytes = b"GET / HTTP/1.1\r\nA: b\r\n\r\nrest";
        for searched in 0..bytes.len() - 5 {
            assert_eq!(end(bytes, searched), Some(bytes.len() - 4), "{searched}");
        }
        assert_eq!(end(&bytes[..bytes.len() - 5], 0), None);
        assert_eq!(end(b"a\n\nb", 0), Some(3));
    }

    /// A head, mostly as it should be.
    fn head(start: &'static str) -> impl Strategy<Value = Vec<u8>> {
        let field = "[A-Za-z-]{1,4}:[ \t]{0,2}[ -~\t]{0,6}[ \t]?\r\n";
        let framing =
            "(Host: a|Content-Length: [0-9]{1,3}|Transfer-Encoding: (gzip, ?)?chunked)\r\n";
        let odd = "[ \t]?[A-Za-z-]{0,4} ?:?[ -~\t\r\0]{0,6}\r?\n";
        let line = prop_oneof![4 => field, 4 => framing, 1 => odd];
        let change = proptest::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
        let some = vec(line, 0..8).prop_map(|lines| lines.concat());
        let many = (60..70_usize).prop_map(|fields| "a: b\r\n".repeat(fields));
        let lines = prop_oneof![9 => some, 1 => many];
        (start, lines, change).prop_map(|(start, lines, change)| {
            let mut head = format!("{start}{lines}\r\n").into_bytes();
            if let Some((at, byte)) = change {
                let at = at.index(head.len());
                head[at] = byte;
            }
            head
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_head_of_a_request_is_read_as_a_slow_reader_does(
            head in head("(GET|POST|X|SOURCE) [!-~]{1,9} HTTP/1\\.[01]\r?\n"),
        ) {
            oracle::request(&head);
        }

        #[test]
        fn the_head_of_a_response_is_read_as_a_slow_reader_does(
            head in head("HTTP/1\\.[01] [0-9]{3}( [ -~\t]{0,6})?\r?\n"),
        ) {
            oracle::response(&head);
        }
    }
}
