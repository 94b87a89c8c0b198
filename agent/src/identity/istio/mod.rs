//! Istio's API of certificate authorities, `istio.v1.auth.IstioCertificateService`: the
//! messages, which `sluice ca` speaks too, and the client of any such CA.
//!
//! The messages are those of `security/v1alpha1/ca.proto` in istio/api.

mod address;
mod client;
mod root_file;

pub use address::{CaAddress, InvalidCaAddress};
pub use client::{IstioCa, IstioCaOptions};

use std::collections::BTreeMap;

use prost_types::{Struct, Value, value::Kind};

use crate::mesh::Principal;

/// The one method.
pub(crate) const CREATE_CERTIFICATE: &str =
    "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The field of the metadata that a node's agent names a workload in.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// `IstioCertificateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CertificateRequest {
    /// PEM.
    #[prost(string, tag = "1")]
    pub(crate) csr: String,
    /// Seconds; 0 leaves it to the CA.
    #[prost(int64, tag = "3")]
    pub(crate) validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    pub(crate) metadata: Option<Struct>,
}

/// `IstioCertificateResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CertificateResponse {
    /// PEM, the workload's certificate first, a root last.
    #[prost(string, repeated, tag = "1")]
    pub(crate) cert_chain: Vec<String>,
}

/// Metadata that asks for a certificate of `principal`, on behalf of it.
fn impersonating(principal: &Principal) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(principal.to_string())) };
    Struct { fields: BTreeMap::from([(IMPERSONATED.to_owned(), value)]) }
}

/// Whom `metadata` asks for, as it is written there.
pub(crate) fn impersonated(metadata: &Struct) -> Option<&str> {
    match metadata.fields.get(IMPERSONATED)?.kind.as_ref()? {
        Kind::StringValue(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}
