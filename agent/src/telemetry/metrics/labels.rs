//! How a connection or request ended, as labels tell it.

use std::{
    fmt::{self, Write},
    hash::Hash,
};

use http::StatusCode;

use super::text::append_label;
use crate::telemetry::{flow::Failure, grpc};

/// An ending that series are kept apart by.
pub(super) trait Ending: Copy + fmt::Debug + Eq + Hash + Ord {
    /// That of the series that takes what is over the limits.
    const OVERFLOW: Self;

    fn append_to(&self, labels: &mut String);
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::telemetry) struct Outcome {
    protocol: &'static str,
    flags: &'static str,
    code: Code,
    grpc_status: Option<u8>,
}

impl Outcome {
    pub(in crate::telemetry) fn http(
        status: Option<StatusCode>,
        grpc: bool,
        grpc_status: Option<grpc::Code>,
        failure: Option<Failure>,
    ) -> Self {
        Self {
            protocol: if grpc { "grpc" } else { "http" },
            // Envoy has no flag for what its filters of RBAC and JWT answer.
            flags: flags(
                failure.filter(|failure| {
                    !matches!(failure, Failure::AuthzDenied | Failure::JwtDenied)
                }),
            ),
            code: status.map_or(Code::None, Code::of),
            grpc_status: grpc_status.map(grpc::Code::number),
        }
    }
}

impl Ending for Outcome {
    const OVERFLOW: Self = Self {
        protocol: "overflow",
        flags: "overflow",
        code: Code::Overflow,
        grpc_status: Some(u8::MAX),
    };

    fn append_to(&self, labels: &mut String) {
        let (mut code, mut grpc_status) = (String::new(), String::new());
        // Writing to a `String` cannot fail.
        let _ = match self.code {
            Code::None => write!(code, "0"),
            Code::Registered(number) => write!(code, "{number}"),
            Code::Class(class) => write!(code, "{class}xx"),
            Code::Unknown => write!(code, "unknown"),
            Code::Overflow => write!(code, "overflow"),
        };
        let _ = match self.grpc_status {
            None => Ok(()),
            Some(u8::MAX) => write!(grpc_status, "overflow"),
            Some(status) => write!(grpc_status, "{status}"),
        };
        append_label(labels, &["request_protocol"], self.protocol);
        append_label(labels, &["response_flags"], self.flags);
        append_label(labels, &["response_code"], &code);
        append_label(labels, &["grpc_response_status"], &grpc_status);
    }
}

/// `response_code`. Applications may answer with any number; only those that are registered
/// have a series of their own, or one application could make hundreds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Code {
    /// There was no response; Envoy has 0 then.
    None,
    Registered(u16),
    /// One of 1 to 5, which is what RFC 9110 §15 has clients take an unknown one for.
    Class(u16),
    Unknown,
    Overflow,
}

impl Code {
    fn of(status: StatusCode) -> Self {
        match (status.canonical_reason(), status.as_u16() / 100) {
            (Some(_), _) => Self::Registered(status.as_u16()),
            (None, class @ 1..=5) => Self::Class(class),
            (None, _) => Self::Unknown,
        }
    }
}

/// How a connection that is not looked into ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Close(&'static str);

impl Close {
    pub(super) fn of(failure: Option<Failure>) -> Self {
        Self(flags(failure))
    }
}

impl Ending for Close {
    const OVERFLOW: Self = Self("overflow");

    fn append_to(&self, labels: &mut String) {
        let protocol = if *self == Self::OVERFLOW { "overflow" } else { "tcp" };
        append_label(labels, &["request_protocol"], protocol);
        append_label(labels, &["response_flags"], self.0);
    }
}

fn flags(failure: Option<Failure>) -> &'static str {
    failure.map_or("-", Failure::response_flags)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn code(status: u16) -> String {
        let outcome = Outcome::http(StatusCode::from_u16(status).ok(), false, None, None);
        let mut labels = String::new();
        outcome.append_to(&mut labels);
        labels
    }

    #[test]
    fn a_code_that_is_not_registered_counts_as_its_class() {
        for (status, text) in [
            (404, "404"),
            (418, "418"),
            (299, "2xx"),
            (599, "5xx"),
            (199, "1xx"),
            (600, "unknown"),
            (999, "unknown"),
        ] {
            let labels = code(status);
            assert!(labels.contains(&format!("response_code=\"{text}\"")), "{status}: {labels}");
        }
    }

    #[test]
    fn an_application_cannot_make_a_series_of_every_number() {
        let codes: HashSet<_> = (100..1000).map(code).collect();
        assert!(codes.len() < 80, "{} codes", codes.len());
    }
}
