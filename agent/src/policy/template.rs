//! Paths with `{*}` and `{**}`, as Envoy's URI templates have them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::request::Leaning;

const ONE: &str = "{*}";
const ANY: &str = "{**}";

/// A path with operators in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template {
    text: Box<str>,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    /// `{*}`: one segment, or what is left of it.
    One,
    /// `{**}`: any number of segments.
    Any,
}

impl Template {
    /// Whether `path` is to be read as one.
    pub fn is_one(path: &str) -> bool {
        path.contains(ONE) || path.contains(ANY)
    }

    /// Reads one.
    ///
    /// # Errors
    /// In words, by Istio's `CheckValidPathTemplate`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut any = false;
        for segment in text.trim_matches('/').split('/') {
            match segment {
                ONE | ANY if any => return Err("has an operator behind `{**}`"),
                ONE => {}
                ANY => any = true,
                _ if segment.contains(['{', '}']) => {
                    return Err("has a brace that is no operator of its own segment");
                }
                _ if !segment.bytes().all(is_segment) || segment.is_empty() => {
                    return Err("has a segment with what no path may have");
                }
                _ => {}
            }
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at);
            if !before.is_empty() {
                pieces.push(Piece::Text(before.into()));
            }
            let (piece, operator) =
                if from.starts_with(ANY) { (Piece::Any, ANY) } else { (Piece::One, ONE) };
            pieces.push(piece);
            rest = &from[operator.len()..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.into()));
        }
        Ok(Self { text: text.into(), pieces })
    }

    /// Whether `path` is one of those meant. Envoy's operators stand for what RFC 3986 has in a segment,
    /// the star included; where nothing is to get past, for any bytes.
    pub(super) fn match_path(&self, path: &[u8], leaning: Leaning) -> bool {
        let may_stand = |byte: u8| leaning == Leaning::ToMatch || byte == b'*' || is_segment(byte);
        let mut rest = path;
        for (at, piece) in self.pieces.iter().enumerate() {
            match piece {
                Piece::Text(text) => match rest.strip_prefix(text.as_bytes()) {
                    Some(after) => rest = after,
                    None => return false,
                },
                Piece::One => {
                    let end = memchr::memchr(b'/', rest).unwrap_or(rest.len());
                    if end == 0 || !rest[..end].iter().all(|byte| may_stand(*byte)) {
                        return false;
                    }
                    rest = &rest[end..];
                }
                Piece::Any => {
                    // The last operator: there is one piece behind it at the most.
                    let end = match self.pieces.get(at + 1) {
                        Some(Piece::Text(text)) => text.as_bytes(),
                        _ => b"",
                    };
                    let Some(middle) = rest.strip_suffix(end) else { return false };
                    return middle.iter().all(|byte| *byte == b'/' || may_stand(*byte));
                }
            }
        }
        rest.is_empty()
    }
}

/// What may be in a segment of a template: `pchar` of RFC 3986 without the star.
fn is_segment(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'%' | b'!'
        | b'$' | b'&' | b'\'' | b'(' | b')' | b'+' | b',' | b';' | b':' | b'@' | b'=')
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Template {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Template> for String {
    fn from(template: Template) -> Self {
        template.text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(template: &str, path: &str) -> bool {
        Template::parse(template).unwrap().match_path(path.as_bytes(), Leaning::NotToMatch)
    }

    #[test]
    fn operators_stand_for_segments_as_the_reference_has_it() {
        for (template, fitting, others) in [
            (
                "/foo/{*}",
                &["/foo/bar", "/foo/a*b"][..],
                &["/foo/bar/baz", "/foo/", "/foo", "/foo/a\"b"][..],
            ),
            (
                "/foo/{**}/",
                &["/foo/bar/", "/foo/bar/baz.txt/", "/foo//"],
                &["/foo/bar", "/foo/bar/baz.txt"],
            ),
            ("/foo/{*}/bar/{**}", &["/foo/buzz/bar/", "/foo/buzz/bar/baz"], &["/foo/bar/baz"]),
            ("/{**}", &["/", "/a", "/a/b"], &[""]),
            ("/{*}/b", &["/a/b", "/%2F/b"], &["//b", "/a/b/", "/a/c"]),
        ] {
            for path in fitting {
                assert!(fits(template, path), "{template} {path}");
            }
            for path in others {
                assert!(!fits(template, path), "{template} {path}");
            }
        }
    }

    #[test]
    fn what_keeps_out_keeps_out_odd_bytes_too() {
        let template = Template::parse("/foo/{*}").unwrap();
        assert!(template.match_path(b"/foo/a\"b", Leaning::ToMatch));
        assert!(!template.match_path(b"/foo/a/b", Leaning::ToMatch));
    }

    #[test]
    fn what_istio_refuses_is_refused() {
        for text in
            ["/*/baz/{*}", "/**/baz/{*}", "/{**}/foo/{*}", "/foo/{*}.txt", "/{a}/{*}", "/a//{*}"]
        {
            assert!(Template::parse(text).is_err(), "{text}");
        }
        for text in ["/{*}", "/a/{**}/b", "{*}/"] {
            assert_eq!(String::from(Template::parse(text).unwrap()), text);
        }
    }
}
