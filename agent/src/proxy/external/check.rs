//! What an authorizer is told of a request.

use std::net::SocketAddr;

use super::super::inbound::Arrival;
use crate::{
    http::{AnyRequest, Target, Version},
    mesh::{Principal, Workload},
};

/// All of it, in a form of its own: it is told while the request waits.
pub(super) struct Check {
    pub(super) source: SocketAddr,
    /// Who the client proved to be.
    pub(super) source_principal: Option<Principal>,
    pub(super) destination: SocketAddr,
    pub(super) destination_principal: Principal,
    pub(super) method: String,
    pub(super) scheme: String,
    pub(super) host: String,
    /// With the query.
    pub(super) path: String,
    pub(super) protocol: &'static str,
    /// Names are in small letters. Several fields of one name are several here.
    pub(super) fields: Vec<(String, Vec<u8>)>,
}

impl Check {
    pub(super) fn of(arrival: &Arrival, workload: &Workload, request: &impl AnyRequest) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let Target { scheme, authority, path, query } = request.target();
        let mut path = text(if path.is_empty() { b"/" } else { path });
        if let Some(query) = query {
            path.push('?');
            path.push_str(&text(query));
        }
        let mut fields = Vec::new();
        request.each(&mut |name, value| {
            fields.push((text(name).to_ascii_lowercase(), value.to_vec()));
        });
        Self {
            source: arrival.client,
            source_principal: arrival.principal.clone(),
            destination: arrival.app,
            destination_principal: workload.principal.clone(),
            method: text(request.method()),
            scheme: text(scheme.unwrap_or(b"http")),
            host: text(authority.or_else(|| request.value_of("host")).unwrap_or_default()),
            path,
            protocol: match request.version() {
                Version::Http10 => "HTTP/1.0",
                Version::Http11 => "HTTP/1.1",
                Version::Http2 => "HTTP/2",
            },
            fields,
        }
    }

    /// How many bytes its body has, where that is said.
    pub(super) fn size(&self) -> Option<i64> {
        let length = self.fields.iter().find(|(name, _)| name == "content-length")?;
        std::str::from_utf8(&length.1).ok()?.trim().parse().ok()
    }

    /// Those by which whoever is asked continues the request's trace.
    pub(super) fn trace(&self) -> impl Iterator<Item = &(String, Vec<u8>)> {
        self.fields.iter().filter(|(name, _)| {
            matches!(&**name, "traceparent" | "tracestate" | "b3" | "baggage")
                || name.starts_with("x-b3-")
        })
    }
}
