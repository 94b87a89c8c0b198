//! What an authorizer said.

use ::http::{HeaderMap, HeaderName, HeaderValue};

use super::Unasked;
use crate::http::{Answer, Fields};

/// What it said.
pub(super) enum Said {
    /// The request may pass.
    Permitted(Box<Permit>),
    /// It may not, and this is what its client is answered.
    Denied(Box<Answer>),
}

/// What becomes of a request that may pass.
#[derive(Default)]
pub(super) struct Permit {
    pub(super) request: Changes,
    pub(super) response: Changes,
}

/// Changes of a head, in their order.
#[derive(Debug, Default)]
pub(super) struct Changes(Vec<Change>);

#[derive(Debug)]
pub(super) enum Change {
    /// It is the only one of its name.
    Set(HeaderName, HeaderValue),
    /// The same where there is one already.
    Replace(HeaderName, HeaderValue),
    /// It is one more of its name.
    Add(HeaderName, HeaderValue),
    /// There is one of its name.
    Ensure(HeaderName, HeaderValue),
    Remove(HeaderName),
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, change: Change) {
        self.0.push(change);
    }

    pub(super) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub(super) fn apply(&self, head: &mut impl Fields) {
        for change in &self.0 {
            let is_there = |name: &HeaderName| head.value_of(name.as_str()).is_some();
            match change {
                Change::Replace(name, _) if !is_there(name) => {}
                Change::Ensure(name, _) if is_there(name) => {}
                Change::Set(name, value) | Change::Replace(name, value) => {
                    head.remove(name.as_str());
                    head.add_field(name, value.as_bytes());
                }
                Change::Add(name, value) | Change::Ensure(name, value) => {
                    head.add_field(name, value.as_bytes());
                }
                Change::Remove(name) => head.remove(name.as_str()),
            }
        }
    }
}

/// A field that an authorizer may have a say in.
pub(super) fn field(name: &str, value: &[u8]) -> Result<(HeaderName, HeaderValue), Unasked> {
    let name = self::name(name)?;
    let value = HeaderValue::from_bytes(value)
        .map_err(|_| Unasked(format!("it answered with a value of {name} that is none")))?;
    Ok((name, value))
}

/// The same of its name alone.
pub(super) fn name(text: &str) -> Result<HeaderName, Unasked> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    name.filter(|name| !is_framing(name)).ok_or_else(|| {
        let text = text.escape_debug();
        Unasked(format!("it answered with the field `{text}`, which is not for it to change"))
    })
}

/// Whether a field says how a message is sent, and to whom. Another one than is true would have two readers
/// of the message disagree where it ends.
pub(super) fn is_framing(name: &HeaderName) -> bool {
    const FRAMING: [&str; 10] = [
        "connection",
        "content-length",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    FRAMING.contains(&name.as_str())
}

/// What a client is answered that an authorizer does not let in.
pub(super) fn denied(status: u16, body: &[u8], fields: HeaderMap) -> Said {
    // As gRPC's and HTTP's own codes have it; what is none is Envoy's default.
    let status = if (200..600).contains(&status) { status } else { 403 };
    let text = String::from_utf8_lossy(body).into_owned();
    let fields = Some(Box::new(fields)).filter(|fields| !fields.is_empty());
    Said::Denied(Box::new(Answer { status, text, fields }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(changes: Vec<Change>) -> Vec<String> {
        let mut head = HeaderMap::new();
        head.append("x-a", HeaderValue::from_static("1"));
        head.append("x-a", HeaderValue::from_static("2"));
        Changes(changes).apply(&mut head);
        let fields = head.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap()));
        fields.collect()
    }

    #[test]
    fn fields_are_set_added_and_removed_by_what_is_there() {
        let a = || field("X-A", b"new").unwrap();
        let b = || field("x-b", b"new").unwrap();
        let of = |change: fn(HeaderName, HeaderValue) -> Change| {
            let (a, b) = (a(), b());
            changed(vec![change(a.0, a.1), change(b.0, b.1)]).join(" ")
        };
        assert_eq!(of(Change::Set), "x-a=new x-b=new");
        assert_eq!(of(Change::Replace), "x-a=new");
        assert_eq!(of(Change::Add), "x-a=1 x-a=2 x-a=new x-b=new");
        assert_eq!(of(Change::Ensure), "x-a=1 x-a=2 x-b=new");
        assert_eq!(changed(vec![Change::Remove(a().0)]), [""; 0]);
    }

    #[test]
    fn an_authorizer_has_no_say_in_how_messages_are_framed() {
        for name in [":path", "Host", "Content-Length", "transfer-encoding", "a b", ""] {
            assert!(field(name, b"1").is_err(), "{name}");
        }
        assert!(field("x-a", b"1\r\nx-b: 2").is_err());
    }
}
