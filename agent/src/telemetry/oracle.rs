//! That what is said of a trace is said on in the same way, whatever a client sends. For tests and
//! fuzzers (`tests/fuzz`).

use http::{HeaderMap, HeaderName, HeaderValue};

use super::context::{Incoming, inject};

/// What is made of `bytes`, each line of which is a field.
///
/// # Panics
/// When the next one would read something else than what was read here.
pub(crate) fn context(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let incoming = Incoming::extract(&headers);
    let Some(parent) = &incoming.parent else { return };
    assert!(incoming.decided.is_none(), "a decision beside a parent");
    // In W3C alone, and in whatever form it came.
    let mut next = HeaderMap::new();
    inject(&parent.context, &mut next);
    incoming.replace(&parent.context, &mut headers);
    for headers in [next, headers] {
        let again = Incoming::extract(&headers).parent.expect("a context that was written");
        assert_eq!(again.context, parent.context);
    }
}
