//! Where a CA is.

use std::{fmt, str::FromStr};

use http::{Uri, uri::Authority};

/// Host and port of a CA, which is spoken to over TLS alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaAddress(Authority);

/// Text that is no [`CaAddress`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no address of a CA (hint: https://sluice-ca.sluice-system.svc:15012)")]
pub struct InvalidCaAddress(String);

impl CaAddress {
    /// As the origin of requests.
    pub(super) fn origin(&self) -> Uri {
        Uri::builder()
            .scheme("https")
            .authority(self.0.clone())
            .path_and_query("/")
            .build()
            .expect("scheme, authority and path make a URI")
    }
}

impl fmt::Display for CaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.0)
    }
}

impl FromStr for CaAddress {
    type Err = InvalidCaAddress;

    /// Accepts `host:port` and `https://host:port`, as ztunnel's `CA_ADDRESS`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidCaAddress(text.escape_debug().to_string());
        let rest = text.strip_prefix("https://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let authority: Authority = rest.parse().map_err(|_| invalid())?;
        if authority.port_u16().is_none() || authority.host().is_empty() || rest.contains('@') {
            return Err(invalid());
        }
        Ok(Self(authority))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_port_with_tls() {
        for text in ["ca.sluice.svc:15012", "https://ca.sluice.svc:15012", "https://[fd00::1]:1/"] {
            let address: CaAddress = text.parse().unwrap();
            assert_eq!(address.origin().scheme_str(), Some("https"), "{text}");
        }
        let address: CaAddress = "ca.sluice.svc:15012".parse().unwrap();
        assert_eq!(address.to_string(), "https://ca.sluice.svc:15012");
    }

    #[test]
    fn plaintext_and_half_an_address_are_refused() {
        for text in ["", "http://ca:15012", "ca", "https://ca", "https://ca:1/path", "u@ca:1"] {
            assert!(text.parse::<CaAddress>().is_err(), "{text:?} was accepted");
        }
    }
}
