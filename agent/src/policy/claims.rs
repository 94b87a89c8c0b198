//! What a JWT says of who sends a request, and how policies ask for it.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::pattern::{Pattern, Patterns};

/// What a token says that was verified.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims(Map<String, Value>);

/// Who sends a request, as policies write it: `issuer/subject`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenPrincipal {
    text: Box<str>,
    issuer: Pattern,
    subject: Pattern,
}

/// Where a claim is: in a claim of that name, and so on.
pub type ClaimPath = Box<[Box<str>]>;

impl Claims {
    /// Of what a token's payload says.
    pub fn new(payload: Map<String, Value>) -> Self {
        Self(payload)
    }

    /// A claim that is a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// Issuer and subject, as policies write them.
    pub(super) fn principal(&self) -> Option<String> {
        Some(format!("{}/{}", self.text("iss")?, self.text("sub")?))
    }

    /// A claim, in words.
    pub(super) fn in_words(&self, path: &[Box<str>]) -> Option<String> {
        match self.at(path)? {
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    fn at(&self, path: &[Box<str>]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.0.get(&**first)?, |value, name| value.as_object()?.get(&**name))
    }

    /// Whether the claim is a text that matches, or a list that has one.
    pub(super) fn match_claim(&self, path: &[Box<str>], patterns: &Patterns) -> bool {
        let is_one =
            |value: &Value| value.as_str().is_some_and(|text| patterns.match_text(text.as_bytes()));
        match self.at(path) {
            Some(Value::Array(list)) => list.iter().any(is_one),
            Some(value) => is_one(value),
            None => false,
        }
    }

    pub(super) fn match_principal(&self, principals: &[Principals]) -> bool {
        let (Some(issuer), Some(subject)) = (self.text("iss"), self.text("sub")) else {
            return false;
        };
        principals.iter().any(|Principals { issuers, subjects }| {
            issuers.match_text(issuer.as_bytes()) && subjects.match_text(subject.as_bytes())
        })
    }
}

impl TokenPrincipal {
    /// As Istio takes it apart: the subject is behind the last slash, an issuer may have some. A star at
    /// the beginning is about the issuer, one at the end about the subject, if there is one.
    pub fn of(text: &str) -> Self {
        let exact = |text: &str| Pattern::Exact(text.into());
        let present_or = |text: &str, pattern: fn(Box<str>) -> Pattern| match text {
            "" => Pattern::Present,
            text => pattern(text.into()),
        };
        let parts = text.rsplit_once('/');
        let (issuer, subject) = match (text.strip_prefix('*'), text.strip_suffix('*'), parts) {
            (Some(""), ..) => (Pattern::Present, Pattern::Present),
            (Some(_), _, Some((issuer, subject))) => {
                (present_or(&issuer[1..], Pattern::Suffix), exact(subject))
            }
            (Some(subject), _, None) => (Pattern::Present, Pattern::Suffix(subject.into())),
            (None, Some(_), Some((issuer, subject))) => {
                let subject = &subject[..subject.len() - 1];
                (exact(issuer), present_or(subject, Pattern::Prefix))
            }
            (None, Some(issuer), None) => (Pattern::Prefix(issuer.into()), Pattern::Present),
            (None, None, Some((issuer, subject))) => (exact(issuer), exact(subject)),
            (None, None, None) => (exact(text), exact("")),
        };
        Self { text: text.into(), issuer, subject }
    }
}

impl fmt::Display for TokenPrincipal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A [`TokenPrincipal`], compiled.
#[derive(Debug)]
pub(super) struct Principals {
    issuers: Patterns,
    subjects: Patterns,
}

impl From<&TokenPrincipal> for Principals {
    fn from(TokenPrincipal { issuer, subject, .. }: &TokenPrincipal) -> Self {
        let patterns = |pattern| std::iter::once(pattern).collect();
        Self { issuers: patterns(issuer), subjects: patterns(subject) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(payload: Value) -> Claims {
        let Value::Object(payload) = payload else { panic!("{payload}") };
        Claims::new(payload)
    }

    #[test]
    fn a_principal_is_an_issuer_and_a_subject_each_with_a_star_at_most() {
        let who = claims(json!({"iss": "https://a.example/b", "sub": "order"}));
        let matches = |who: &Claims, text: &str| {
            who.match_principal(&[Principals::from(&TokenPrincipal::of(text))])
        };
        for (text, expected) in [
            ("*", true),
            ("https://a.example/b/order", true),
            ("https://a.example/b/*", true),
            ("https://a.example/b/ord*", true),
            ("*/order", true),
            ("*example/b/order", true),
            ("*der", true),
            ("https://a*", false),
            ("https://a.example/b/orde", false),
            ("https://a.example/order", false),
            ("https://a.example*/order", false),
            ("*/orde", false),
            ("*/b/*", false),
            ("order", false),
            ("https://a.example/b/", false),
            ("https://a.example/*", false),
        ] {
            assert_eq!(matches(&who, text), expected, "{text}");
        }
        for nobody in [
            json!({}),
            json!({"iss": "a"}),
            json!({"sub": "b"}),
            json!({"iss": "", "sub": "b"}),
            json!({"iss": "a", "sub": 1}),
        ] {
            assert!(!matches(&claims(nobody.clone()), "*"), "{nobody}");
        }
    }

    #[test]
    fn a_claim_is_a_text_or_a_list_of_some_however_deep() {
        let who = claims(json!({
            "aud": ["a", "b"], "azp": "web", "n": 7, "yes": true, "none": null, "empty": "",
            "deep": {"er": {"groups": ["admin", 7, ["x"]], "name": "order"}},
        }));
        let matches = |path: &[&str], values: &[&str]| {
            let path: Vec<Box<str>> = path.iter().map(|name| (*name).into()).collect();
            let patterns: Vec<_> = values.iter().map(|value| Pattern::of(value)).collect();
            who.match_claim(&path, &patterns.iter().collect())
        };
        assert!(matches(&["aud"], &["b"]));
        assert!(matches(&["aud"], &["x", "a*"]));
        assert!(matches(&["azp"], &["*eb"]));
        assert!(matches(&["azp"], &["*"]));
        assert!(matches(&["deep", "er", "groups"], &["admin"]));
        assert!(matches(&["deep", "er", "name"], &["order"]));
        for (path, value) in [
            (&["aud"][..], "c"),
            (&["deep", "er", "groups"], "x"),
            (&["deep", "er", "groups"], "7"),
            (&["deep.er.name"], "order"),
            (&["deep", "er"], "*"),
            (&["deep", "er", "name", "x"], "*"),
            (&["n"], "7"),
            (&["yes"], "true"),
            (&["none"], "*"),
            (&["empty"], "*"),
            (&["missing"], "*"),
        ] {
            assert!(!matches(path, &[value]), "{path:?}");
        }
    }
}
