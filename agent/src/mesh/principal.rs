//! SPIFFE identities as Istio writes them.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The name of one root of trust, e.g. `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    /// Istio's default.
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidPrincipal;

    /// Accepts the characters SPIFFE-ID §2.1 allows: lower-case letters, digits, `.`, `-`, `_`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        if text.is_empty() || text.len() > 255 || !text.chars().all(legal) {
            return Err(InvalidPrincipal(text.escape_debug().to_string()));
        }
        Ok(Self(text.into()))
    }
}

/// Who a workload is: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Cloning is cheap; equality is by value.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Principal(Arc<Parts>);

#[derive(PartialEq, Eq, Hash)]
struct Parts {
    trust_domain: TrustDomain,
    /// All of it but the scheme: `<trust domain>/ns/<namespace>/sa/<service account>`.
    text: Box<str>,
    /// How long the namespace is.
    namespace: usize,
}

/// Before the namespace, and before the service account.
const NS: &str = "/ns/";
const SA: &str = "/sa/";

/// Text that is no Istio SPIFFE identity.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a workload identity (hint: it reads spiffe://<trust domain>/ns/<namespace>/sa/<service account>)"
)]
pub struct InvalidPrincipal(String);

impl Principal {
    /// The identity of `service_account` in `namespace`.
    ///
    /// # Errors
    /// When a part is not a DNS-1123 name, so that no name can smuggle in a `/`.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, InvalidPrincipal> {
        let legal = |part: &str| {
            !part.is_empty()
                && part.len() <= 253
                && part.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-'))
        };
        if !legal(namespace) || !legal(service_account) {
            return Err(InvalidPrincipal(format!(
                "spiffe://{trust_domain}/ns/{}/sa/{}",
                namespace.escape_debug(),
                service_account.escape_debug()
            )));
        }
        let text = format!("{trust_domain}{NS}{namespace}{SA}{service_account}").into();
        Ok(Self(Arc::new(Parts { trust_domain, text, namespace: namespace.len() })))
    }

    /// The root of trust that vouches for this identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.account()[..self.0.namespace]
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.account()[self.0.namespace + SA.len()..]
    }

    /// `<trust domain>/ns/<namespace>/sa/<service account>`, as policies write it.
    pub fn without_scheme(&self) -> &str {
        &self.0.text
    }

    /// `<namespace>/sa/<service account>`.
    pub fn account(&self) -> &str {
        &self.0.text[self.0.trust_domain.as_str().len() + NS.len()..]
    }
}

impl TryFrom<String> for Principal {
    type Error = InvalidPrincipal;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Principal> for String {
    fn from(principal: Principal) -> Self {
        principal.to_string()
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.0.text)
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Principal {
    type Err = InvalidPrincipal;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPrincipal(text.escape_debug().to_string());
        let path = text.strip_prefix("spiffe://").ok_or_else(invalid)?;
        let mut parts = path.split('/');
        let mut next = || parts.next().ok_or_else(invalid);
        let (domain, ns, namespace, sa, account) = (next()?, next()?, next()?, next()?, next()?);
        if ns != "ns" || sa != "sa" || parts.next().is_some() {
            return Err(invalid());
        }
        Principal::new(domain.parse().map_err(|_| invalid())?, namespace, account)
            .map_err(|_| invalid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_reads_back_as_it_was_written() {
        let text = "spiffe://cluster.local/ns/shop/sa/order.service";
        let principal: Principal = text.parse().unwrap();
        assert_eq!(principal.to_string(), text);
        assert_eq!(principal.trust_domain().as_str(), "cluster.local");
        assert_eq!(principal.namespace(), "shop");
        assert_eq!(principal.service_account(), "order.service");
        assert_eq!(principal.account(), "shop/sa/order.service");
        assert_eq!(principal.without_scheme(), "cluster.local/ns/shop/sa/order.service");
    }

    #[test]
    fn text_that_is_almost_a_principal_is_refused() {
        for text in [
            "",
            "spiffe://",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/a/sa/b\0",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/sa/a/ns/b",
        ] {
            assert!(text.parse::<Principal>().is_err(), "{text:?} was accepted");
        }
    }
}
