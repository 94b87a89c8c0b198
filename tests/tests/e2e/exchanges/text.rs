//! Bytes as the table writes them, and as a report shows them.
//!
//! `¶` is the end of a line in HTTP, `\xHH`, `\r`, `\n`, `\t`, `\0`, `\\`, `\|` and `\{` are bytes,
//! `{200*X-№: v¶}` is something so many times, numbered from 1, `{name}` is what `let` said it is,
//! `⏸` is a pause after which the rest is another segment, and in what is expected `…` is anything.

use anyhow::{Context, bail, ensure};

/// What is sent: pieces with a pause between each two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Speech(pub Vec<Vec<u8>>);

impl Speech {
    /// Of text in which nothing is left to be put in for names.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let pieces = text.split('⏸').map(bytes).collect::<anyhow::Result<_>>()?;
        Ok(Self(pieces))
    }

    /// All of it, without its pauses.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.concat()
    }
}

/// What is to be heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// These, with anything between each two.
    Pieces(Vec<Vec<u8>>),
    /// Anything but this.
    Without(Vec<u8>),
}

impl Pattern {
    /// Of text in which nothing is left to be put in for names.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let pieces = text.split('…').map(bytes).collect::<anyhow::Result<_>>()?;
        Ok(Self::Pieces(pieces))
    }

    /// Of what is never to be heard.
    pub(super) fn without(text: &str) -> anyhow::Result<Self> {
        Ok(Self::Without(bytes(text)?))
    }

    /// Whether these are such bytes.
    pub(super) fn fits(&self, bytes: &[u8]) -> bool {
        let pieces = match self {
            Self::Pieces(pieces) => pieces,
            Self::Without(piece) => return find(bytes, piece).is_none(),
        };
        let [first, others @ ..] = &pieces[..] else { return false };
        let Some(rest) = bytes.strip_prefix(&first[..]) else { return false };
        let [between @ .., last] = others else { return rest.is_empty() };
        let mut rest = rest;
        for piece in between {
            let Some(at) = find(rest, piece) else { return false };
            rest = &rest[at + piece.len()..];
        }
        rest.ends_with(last)
    }
}

/// Where `piece` first is in `bytes`.
pub(super) fn find(bytes: &[u8], piece: &[u8]) -> Option<usize> {
    if piece.is_empty() {
        return Some(0);
    }
    bytes.windows(piece.len()).position(|window| window == piece)
}

/// How many times `piece` is in `bytes`.
pub(super) fn count(bytes: &[u8], piece: &[u8]) -> usize {
    let (mut rest, mut count) = (bytes, 0);
    while let Some(at) = find(rest, piece).filter(|_| !piece.is_empty()) {
        rest = &rest[at + 1..];
        count += 1;
    }
    count
}

fn bytes(text: &str) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match first {
            '¶' => out.extend(b"\r\n"),
            '\\' => {
                let (byte, length) = escaped(rest).with_context(|| format!("in {text:?}"))?;
                out.push(byte);
                rest = &rest[length..];
            }
            '{' => {
                let (inside, after) = rest.split_once('}').context("a { without a }")?;
                let (times, what) =
                    inside.split_once('*').with_context(|| format!("{{{inside}}}"))?;
                let times: usize = times.parse().with_context(|| format!("{{{inside}}}"))?;
                for number in 1..=times {
                    out.extend(bytes(&what.replace('№', &number.to_string()))?);
                }
                rest = after;
            }
            other => out.extend(other.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    Ok(out)
}

/// The byte behind a backslash, and how much of the text says it.
fn escaped(text: &str) -> anyhow::Result<(u8, usize)> {
    Ok(match text.as_bytes() {
        [b'r', ..] => (b'\r', 1),
        [b'n', ..] => (b'\n', 1),
        [b't', ..] => (b'\t', 1),
        [b'0', ..] => (0, 1),
        [byte @ (b'\\' | b'|' | b'{'), ..] => (*byte, 1),
        [b'x', _, _, ..] => {
            let digits = text.get(1..3).context("\\x without two digits")?;
            (u8::from_str_radix(digits, 16).context("\\x without two digits")?, 3)
        }
        _ => bail!("an escape that is none"),
    })
}

/// Puts in what names and numbers in braces stand for.
pub(super) fn filled<'a>(
    text: &str,
    meaning: impl Fn(&str) -> Option<&'a str> + Copy,
) -> anyhow::Result<String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out += before;
        if before.ends_with('\\') && !before.ends_with("\\\\") {
            out.push('{');
            rest = &from[1..];
            continue;
        }
        let (inside, after) = from[1..].split_once('}').context("a { without a }")?;
        if inside.contains('*') {
            out += &from[..inside.len() + 2];
        } else {
            let meant = meaning(inside);
            let meant = meant.with_context(|| format!("{{{inside}}} stands for nothing"))?;
            ensure!(!meant.contains(&format!("{{{inside}}}")), "{{{inside}}} stands for itself");
            out += &filled(meant, meaning)?;
        }
        rest = after;
    }
    Ok(out + rest)
}

/// How many bytes of a long message a report shows at its beginning and at its end.
const SHOWN: usize = 300;

/// Bytes as somebody reads them.
pub(super) fn shown(bytes: &[u8]) -> String {
    if bytes.len() <= 2 * SHOWN {
        return escape(bytes);
    }
    let (first, last) = (&bytes[..SHOWN], &bytes[bytes.len() - SHOWN..]);
    let left_out = bytes.len() - 2 * SHOWN;
    format!("{}⟨{left_out} bytes⟩{}", escape(first), escape(last))
}

fn escape(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut rest = bytes;
    while let [first, others @ ..] = rest {
        rest = others;
        match (*first, others) {
            (b'\r', [b'\n', behind @ ..]) => {
                out.push('¶');
                rest = behind;
            }
            (b'\r', _) => out += "\\r",
            (b'\n', _) => out += "\\n",
            (b'\\', _) => out += "\\\\",
            (b' '..=b'~', _) => out.push(char::from(*first)),
            _ => out += &format!("\\x{first:02x}"),
        }
    }
    out
}

#[test]
fn what_is_written_is_what_is_sent() {
    let parsed = Speech::parse("GET /\\x00\\xe9 a\\{b} HTTP/1.1¶{2*X-№: \\\\¶}¶⏸{3*ab}é").unwrap();
    let first = b"GET /\0\xe9 a{b} HTTP/1.1\r\nX-1: \\\r\nX-2: \\\r\n\r\n".to_vec();
    assert_eq!(parsed.0, [first, "abababé".into()]);
    for wrong in ["\\q", "\\x1", "{3*a", "{x*a}", "{ok}"] {
        assert!(Speech::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn names_stand_for_text_that_may_have_names_in_it() {
    let meaning = |name: &str| match name {
        "ok" => Some("200{crlf}"),
        "crlf" => Some("¶"),
        "1" => Some("\\{x}"),
        "loop" => Some("{loop}"),
        _ => None,
    };
    let filled = |text| filled(text, meaning);
    assert_eq!(filled("{ok} \\{ok} {3*a} {1}").unwrap(), "200¶ \\{ok} {3*a} \\{x}");
    assert!(filled("{other}").is_err() && filled("{loop}").is_err());
}

#[test]
fn a_pattern_fits_what_has_its_pieces_in_their_order() {
    let fits = |pattern: &str, text: &str| Pattern::parse(pattern).unwrap().fits(text.as_bytes());
    assert!(fits("abc", "abc") && !fits("abc", "abcd") && !fits("abc", "ab"));
    assert!(fits("a…c", "abbc") && fits("a…", "a") && fits("…", "") && fits("a…b…c", "a1b2c"));
    assert!(!fits("a…b…c", "a1c2c") && !fits("a…a", "a") && !fits("", "a"));
}

#[test]
fn what_is_shown_can_be_read() {
    assert_eq!(shown(b"a\r\n\n\r\0\xe9\\"), "a¶\\n\\r\\x00\\xe9\\\\");
    let long = shown(&[b'a'; 5000]);
    assert!(long.len() < 700 && long.contains("⟨4400 bytes⟩"), "{long}");
}

#[test]
fn pieces_are_found_and_counted() {
    assert_eq!(
        (find(b"abcab", b"ca"), find(b"a", b"b"), find(b"a", b"")),
        (Some(2), None, Some(0))
    );
    assert_eq!(
        (count(b"\r\n\r\n\r\n", b"\r\n\r\n"), count(b"aXbX", b"X"), count(b"a", b"")),
        (2, 2, 0)
    );
}
