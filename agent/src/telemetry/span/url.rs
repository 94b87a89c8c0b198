//! URLs as spans may show them: without credentials.

use std::fmt;

/// Query keys whose values sign or authorise a request: those the semantic conventions list
/// under `url.full`, and bearer tokens (RFC 6750 §2.3).
const SECRET_KEYS: [&str; 10] = [
    "AWSAccessKeyId",
    "Signature",
    "sig",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "X-Amz-Signature",
    "X-Goog-Credential",
    "X-Goog-Signature",
    "access_token",
    "token",
];

/// Splits an authority into host, without brackets or credentials, and port.
pub(super) fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    let host = without_credentials(authority);
    if let Some((host, rest)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return (host, rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match host.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (host, None),
    }
}

fn without_credentials(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

/// `url.full`.
pub(super) struct Full<'a> {
    pub(super) scheme: &'a str,
    pub(super) authority: &'a str,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
}

impl fmt::Display for Full<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, authority, path, query } = self;
        write!(f, "{scheme}://")?;
        let host = without_credentials(authority);
        if host.len() < authority.len() {
            f.write_str("REDACTED:REDACTED@")?;
        }
        write!(f, "{host}{path}")?;
        match query {
            Some(query) => write!(f, "?{}", Query(query)),
            None => Ok(()),
        }
    }
}

/// `url.query`.
pub(super) struct Query<'a>(pub(super) &'a str);

impl fmt::Display for Query<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, pair) in self.0.split('&').enumerate() {
            if n > 0 {
                f.write_str("&")?;
            }
            match pair.split_once('=') {
                Some((key, _)) if SECRET_KEYS.iter().any(|k| k.eq_ignore_ascii_case(key)) => {
                    write!(f, "{key}=REDACTED")?;
                }
                _ => f.write_str(pair)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(scheme: &str, authority: &str, path: &str, query: &str) -> String {
        Full { scheme, authority, path, query: Some(query) }.to_string()
    }

    #[test]
    fn credentials_and_signatures_are_redacted_and_nothing_else() {
        assert_eq!(
            full(
                "https",
                "alice:secret@files",
                "/a",
                "id=7&X-Amz-Signature=abc&sig=&SIGNATURE=x&b"
            ),
            "https://REDACTED:REDACTED@files/a?id=7&X-Amz-Signature=REDACTED&sig=REDACTED&SIGNATURE=REDACTED&b"
        );
        assert_eq!(full("http", "order:8080", "/o/1", "q=a%20b"), "http://order:8080/o/1?q=a%20b");
    }

    #[test]
    fn hosts_come_without_port_brackets_or_credentials() {
        assert_eq!(host_and_port("order"), ("order", None));
        assert_eq!(host_and_port("order:8080"), ("order", Some(8080)));
        assert_eq!(host_and_port("[fd00::1]:8080"), ("fd00::1", Some(8080)));
        assert_eq!(host_and_port("[fd00::1]"), ("fd00::1", None));
        assert_eq!(host_and_port("a:b@order:80"), ("order", Some(80)));
        assert_eq!(host_and_port("order:nonsense"), ("order", None));
    }
}
