//! As much of gRPC as a proxy can see.

use crate::http::Fields;

/// A gRPC status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Code(u8);

const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl Code {
    /// `grpc-status`; a value that is no code is UNKNOWN, as gRPC says.
    pub(super) fn read(fields: &impl Fields) -> Option<Self> {
        const UNKNOWN: u8 = 2;
        let text = str::from_utf8(fields.value_of("grpc-status")?).ok();
        let code = text.and_then(|text| text.parse().ok());
        Some(Self(code.filter(|code| usize::from(*code) < NAMES.len()).unwrap_or(UNKNOWN)))
    }

    pub(super) fn number(self) -> u8 {
        self.0
    }

    pub(super) fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }

    pub(super) fn is_ok(self) -> bool {
        self.0 == 0
    }

    /// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: what the
    /// conventions call an error of the server.
    pub(super) fn is_servers_fault(self) -> bool {
        matches!(self.0, 2 | 4 | 12 | 13 | 14 | 15)
    }
}

/// `application/grpc`, with or without a codec; not gRPC-Web, whose status is in the body.
pub(super) fn is_grpc(headers: &impl Fields) -> bool {
    headers
        .value_of("content-type")
        .and_then(|value| value.strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// `pkg.Service/Method` of the path `/pkg.Service/Method`.
pub(super) fn method(path: &str) -> Option<&str> {
    let method = path.strip_prefix('/')?;
    let (service, name) = method.split_once('/')?;
    (!service.is_empty() && !name.is_empty() && !name.contains('/')).then_some(method)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::context::tests::headers;

    #[test]
    fn a_status_that_is_no_code_is_unknown() {
        let name = |status| Code::read(&headers(&[("grpc-status", status)])).map(Code::name);
        assert_eq!(name("0"), Some("OK"));
        assert_eq!(name("14"), Some("UNAVAILABLE"));
        for nonsense in ["17", "-1", "x", "", "256"] {
            assert_eq!(name(nonsense), Some("UNKNOWN"), "{nonsense:?}");
        }
        assert_eq!(Code::read(&http::HeaderMap::new()), None);
    }

    #[test]
    fn only_grpc_itself_is_grpc() {
        let is = |content_type| is_grpc(&headers(&[("content-type", content_type)]));
        assert!(is("application/grpc") && is("application/grpc+proto") && is("application/grpc;x"));
        assert!(!is("application/grpc-web") && !is("application/json"));
    }

    #[test]
    fn a_method_has_a_service_and_a_name() {
        assert_eq!(method("/shop.Order/Place"), Some("shop.Order/Place"));
        for path in ["", "/", "/shop.Order", "/shop.Order/", "//Place", "/a/b/c"] {
            assert_eq!(method(path), None, "{path:?}");
        }
    }
}
