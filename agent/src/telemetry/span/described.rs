//! What is kept of a request that is recorded.

use crate::{
    http::{AnyRequest, Version},
    telemetry::{flow::Reporter, wire::LONGEST_VALUE},
};

/// A request in words, copied in one piece: the bytes it came in are not held until its span ends.
pub(super) struct Described {
    text: String,
    method: Part,
    scheme: Option<Part>,
    authority: Option<Part>,
    path: Part,
    query: Option<Part>,
    user_agent: Option<Part>,
    pub(super) version: Version,
}

/// A place in the text.
#[derive(Clone, Copy)]
struct Part {
    start: u32,
    end: u32,
}

impl Described {
    /// As much of `request` as `reporter` tells.
    pub(super) fn of(request: &impl AnyRequest, reporter: Reporter) -> Self {
        let target = request.target();
        let named = target.authority.or_else(|| request.value_of("host"));
        let agent = match reporter {
            Reporter::Destination => request.value_of("user-agent"),
            Reporter::Source => None,
        };
        let mut text = String::new();
        let mut put = |bytes: &[u8]| {
            let start = text.len() as u32;
            put(&mut text, &bytes[..bytes.len().min(LONGEST_VALUE)]);
            Part { start, end: text.len() as u32 }
        };
        let method = put(request.method());
        let scheme = target.scheme.map(&mut put);
        let authority = named.filter(|named| !named.is_empty()).map(&mut put);
        let (path, query) = (put(target.path), target.query.map(&mut put));
        let (user_agent, version) = (agent.map(&mut put), request.version());
        Self { text, method, scheme, authority, path, query, user_agent, version }
    }

    fn at(&self, part: Part) -> &str {
        &self.text[part.start as usize..part.end as usize]
    }

    pub(super) fn method(&self) -> &str {
        self.at(self.method)
    }

    pub(super) fn scheme(&self) -> &str {
        self.scheme.map_or("http", |scheme| self.at(scheme))
    }

    /// The host and port it names: in its target, else in its Host field.
    pub(super) fn authority(&self) -> Option<&str> {
        self.authority.map(|authority| self.at(authority))
    }

    pub(super) fn path(&self) -> &str {
        self.at(self.path)
    }

    pub(super) fn query(&self) -> Option<&str> {
        self.query.map(|query| self.at(query))
    }

    pub(super) fn user_agent(&self) -> Option<&str> {
        self.user_agent.map(|agent| self.at(agent))
    }
}

/// Bytes as text; what is no UTF-8 is replaced.
fn put(text: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
}
