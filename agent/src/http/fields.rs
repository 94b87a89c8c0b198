//! Which header fields a proxy passes on (RFC 9110 §7.6.1).

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Fields that describe one connection, not the message.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
];

/// Removes what belongs to the connection the message came on. `TE: trailers` stays, since
/// trailers are passed on, and an upgrade the sender asked for stays an upgrade.
pub fn forwardable(headers: &mut HeaderMap) {
    let trailers = lists_token(headers, &header::TE, "trailers");
    let upgrade = lists_token(headers, &header::CONNECTION, "upgrade")
        .then(|| headers.get(header::UPGRADE).cloned())
        .flatten();
    for named in named_by_connection(headers) {
        headers.remove(named);
    }
    for field in HOP_BY_HOP {
        headers.remove(field);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// As [`forwardable`], for a request. A body of unknown length stays chunked whatever the method:
/// hyper sends no body with a GET unless the fields say that there is one.
pub fn forwardable_request(headers: &mut HeaderMap) {
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    forwardable(headers);
    if chunked {
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// The fields `Connection` declares to be for this hop only.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    tokens(headers, &header::CONNECTION)
        .filter(|token| !matches!(*token, "close" | "keep-alive" | "upgrade"))
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        // A client must not be able to make a proxy drop what the mesh itself relies on.
        .filter(|name| !matches!(name.as_str(), "host" | "content-length" | "te"))
        .collect()
}

fn lists_token(headers: &HeaderMap, field: &HeaderName, wanted: &str) -> bool {
    tokens(headers, field).any(|token| token.eq_ignore_ascii_case(wanted))
}

fn tokens<'a>(headers: &'a HeaderMap, field: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(field)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn connection_fields_stay_on_their_hop() {
        let mut map = headers(&[
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("x-end", "2"),
        ]);
        forwardable(&mut map);
        assert_eq!(map, headers(&[("te", "trailers"), ("x-end", "2")]));
    }

    #[test]
    fn an_upgrade_is_passed_on_whole() {
        let mut map = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        forwardable(&mut map);
        assert_eq!(map, headers(&[("connection", "upgrade"), ("upgrade", "websocket")]));
    }

    #[test]
    fn an_upgrade_field_without_the_connection_option_is_dropped() {
        let mut map = headers(&[("upgrade", "h2c")]);
        forwardable(&mut map);
        assert!(map.is_empty());
    }

    #[test]
    fn a_client_cannot_strip_the_host_by_naming_it_hop_by_hop() {
        let mut map = headers(&[("connection", "host"), ("host", "order")]);
        forwardable(&mut map);
        assert_eq!(map, headers(&[("host", "order")]));
    }
}
