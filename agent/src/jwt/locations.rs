//! Where tokens are in a request.

use std::borrow::Cow;

use http::{HeaderName, header};

use super::spec::Rule;
use crate::http::AnyRequest;

/// Where a rule looks for tokens.
#[derive(Debug)]
pub(super) struct Locations {
    headers: Vec<(HeaderName, Box<str>)>,
    params: Vec<Box<str>>,
    cookies: Vec<Box<str>>,
}

/// A token that a request has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Text that may be one.
    pub(super) text: String,
    pub(super) place: Place,
}

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Header(HeaderName),
    Param(Box<str>),
    Cookie,
}

impl Locations {
    /// Those of `rule`; where it names none, RFC 6750's (§2.1 and §2.3).
    pub(super) fn new(rule: &Rule) -> Self {
        let named = |name: &str| HeaderName::from_bytes(name.as_bytes()).ok();
        let headers = rule.from_headers.iter();
        let mut locations = Self {
            headers: headers
                .filter_map(|header| Some((named(&header.name)?, header.prefix.clone())))
                .collect(),
            params: rule.from_params.clone(),
            cookies: rule.from_cookies.clone(),
        };
        if rule.from_headers.is_empty()
            && rule.from_params.is_empty()
            && rule.from_cookies.is_empty()
        {
            locations.headers.push((header::AUTHORIZATION, "Bearer ".into()));
            locations.params.push("access_token".into());
        }
        locations
    }

    /// Every token there, also of several fields, parameters or cookies of a name: applications may look
    /// at one or the other.
    pub(super) fn find<H: AnyRequest>(&self, request: &H) -> Vec<Found> {
        let mut found = Vec::new();
        for (name, prefix) in &self.headers {
            for value in request.values_of(name.as_str()) {
                let value = String::from_utf8_lossy(value);
                if let Some(text) = after(&value, prefix) {
                    found.push(Found { text: text.to_owned(), place: Place::Header(name.clone()) });
                }
            }
        }
        if !self.params.is_empty() {
            for (name, value) in params(request.target().query.unwrap_or_default()) {
                if let Some(own) = self.params.iter().find(|own| *own.as_bytes() == *decoded(name))
                {
                    let text = String::from_utf8_lossy(&decoded(value)).into_owned();
                    found.push(Found { text, place: Place::Param(own.clone()) });
                }
            }
        }
        if !self.cookies.is_empty() {
            for (name, value) in request.values_of("cookie").flat_map(cookies) {
                if self.cookies.iter().any(|own| *own.as_bytes() == *name) {
                    let text = String::from_utf8_lossy(value).into_owned();
                    found.push(Found { text, place: Place::Cookie });
                }
            }
        }
        found
    }
}

impl Place {
    /// Takes the token out of `request`. Cookies stay, as with Envoy.
    pub(super) fn clear<H: AnyRequest>(&self, request: &mut H) {
        match self {
            Self::Header(name) => request.remove(name.as_str()),
            Self::Param(own) => {
                let Some(query) = request.target().query else { return };
                let others: Vec<&[u8]> = query
                    .split(|byte| *byte == b'&')
                    .filter(|param| *decoded(split(param, b'=').0) != *own.as_bytes())
                    .collect();
                let others = others.join(&b'&');
                request.set_query(Some(others.as_slice()).filter(|query| !query.is_empty()));
            }
            Self::Cookie => {}
        }
    }
}

/// What follows `prefix`, wherever that is in `value`, as Envoy has it; from the first byte on that a token
/// may have.
fn after<'a>(value: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() {
        return Some(value);
    }
    let rest = &value[value.find(prefix)? + prefix.len()..];
    let is_of_token = |one: char| one.is_ascii_alphanumeric() || matches!(one, '-' | '_' | '.');
    Some(rest.find(is_of_token).map_or(value, |start| &rest[start..]))
}

/// Names and values of a query, as they came.
fn params(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.split(|byte| *byte == b'&').map(|param| split(param, b'='))
}

/// Names and values of a Cookie field (RFC 6265 §4.2.1), without quotes around a value.
fn cookies(field: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    field.split(|byte| *byte == b';').map(|cookie| {
        let (name, value) = split(cookie.trim_ascii(), b'=');
        let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        (name, quoted.unwrap_or(value))
    })
}

fn split(text: &[u8], at: u8) -> (&[u8], &[u8]) {
    match memchr::memchr(at, text) {
        Some(place) => (&text[..place], &text[place + 1..]),
        None => (text, b""),
    }
}

/// Without escapes.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, tail @ ..] = rest {
        let digit = |at: usize| (*tail.get(at)? as char).to_digit(16);
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            _ => {
                decoded.push(*byte);
                rest = tail;
            }
        }
    }
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests {
    use http::request::Parts;

    use super::*;
    use crate::{
        http::Fields,
        jwt::{HeaderLocation, testing::rule},
    };

    fn head(target: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::get(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn texts(locations: &Locations, head: &Parts) -> Vec<String> {
        locations.find(head).into_iter().map(|found| found.text).collect()
    }

    #[test]
    fn a_rule_that_names_no_place_looks_where_bearers_have_tokens() {
        let locations = Locations::new(&rule("a", ""));
        for (target, value, expected) in [
            ("/", "Bearer a.b.c", &["a.b.c"][..]),
            ("/", "Bearer  a.b.c", &["a.b.c"]),
            ("/", "x Bearer a.b.c", &["a.b.c"]),
            ("/", "Bearer", &[]),
            ("/", "bearer a.b.c", &[]),
            ("/", "Basic YTpi", &[]),
            ("/?access_token=a.b.c", "", &["a.b.c"]),
            ("/?x=1&access%5Ftoken=a%2eb.c&access_token=d", "Bearer e", &["e", "a.b.c", "d"]),
            ("/?access_token", "", &[""]),
            ("/?xaccess_token=a", "", &[]),
        ] {
            let head = head(target, &[("authorization", value)]);
            assert_eq!(texts(&locations, &head), expected, "{target} {value}");
        }
    }

    #[test]
    fn other_places_are_looked_at_instead() {
        let header =
            |name: &str, prefix: &str| HeaderLocation { name: name.into(), prefix: prefix.into() };
        let mut rule = rule("a", "");
        rule.from_headers = vec![header("x-jwt", ""), header("x-tok", "JWT ")];
        rule.from_params = vec!["t".into()];
        rule.from_cookies = vec!["auth".into()];
        let locations = Locations::new(&rule);
        let fields = [
            ("authorization", "Bearer z"),
            ("x-jwt", "a"),
            ("x-jwt", "b"),
            ("x-tok", "JWT c"),
            ("cookie", "x=1; auth=\"e\"; auth=f"),
            ("cookie", "xauth=2;auth=g"),
        ];
        let head = head("/?access_token=z&t=d", &fields);
        assert_eq!(texts(&locations, &head), ["a", "b", "c", "d", "e", "f", "g"]);
    }

    #[test]
    fn a_token_is_taken_out_and_nothing_else() {
        let clear = |place: Place| {
            let fields = [("x-jwt", "a"), ("x-jwt", "b"), ("cookie", "t=1"), ("x", "1")];
            let mut head = head("/a?b=%41&t=1&%74=2&c", &fields);
            place.clear(&mut head);
            head
        };
        let without = clear(Place::Header(HeaderName::from_static("x-jwt")));
        assert_eq!(without.headers.len(), 2);
        assert_eq!(clear(Place::Param("t".into())).uri, "/a?b=%41&c");
        assert_eq!(clear(Place::Cookie).value_of("cookie"), Some(&b"t=1"[..]));
        let mut last = head("/a?t=1", &[]);
        Place::Param("t".into()).clear(&mut last);
        assert_eq!(last.uri, "/a");
    }
}
