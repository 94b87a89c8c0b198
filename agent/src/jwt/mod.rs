//! Whom a request's JWT (RFC 7519) says it is from, by Istio's RequestAuthentication.
//!
//! Enters: what RequestAuthentications say ([`Spec`]), the head of a request, and the keys of issuers.
//! Leaves: the token's claims, where it is good, for [`crate::policy`] to judge by, and the head as the
//! application is to see it; or why the request is refused ([`Fault`]), in Envoy's words. It knows no
//! YAML, no eBPF and no mesh. Signatures are the library's business.
//!
//! A request without a token is nobody's, and passes: who may do without one is for policies to say.

mod authentication;
mod fault;
mod fetch;
mod follow;
mod issuers;
mod keys;
mod locations;
mod outputs;
mod spec;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod token;

pub use authentication::{Authentication, Refused, RemoteKeys};
pub use fault::Fault;
pub use fetch::Resolve;
pub use follow::Following;
pub use issuers::{IssuerState, Issuers};
pub use keys::{KeySet, NoKeys};
pub use spec::{
    ClaimHeader, HeaderLocation, KeySource, RemoteSource, RequestAuthentication, Rule, Spec,
};
