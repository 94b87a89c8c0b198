//! What is known of whoever asks, and of what is asked.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use super::{
    claims::Claims,
    path::{self, NoPath},
    pattern::lower,
    target,
};
use crate::{http::AnyRequest, mesh::Principal};

/// Which way a doubt is settled, by what comes of a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaning {
    /// Who matches is kept out, or noted: any reading of the request is enough.
    ToMatch,
    /// Who matches is let in: all of them have to match.
    NotToMatch,
}

impl Leaning {
    pub(super) fn turned(self) -> Self {
        match self {
            Self::ToMatch => Self::NotToMatch,
            Self::NotToMatch => Self::ToMatch,
        }
    }
}

/// A connection to a workload.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// Who the client proved to be; `None` for plaintext.
    pub principal: Option<&'a Principal>,
    /// The client's address.
    pub source: IpAddr,
    /// The workload's own address and port.
    pub destination: SocketAddr,
}

/// A request as it is judged.
#[derive(Debug)]
pub struct Request<'a, H> {
    pub(super) head: &'a H,
    /// Of its JWT, where it has one that was verified.
    pub(super) claims: Option<&'a Claims>,
    pub(super) paths: Readings<'a>,
}

/// The ways to read one text.
#[derive(Debug)]
pub(super) struct Readings<'a> {
    pub(super) base: Cow<'a, [u8]>,
    /// Where it is another one.
    pub(super) strict: Option<Vec<u8>>,
    /// Without what is no part of it for some. Nobody is let in for that.
    pub(super) bare: Option<Vec<u8>>,
}

impl<'a, H: AnyRequest> Request<'a, H> {
    /// Of the head of a request, as it came.
    ///
    /// # Errors
    /// Where its target or its path is none that could be judged.
    pub fn new(head: &'a H) -> Result<Self, NoPath> {
        target::check(head)?;
        let path = match head.target().path {
            // RFC 9110 §4.2.3.
            [] if head.method() != b"CONNECT" => b"/",
            path => path,
        };
        let base = path::base(path)?;
        let strict = match path::strict(&base) {
            Cow::Borrowed(_) => None,
            Cow::Owned(strict) => Some(strict),
        };
        let bare = path::without_parameters(strict.as_deref().unwrap_or(&base));
        Ok(Self { head, claims: None, paths: Readings { base, strict, bare } })
    }

    /// The same where no rule asks for its path.
    ///
    /// # Errors
    /// Where its target is none that could be judged.
    pub fn without_path(head: &'a H) -> Result<Self, NoPath> {
        target::check(head)?;
        Ok(Self::unread(head))
    }

    /// The same where no rule asks for anything of it.
    pub fn unread(head: &'a H) -> Self {
        let paths = Readings { base: Cow::Borrowed(b""), strict: None, bare: None };
        Self { head, claims: None, paths }
    }

    /// The same with what its token claims.
    pub fn with_claims(self, claims: Option<&'a Claims>) -> Self {
        Self { claims, ..self }
    }

    /// The path that is judged, where it is another one than came.
    pub fn rewritten(&self) -> Option<&[u8]> {
        match &self.paths.base {
            Cow::Borrowed(_) => None,
            Cow::Owned(path) => Some(path),
        }
    }
}

/// Host or `:authority`, as it came.
pub(super) fn host<H: AnyRequest>(head: &H) -> &[u8] {
    head.target().authority.or_else(|| head.value_of("host")).unwrap_or_default()
}

/// Each server that a request names, as it came: there are several where the target is in absolute form,
/// and the Host field is another one's.
pub(super) fn hosts_as_they_came<H: AnyRequest>(head: &H) -> impl Iterator<Item = &[u8]> {
    let first = host(head);
    let others = head.values_of("host").filter(move |other| *other != first);
    std::iter::once(first).chain(others)
}

/// The same in small letters.
pub(super) fn hosts<H: AnyRequest>(head: &H) -> impl Iterator<Item = Cow<'_, [u8]>> {
    hosts_as_they_came(head).map(lower)
}

/// The server that a host names: without its port and dots at its end.
pub(super) fn server(host: &[u8]) -> &[u8] {
    let colon = memchr::memrchr(b':', host).filter(|colon| {
        host[colon + 1..].iter().all(u8::is_ascii_digit) && !host[*colon..].contains(&b']')
    });
    let mut server = &host[..colon.unwrap_or(host.len())];
    while let Some(shorter) = server.strip_suffix(b".") {
        server = shorter;
    }
    server
}

/// The address that Envoy takes for the client's with Istio's default of `numTrustedProxies`: the last in
/// `X-Forwarded-For`, and the connection's own where that is none.
pub(super) fn remote<H: AnyRequest>(head: &H, source: IpAddr) -> IpAddr {
    let last = head.values_of("x-forwarded-for").last();
    let last = last.and_then(|value| value.rsplit(|byte| *byte == b',').next());
    let last = last.and_then(|text| str::from_utf8(text.trim_ascii()).ok()?.parse().ok());
    last.unwrap_or(source).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_with_or_without_its_port() {
        for (host, expected) in [
            ("a.example", "a.example"),
            ("a.example.", "a.example"),
            ("a.example:80", "a.example"),
            ("a.example.:80", "a.example"),
            ("a.example..", "a.example"),
            ("a.example:", "a.example"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]"),
            ("10.0.0.1:8080", "10.0.0.1"),
            ("", ""),
        ] {
            assert_eq!(server(host.as_bytes()), expected.as_bytes(), "{host}");
        }
    }

    #[test]
    fn the_client_is_where_the_last_proxy_says() {
        let source: IpAddr = "10.0.0.1".parse().unwrap();
        let remote = |values: &[&str]| {
            let mut request = http::Request::builder();
            for value in values {
                request = request.header("x-forwarded-for", *value);
            }
            remote(&request.body(()).unwrap().into_parts().0, source).to_string()
        };
        assert_eq!(remote(&[]), "10.0.0.1");
        assert_eq!(remote(&["192.0.2.1"]), "192.0.2.1");
        assert_eq!(remote(&["192.0.2.1, 192.0.2.2"]), "192.0.2.2");
        assert_eq!(remote(&["192.0.2.1", "2001:db8::1"]), "2001:db8::1");
        assert_eq!(remote(&["::ffff:192.0.2.1"]), "192.0.2.1");
        for none in ["", "unknown", "192.0.2.1:80", "192.0.2.1,"] {
            assert_eq!(remote(&[none]), "10.0.0.1", "{none}");
        }
    }
}
