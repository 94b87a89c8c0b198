//! Which targets have one meaning, so that what is judged is what the application is asked for.
//!
//! Applications take what has none of the forms of RFC 9112 §3.2 for this or that: to Go's server
//! `x:/admin` is the path `/admin`, and so is the target of a CONNECT; to WSGI `admin` is. Envoy answers
//! them with 400.

use super::path::NoPath;
use crate::http::{AnyRequest, Target};

/// Whether the target and the Host fields of a request have a form that all read alike.
///
/// # Errors
/// Where one has not.
pub(super) fn check<H: AnyRequest>(head: &H) -> Result<(), NoPath> {
    let method = head.method();
    let Target { scheme, authority, path, .. } = head.target();
    if authority.is_some_and(|authority| authority.is_empty() || !names_a_server(authority)) {
        return Err(NoPath::NoServer);
    }
    if !head.values_of("host").all(names_a_server) {
        return Err(NoPath::NoServer);
    }
    let is_http = |scheme: &[u8]| {
        scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https")
    };
    let has_form = match path {
        // Of an absolute form without a path (RFC 9110 §4.2.3), or of CONNECT.
        [] => match method {
            b"CONNECT" => authority.is_some_and(has_port),
            _ => authority.is_some(),
        },
        [b'/' | b'\\', ..] => true,
        b"*" => method == b"OPTIONS",
        _ => false,
    };
    match has_form && scheme.is_none_or(is_http) {
        true => Ok(()),
        false => Err(NoPath::NoTarget),
    }
}

/// Whether `host` has no byte but those of a name, an address and a port (RFC 3986 §3.2.2).
fn names_a_server(host: &[u8]) -> bool {
    host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte))
}

fn has_port(authority: &[u8]) -> bool {
    let port = memchr::memrchr(b':', authority).map(|colon| &authority[colon + 1..]);
    port.is_some_and(|port| !port.is_empty() && port.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Fields, Version};

    /// A request line and a Host field.
    struct Line(&'static str, &'static str, &'static str);

    impl Fields for Line {
        fn values_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
            (name == "host").then_some(self.2.as_bytes()).into_iter()
        }

        fn remove(&mut self, _: &str) {}

        fn add(&mut self, _: &'static str, _: &[u8]) {}

        fn add_field(&mut self, _: &http::HeaderName, _: &[u8]) {}

        fn each(&self, _: &mut dyn FnMut(&[u8], &[u8])) {}
    }

    impl AnyRequest for Line {
        fn method(&self) -> &[u8] {
            self.0.as_bytes()
        }

        fn target(&self) -> Target<'_> {
            Target::of(self.method(), self.1.as_bytes())
        }

        fn version(&self) -> Version {
            Version::Http11
        }

        fn set_path(&mut self, _: &[u8]) {}

        fn set_query(&mut self, _: Option<&[u8]>) {}
    }

    #[test]
    fn what_applications_read_in_different_ways_is_no_target() {
        let of = |method, target, host| check(&Line(method, target, host));
        for target in
            ["/", "/a?b", "//a", "\\a", "http://a/b", "HTTPS://a:8443", "http://[::1]:80/x"]
        {
            assert_eq!(of("GET", target, "a"), Ok(()), "{target}");
        }
        assert_eq!(of("OPTIONS", "*", "a"), Ok(()));
        assert_eq!(of("CONNECT", "a:443", "a"), Ok(()));
        assert_eq!(of("GET", "/", ""), Ok(()), "HTTP/1.0 need not name one");
        for target in ["*", "admin", "x:/admin", "http:/admin", "ftp://a/b", "?a", "http:///a"] {
            assert!(of("GET", target, "a").is_err(), "{target}");
        }
        for target in ["/admin", "a:80/admin", "a", "a:", "http://a/b"] {
            assert!(of("CONNECT", target, "a").is_err(), "{target}");
        }
        for server in ["http://u@a/b", "http://a\\b", "http://a\"/"] {
            assert_eq!(of("GET", server, "a"), Err(NoPath::NoServer), "{server}");
        }
        assert_eq!(of("GET", "/", "u@a"), Err(NoPath::NoServer));
    }
}
