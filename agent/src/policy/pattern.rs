//! Texts as policies write them, and many of them at once.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

/// What a text has to be, as Istio has it for every text in a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pattern {
    /// This text.
    Exact(Box<str>),
    /// `abc*`: what begins so.
    Prefix(Box<str>),
    /// `*abc`: what ends so.
    Suffix(Box<str>),
    /// `*`: anything, but not nothing.
    Present,
    /// Pieces in their order, with anything between them. Namespaces alone have these.
    Glob(Vec<Box<str>>),
}

impl Pattern {
    /// As most fields have it: a star is one at the beginning, else at the end.
    pub fn of(text: &str) -> Self {
        match text {
            "*" => Self::Present,
            _ => match (text.strip_prefix('*'), text.strip_suffix('*')) {
                (Some(end), _) => Self::Suffix(end.into()),
                (None, Some(beginning)) => Self::Prefix(beginning.into()),
                (None, None) => Self::Exact(text.into()),
            },
        }
    }

    /// As namespaces and trust domains have it: stars anywhere.
    pub fn glob(text: &str) -> Self {
        let stars = text.matches('*').count();
        let at_an_end = text.starts_with('*') || text.ends_with('*');
        if stars == 0 || text == "*" || (stars == 1 && at_an_end) {
            return Self::of(text);
        }
        Self::Glob(text.split('*').map(Into::into).collect())
    }

    /// What is written of it, where that is one piece.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Exact(text) | Self::Prefix(text) | Self::Suffix(text) => Some(text),
            Self::Present | Self::Glob(_) => None,
        }
    }

    /// The same in small letters.
    pub fn lower(self) -> Self {
        let lower = |text: Box<str>| text.to_ascii_lowercase().into();
        match self {
            Self::Exact(text) => Self::Exact(lower(text)),
            Self::Prefix(text) => Self::Prefix(lower(text)),
            Self::Suffix(text) => Self::Suffix(lower(text)),
            other => other,
        }
    }
}

impl fmt::Display for Pattern {
    /// As policies write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Present => f.write_str("*"),
            Self::Glob(pieces) => f.write_str(&pieces.join("*")),
        }
    }
}

/// Several patterns, of which one is enough. Looking a text up takes as long as a few comparisons,
/// however many there are.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    present: bool,
    /// In their order.
    exact: Vec<Box<[u8]>>,
    /// In their order; none begins with another.
    prefixes: Vec<Box<[u8]>>,
    /// Turned round, as the former.
    suffixes: Vec<Box<[u8]>>,
    globs: Vec<Vec<Box<str>>>,
}

impl<'a> FromIterator<&'a Pattern> for Patterns {
    fn from_iter<I: IntoIterator<Item = &'a Pattern>>(all: I) -> Self {
        let mut patterns = Self::default();
        for pattern in all {
            match pattern {
                Pattern::Present => patterns.present = true,
                Pattern::Exact(text) => patterns.exact.push(text.as_bytes().into()),
                Pattern::Prefix(text) => patterns.prefixes.push(text.as_bytes().into()),
                Pattern::Suffix(text) => patterns.suffixes.push(text.bytes().rev().collect()),
                Pattern::Glob(pieces) => patterns.globs.push(pieces.clone()),
            }
        }
        patterns.exact.sort_unstable();
        for beginnings in [&mut patterns.prefixes, &mut patterns.suffixes] {
            beginnings.sort_unstable();
            // What begins with another follows that one.
            beginnings.dedup_by(|longer, shorter| longer.starts_with(shorter));
        }
        patterns
    }
}

impl Patterns {
    pub(super) fn match_text(&self, text: &[u8]) -> bool {
        (self.present && !text.is_empty())
            || self.exact.binary_search_by(|exact| (**exact).cmp(text)).is_ok()
            || begins_with_one(&self.prefixes, text)
            || self.match_end(text)
            || (!text.is_empty() && self.globs.iter().any(|pieces| is_glob(pieces, text)))
    }

    /// Whether it is enough that there is a text, which may be empty.
    pub(super) fn match_presence(&self) -> bool {
        self.present
    }

    fn match_end(&self, text: &[u8]) -> bool {
        match self.suffixes.len() {
            0 => false,
            // Without a copy of the text, as most are.
            1..=8 => self.suffixes.iter().any(|suffix| {
                suffix.len() <= text.len() && suffix.iter().eq(text.iter().rev().take(suffix.len()))
            }),
            _ => {
                let at =
                    self.suffixes.partition_point(|suffix| suffix.iter().le(text.iter().rev()));
                at.checked_sub(1).is_some_and(|at| {
                    let suffix = &self.suffixes[at];
                    suffix.len() <= text.len()
                        && suffix.iter().eq(text.iter().rev().take(suffix.len()))
                })
            }
        }
    }
}

/// Whether one of `beginnings`, of which none begins with another, begins `text`.
fn begins_with_one(beginnings: &[Box<[u8]>], text: &[u8]) -> bool {
    let at = beginnings.partition_point(|beginning| **beginning <= *text);
    at.checked_sub(1).is_some_and(|at| text.starts_with(&beginnings[at]))
}

fn is_glob(pieces: &[Box<str>], text: &[u8]) -> bool {
    let [first, middle @ .., last] = pieces else { return false };
    let Some(mut rest) = text.strip_prefix(first.as_bytes()) else { return false };
    for piece in middle {
        let Some(at) = memchr::memmem::find(rest, piece.as_bytes()) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last.as_bytes())
}

/// The same text in small letters.
pub(super) fn lower(text: &[u8]) -> Cow<'_, [u8]> {
    match text.iter().any(u8::is_ascii_uppercase) {
        true => Cow::Owned(text.to_ascii_lowercase()),
        false => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(patterns: &[&str], text: &str) -> bool {
        let patterns: Vec<_> = patterns.iter().map(|pattern| Pattern::of(pattern)).collect();
        patterns.iter().collect::<Patterns>().match_text(text.as_bytes())
    }

    #[test]
    fn a_star_at_an_end_stands_for_anything() {
        for (pattern, fits, others) in [
            ("abc", &["abc"][..], &["", "ab", "abcd", "xabc", "ABC"][..]),
            ("abc*", &["abc", "abcd"], &["", "ab", "xabc"]),
            ("*abc", &["abc", "xabc"], &["", "bc", "abcd"]),
            ("*", &["a", "*"], &[""]),
            ("*a*", &["xa*"], &["a", "xax"]),
            ("a*c", &["a*c"], &["abc", "ac"]),
        ] {
            for text in fits {
                assert!(matches(&[pattern], text), "{pattern} {text}");
            }
            for text in others {
                assert!(!matches(&[pattern], text), "{pattern} {text}");
            }
        }
    }

    #[test]
    fn stars_are_anywhere_in_namespaces() {
        let fits = |pattern: &str, text: &str| {
            [Pattern::glob(pattern)].iter().collect::<Patterns>().match_text(text.as_bytes())
        };
        for (pattern, text, expected) in [
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "acx", false),
            ("*-team-*", "x-team-y", true),
            ("*-team-*", "xteam-y", false),
            ("ab*ba", "aba", false),
            ("**", "", false),
            ("**", "a", true),
            ("a*", "ab", true),
            ("*a", "ba", true),
            ("*", "", false),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn many_patterns_match_what_one_of_them_does(
            patterns in prop::collection::vec("\\*?[ab]{0,3}\\*?", 0..20), text in "[ab]{0,5}",
        ) {
            let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let one_of_them = patterns.iter().any(|pattern| matches(&[pattern], &text));
            prop_assert_eq!(matches(&patterns, &text), one_of_them);
        }
    }
}
