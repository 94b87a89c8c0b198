//! What a request's head must say, and say once.

use http::{Uri, header, request::Parts, uri};

/// Why a request is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("more than one Host field")]
    Hosts,
    #[error("Host and :authority name two servers")]
    Differ,
    #[error("a Host field that names no server")]
    NoHost,
}

/// Makes sure that everybody after this understands the same by `head`: where both are there, Host is
/// what `:authority` is, and where only Host is, both are (RFC 9113 §8.3.1). A request that names no
/// server goes on as it is.
pub(super) fn settle(head: &mut Parts) -> Result<(), Malformed> {
    let mut hosts = head.headers.get_all(header::HOST).into_iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Malformed::Hosts);
    }
    match (host, head.uri.authority()) {
        (Some(host), Some(authority)) => {
            let default = match head.uri.scheme_str() {
                Some("https") => ":443",
                _ => ":80",
            };
            let authority = authority.as_str();
            let authority = authority.strip_suffix(default).unwrap_or(authority).as_bytes();
            let host = host.as_bytes();
            let host = host.strip_suffix(default.as_bytes()).unwrap_or(host);
            if host.eq_ignore_ascii_case(authority) { Ok(()) } else { Err(Malformed::Differ) }
        }
        (Some(host), None) => {
            let authority = uri::Authority::try_from(host.as_bytes());
            let mut named = head.uri.clone().into_parts();
            // Not known here: `Uri` has none without an authority.
            named.scheme = Some(uri::Scheme::HTTP);
            named.authority = Some(authority.map_err(|_| Malformed::NoHost)?);
            named.path_and_query.get_or_insert(uri::PathAndQuery::from_static("/"));
            head.uri = Uri::from_parts(named).map_err(|_| Malformed::NoHost)?;
            Ok(())
        }
        (None, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Version};

    use super::*;

    fn settled(uri: &str, hosts: &[&str]) -> Result<Parts, Malformed> {
        let mut request = Request::builder().version(Version::HTTP_2).uri(uri);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        settle(&mut head).map(|()| head)
    }

    #[test]
    fn host_and_authority_name_one_server() {
        let refused = |uri, hosts: &[_]| settled(uri, hosts).map(drop).unwrap_err();
        assert_eq!(refused("http://a/", &["b"]), Malformed::Differ);
        assert_eq!(refused("http://a/", &["a", "a"]), Malformed::Hosts);
        assert_eq!(refused("/", &["a", "b"]), Malformed::Hosts);
        assert_eq!(refused("/item/5", &["a b"]), Malformed::NoHost);
        for host in ["A", "a:80"] {
            assert!(settled("http://a/", &[host]).is_ok());
        }
        assert!(settled("http://a/", &[]).is_ok());
    }

    #[test]
    fn what_host_alone_says_becomes_the_authority_and_nothing_else_changes() {
        assert_eq!(settled("/item/5?a", &["a:80"]).unwrap().uri, "http://a:80/item/5?a");
        assert_eq!(settled("/item/5", &[]).unwrap().uri, "/item/5");
    }
}
