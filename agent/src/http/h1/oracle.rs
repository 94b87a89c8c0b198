//! What the parsers of HTTP/1 say of any bytes, held against slow readers that are obviously right. For
//! tests with bytes that are nearly right, and for fuzzers (`tests/fuzz`) with whatever they find.

use bytes::{Bytes, BytesMut};

use super::{
    chunked::{Broken, Chunked, MOST_EXTENSIONS, Passed},
    framing::{self, Framing},
    head::{self, Lines, MOST_BYTES, MOST_FIELDS, RequestHead, ResponseHead},
};
use crate::http::{
    Protocol, Sniff,
    message::{AnyRequest, AnyResponse, Version},
    oracle::target_is_right,
    sniff,
};

/// The most fields that trailers may have.
const MOST_TRAILER_FIELDS: usize = 100;

/// A field: its name, and its value without blanks around it.
type Field = (Vec<u8>, Vec<u8>);

/// A head as a slow reader has it.
struct Read {
    start: Vec<u8>,
    fields: Vec<Field>,
}

/// What is said of a request's head, wherever it ends in `bytes`.
///
/// # Panics
/// When a slow reader says otherwise.
pub(crate) fn request(bytes: &[u8]) {
    let Some(head) = ended(bytes) else { return };
    let read = read(head, false).filter(|read| start_of_request(&read.start).is_some());
    let parsed = RequestHead::parse(Bytes::copy_from_slice(head));
    let (Ok(parsed), Some(read)) = (&parsed, &read) else {
        assert!(parsed.is_err() && read.is_none(), "{parsed:?}");
        return;
    };
    let (method, target, version) = start_of_request(&read.start).expect("as looked at above");
    assert_eq!((parsed.method(), parsed.version()), (method, version));
    target_is_right(method, target);
    goes_on(parsed, read);
    assert_eq!(framing::of_request(parsed).ok(), framing(&read.fields, version));
    let is_usual = |byte: &u8| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_');
    let is_usual = method.iter().all(is_usual) && method.len() <= 24 && read.start.len() < 16_000;
    if is_usual && method != b"SOURCE" {
        assert_eq!(sniff(head), Sniff::Is(Protocol::Http1));
    }
}

/// What is said of a response's head, wherever it ends in `bytes`.
///
/// # Panics
/// When a slow reader says otherwise.
pub(crate) fn response(bytes: &[u8]) {
    let Some(head) = ended(bytes) else { return };
    let read = read(head, true).filter(|read| start_of_response(&read.start).is_some());
    let parsed = ResponseHead::parse(BytesMut::from(head));
    let (Ok(parsed), Some(read)) = (&parsed, &read) else {
        assert!(parsed.is_err() && read.is_none(), "{parsed:?}");
        return;
    };
    let (version, status) = start_of_response(&read.start).expect("as looked at above");
    assert_eq!((parsed.version(), parsed.status()), (version, status));
    goes_on(parsed, read);
}

/// What is said of a chunked body that comes in `pieces`.
///
/// # Panics
/// When a slow reader says otherwise.
pub(crate) fn chunked(pieces: &[&[u8]]) {
    let all = pieces.concat();
    // Longer ones may meet a limit, of which a slow reader knows nothing.
    if all.len() > MOST_EXTENSIONS {
        return;
    }
    let followed = follow(pieces);
    let Some((content, length)) = body(&all) else {
        assert!(!matches!(followed, Ok(Some(_))), "{followed:?}");
        return;
    };
    let (on, data, left) = followed.expect("it can be read").expect("all of it is there");
    assert_eq!((data, left), (content.len(), all.len() - length));
    // What goes on says the same, and has nothing left out any more.
    assert_eq!(body(&on), Some((content, on.len())));
    assert_eq!(follow(&[&on]).unwrap().unwrap().0, on);
}

/// What goes on of `pieces`, how much of it is content, and how many bytes are behind the end.
pub(super) fn follow(pieces: &[&[u8]]) -> Result<Option<(Vec<u8>, usize, usize)>, Broken> {
    let (mut chunked, mut held) = (Chunked::default(), Vec::new());
    let (mut on, mut data) = (Vec::new(), 0);
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let passed = chunked.follow(&held)?;
            if passed == Passed::default() {
                break;
            }
            on.extend(held.drain(..passed.on));
            held.drain(..passed.out);
            data += passed.data;
        }
    }
    Ok(chunked.is_through().then_some((on, data, held.len())))
}

/// The head that begins `bytes`: all lines to the first that is empty, but for the first of all.
fn ended(bytes: &[u8]) -> Option<&[u8]> {
    let mut end = 0;
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate();
    let found = lines.find_map(|(number, line)| {
        end += line.len();
        (number > 0 && matches!(line, b"\n" | b"\r\n")).then_some(end)
    });
    assert_eq!(head::end(bytes, 0), found);
    (0..found.unwrap_or(0)).step_by(7).for_each(|seen| assert_eq!(head::end(bytes, seen), found));
    found.map(|end| &bytes[..end])
}

/// A head, of which lines may go on in the next one if `folds`.
fn read(head: &[u8], folds: bool) -> Option<Read> {
    let mut lines = Vec::<Vec<u8>>::new();
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        match lines.last_mut() {
            Some(last) if folds && matches!(line, [b' ' | b'\t', ..]) => {
                let end = if last.ends_with(b"\r\n") { 2 } else { 1 };
                last.truncate(last.len() - end);
                last.extend(vec![b' '; end]);
                last.extend(line);
            }
            _ => lines.push(line.to_vec()),
        }
    }
    // The last is the empty one.
    let lines = lines[..lines.len() - 1].iter().map(|line| {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        line.strip_suffix(b"\r").unwrap_or(line)
    });
    let mut lines = lines.collect::<Vec<_>>().into_iter();
    let start = lines.next()?.to_vec();
    let fields = lines.map(field).collect::<Option<Vec<_>>>()?;
    (head.len() <= MOST_BYTES && fields.len() <= MOST_FIELDS).then_some(Read { start, fields })
}

fn field(line: &[u8]) -> Option<Field> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let is_plain = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    let is_right = !name.is_empty() && name.iter().all(is_token) && value.iter().all(is_plain);
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let begins = value.iter().position(|byte| !is_blank(byte)).unwrap_or(value.len());
    let ends = value.iter().rposition(|byte| !is_blank(byte)).map_or(begins, |last| last + 1);
    is_right.then(|| (name.to_vec(), value[begins..ends].to_vec()))
}

fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

fn version(word: &[u8]) -> Option<Version> {
    match word {
        b"HTTP/1.0" => Some(Version::Http10),
        b"HTTP/1.1" => Some(Version::Http11),
        _ => None,
    }
}

fn start_of_request(line: &[u8]) -> Option<(&[u8], &[u8], Version)> {
    let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let [method, target, last] = words[..] else { return None };
    let is_visible = |byte: &u8| *byte > b' ' && *byte != 0x7f;
    let is_right = method.iter().all(is_token) && target.iter().all(is_visible);
    let is_there = !method.is_empty() && !target.is_empty();
    version(last).filter(|_| is_right && is_there).map(|version| (method, target, version))
}

fn start_of_response(line: &[u8]) -> Option<(Version, u16)> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let (first, code) = (version(words.next()?)?, words.next()?);
    let reason = words.next().unwrap_or_default();
    let is_plain = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    let is_code = code.len() == 3 && code.iter().all(u8::is_ascii_digit) && code[0] != b'0';
    let code = str::from_utf8(code).ok()?.parse().ok();
    code.filter(|_| is_code && reason.iter().all(is_plain)).map(|code| (first, code))
}

/// That the fields of `head` are those that were read, as they are and as they go on.
fn goes_on(head: &impl Lines, read: &Read) {
    for (name, _) in &read.fields {
        let is_it = |(other, _): &&Field| other.eq_ignore_ascii_case(name);
        let expected: Vec<_> = read.fields.iter().filter(is_it).map(|(_, v)| &v[..]).collect();
        let name = str::from_utf8(name).expect("a token is ASCII");
        assert_eq!(head.values_of(name).collect::<Vec<_>>(), expected, "{name}");
    }
    let mut out = BytesMut::new();
    head.write(&mut out);
    // No reader could take it for other lines.
    let ends = out.windows(2).filter(|pair| pair == b"\r\n").count();
    assert_eq!(out.iter().filter(|byte| **byte == b'\r').count(), ends);
    assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), ends);
    // Ends of lines may have become longer.
    if out.len() <= MOST_BYTES {
        let again = self::read(&out, false).expect("a head that went on is one");
        assert_eq!((&again.start, &again.fields), (&read.start, &read.fields));
    }
}

/// What follows a request that can be read in one way.
fn framing(fields: &[Field], version: Version) -> Option<Framing> {
    let values = |name: &str| -> Vec<&[u8]> {
        let is_it = |(other, _): &&Field| other.eq_ignore_ascii_case(name.as_bytes());
        fields.iter().filter(is_it).map(|(_, value)| &value[..]).collect()
    };
    if !matches!((values("host").len(), version), (1, _) | (0, Version::Http10)) {
        return None;
    }
    let length = match values("content-length")[..] {
        [] => None,
        [value] if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
            Some(str::from_utf8(value).ok()?.parse().ok()?)
        }
        _ => return None,
    };
    let codings = values("transfer-encoding").join(&b","[..]);
    if values("transfer-encoding").is_empty() {
        return Some(Framing::Length(length.unwrap_or(0)));
    }
    let codings: Vec<_> =
        codings.split(|byte| *byte == b',').map(|coding| coding.trim_ascii()).collect();
    let is_chunked = |coding: &&&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let is_last = codings.iter().rev().take(1).filter(is_chunked).count() == 1;
    let is_plain = is_last && codings.iter().filter(is_chunked).count() == 1;
    (is_plain && length.is_none() && version == Version::Http11).then_some(Framing::Chunked)
}

/// The content of a chunked body, and how many bytes it took.
fn body(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line_of = |from: usize| {
        let end = (from..bytes.len()).find(|at| bytes[*at..].starts_with(b"\r\n"))?;
        let line = &bytes[from..end];
        let plain = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
        line.iter().all(plain).then(|| (line, end + 2))
    };
    let (mut content, mut at) = (Vec::new(), 0);
    loop {
        let (line, next) = line_of(at)?;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let rest = &line[digits..];
        if digits == 0 || digits > 16 || !matches!(rest, [] | [b';' | b' ' | b'\t', ..]) {
            return None;
        }
        let digits = str::from_utf8(&line[..digits]).ok()?;
        let size = usize::try_from(u64::from_str_radix(digits, 16).ok()?).ok()?;
        at = next;
        if size == 0 {
            break;
        }
        content.extend_from_slice(bytes.get(at..at.checked_add(size)?)?);
        at += size;
        if !bytes[at..].starts_with(b"\r\n") {
            return None;
        }
        at += 2;
    }
    for _ in 0..=MOST_TRAILER_FIELDS {
        let (line, next) = line_of(at)?;
        at = next;
        if line.is_empty() {
            return Some((content, at));
        }
        field(line)?;
    }
    None
}
