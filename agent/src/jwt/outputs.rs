//! What the application is told of a token.

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value};

use super::spec::Provider;
use crate::http::AnyRequest;

/// Adds the fields that `provider` writes, unless another has written them.
pub(super) fn add<H: AnyRequest>(
    request: &mut H,
    provider: &Provider,
    payload: &str,
    claims: &Map<String, Value>,
) {
    if let Some(name) = &provider.payload_header
        && request.value_of(name.as_str()).is_none()
    {
        request.add_field(name, payload.as_bytes());
    }
    for (name, claim) in &provider.claim_headers {
        let Some(text) = at(claims, claim).and_then(text) else { continue };
        // What would end a line is the issuer's doing, and of no use to anybody.
        let fits = text.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f));
        if fits && !text.is_empty() && request.value_of(name.as_str()).is_none() {
            request.add_field(name, text.as_bytes());
        }
    }
}

/// The claim at a path with dots.
fn at<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let mut names = path.split('.');
    let first = claims.get(names.next()?)?;
    names.try_fold(first, |value, name| value.as_object()?.get(name))
}

/// As Envoy writes a value, more of which it writes than Istio says.
fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Bool(value) => Some(Cow::Borrowed(if *value { "true" } else { "false" })),
        Value::Number(number) => {
            let number = number.as_f64()?;
            let is_whole = number >= 0.0 && number < u64::MAX as f64 && number.fract() == 0.0;
            Some(match is_whole {
                true => Cow::Owned((number as u64).to_string()),
                false => Cow::Owned(format!("{number:.6}")),
            })
        }
        Value::Array(_) | Value::Object(_) => {
            Some(Cow::Owned(BASE64_STANDARD.encode(value.to_string())))
        }
        Value::Null => None,
    }
}

/// Makes lists of the claims at `names` that are texts with spaces between.
pub(super) fn split_lists<'a>(
    claims: &mut Map<String, Value>,
    names: impl Iterator<Item = &'a str>,
) {
    for name in names {
        let Some(Value::String(text)) = claims.get(name) else { continue };
        let list = text.split(' ').filter(|word| !word.is_empty()).map(Value::from).collect();
        claims.insert(name.to_owned(), Value::Array(list));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_written_as_envoy_does() {
        for (value, expected) in [
            (json!("a b"), Some("a b")),
            (json!(true), Some("true")),
            (json!(7), Some("7")),
            (json!(1_700_000_000_000_u64), Some("1700000000000")),
            (json!(-7), Some("-7.000000")),
            (json!(0.5), Some("0.500000")),
            (json!(null), None),
            (json!(["a"]), Some("WyJhIl0=")),
            (json!({"a": "b"}), Some("eyJhIjoiYiJ9")),
        ] {
            assert_eq!(text(&value).as_deref(), expected, "{value}");
        }
        let Value::Object(claims) = json!({"a": {"b": {"c": "d"}}, "a.b": "e"}) else { panic!() };
        assert_eq!(at(&claims, "a.b.c"), Some(&json!("d")));
        for none in ["", "a.b.c.d", "x", "a..b"] {
            assert_eq!(at(&claims, none), None, "{none}");
        }
    }

    #[test]
    fn texts_with_spaces_become_lists_where_that_is_said() {
        let Value::Object(mut claims) = json!({"scope": "a  b", "x": "a b", "permission": 7})
        else {
            panic!()
        };
        split_lists(&mut claims, ["scope", "permission", "none"].into_iter());
        assert_eq!(
            Value::Object(claims),
            json!({"scope": ["a", "b"], "x": "a b", "permission": 7})
        );
    }
}
