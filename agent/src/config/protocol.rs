//! What a Service port says it speaks, by Istio's rules for protocol selection.

use crate::mesh::AppProtocol;

/// Ports on which the server speaks first (SMTP, DNS, MySQL, MongoDB): Istio never waits for
/// the client there unless the Service says otherwise.
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

/// The protocol of a Service port: `appProtocol` if there is one, else the port's name up to
/// its first `-`.
pub(super) fn of_port(port: u16, name: &str, app_protocol: Option<&str>) -> AppProtocol {
    let stated = app_protocol.unwrap_or(name).to_ascii_lowercase();
    match (app_protocol, stated.as_str()) {
        (Some(_), "kubernetes.io/h2c") => return AppProtocol::Http2,
        (Some(_), "kubernetes.io/ws") => return AppProtocol::Http,
        (Some(_), "kubernetes.io/wss") => return AppProtocol::Opaque,
        // The one protocol with a `-` of its own; it runs over HTTP/1.1 too.
        (_, name) if name.starts_with("grpc-web") => return AppProtocol::Http,
        _ => {}
    }
    match stated.split('-').next().unwrap_or_default() {
        "http" => AppProtocol::Http,
        "http2" | "grpc" => AppProtocol::Http2,
        "tcp" | "tls" | "https" | "mongo" | "mysql" | "redis" => AppProtocol::Opaque,
        _ if SERVER_FIRST.contains(&port) => AppProtocol::Opaque,
        _ => AppProtocol::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_counts_up_to_its_first_dash() {
        for (name, protocol) in [
            ("http", AppProtocol::Http),
            ("HTTP-web", AppProtocol::Http),
            ("http2-api", AppProtocol::Http2),
            ("grpc", AppProtocol::Http2),
            ("grpc-api", AppProtocol::Http2),
            ("grpc-web", AppProtocol::Http),
            ("grpc-web-ui", AppProtocol::Http),
            ("tcp", AppProtocol::Opaque),
            ("https-admin", AppProtocol::Opaque),
            ("tls", AppProtocol::Opaque),
            ("mongo", AppProtocol::Opaque),
            ("mysql-replica", AppProtocol::Opaque),
            ("redis", AppProtocol::Opaque),
            ("httpx", AppProtocol::Unknown),
            ("web-http", AppProtocol::Unknown),
            ("", AppProtocol::Unknown),
        ] {
            assert_eq!(of_port(8080, name, None), protocol, "{name}");
        }
    }

    #[test]
    fn app_protocol_outranks_the_name_even_when_it_is_unknown() {
        assert_eq!(of_port(80, "http", Some("tcp")), AppProtocol::Opaque);
        assert_eq!(of_port(80, "tcp", Some("kubernetes.io/h2c")), AppProtocol::Http2);
        assert_eq!(of_port(80, "tcp", Some("kubernetes.io/ws")), AppProtocol::Http);
        assert_eq!(of_port(80, "http", Some("example.com/own")), AppProtocol::Unknown);
    }

    #[test]
    fn a_port_whose_server_speaks_first_is_opaque_unless_it_says_otherwise() {
        assert_eq!(of_port(3306, "db", None), AppProtocol::Opaque);
        assert_eq!(of_port(3306, "http", None), AppProtocol::Http);
    }
}
