//! Whether a workload insists on mutual TLS, by Istio's PeerAuthentication.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, LazyLock},
};

use serde::{Deserialize, Serialize};

/// What a workload accepts, and how it is to be dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MutualTlsMode {
    /// Mutual TLS alone: plaintext is refused.
    Strict,
    /// Both; the mesh dials it with mutual TLS.
    #[default]
    Permissive,
    /// Both; the mesh dials it in plaintext.
    Disable,
}

/// A mode and who decided on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortMutualTls {
    /// The mode.
    pub mode: MutualTlsMode,
    /// `namespace/name` of the PeerAuthentication that says so; `None` where none does.
    pub policy: Option<Arc<str>>,
}

/// What a workload accepts on each of its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MutualTls {
    /// On every port without an entry of its own.
    pub usual: PortMutualTls,
    /// By ports of the workload, not of a Service in front of it.
    pub ports: BTreeMap<u16, PortMutualTls>,
}

impl MutualTls {
    /// Where no policy says anything: one for all workloads, which most of a large mesh have.
    pub fn none() -> Arc<Self> {
        static NONE: LazyLock<Arc<MutualTls>> = LazyLock::new(Arc::default);
        NONE.clone()
    }

    /// What holds for one port of the workload.
    pub fn on(&self, port: u16) -> &PortMutualTls {
        self.ports.get(&port).unwrap_or(&self.usual)
    }
}

impl MutualTlsMode {
    /// As PeerAuthentication writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "STRICT",
            Self::Permissive => "PERMISSIVE",
            Self::Disable => "DISABLE",
        }
    }

    /// Whether plaintext is let in by nobody but the kubelet.
    pub fn refuses_plaintext(self) -> bool {
        match self {
            Self::Strict => true,
            Self::Permissive | Self::Disable => false,
        }
    }

    /// Whether the mesh dials in plaintext what has this mode. What nobody has captured takes plaintext
    /// alone. STRICT it gets none from us: until it is captured, nothing.
    pub fn is_dialled_in_plaintext(self, captured: bool) -> bool {
        match self {
            Self::Disable => true,
            Self::Permissive => !captured,
            Self::Strict => false,
        }
    }
}

impl fmt::Display for MutualTlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for PortMutualTls {
    /// `STRICT by PeerAuthentication shop/default`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.policy {
            Some(policy) => write!(f, "{} by PeerAuthentication {policy}", self.mode),
            None => self.mode.fmt(f),
        }
    }
}

impl fmt::Display for MutualTls {
    /// `STRICT by PeerAuthentication shop/default, 8080 PERMISSIVE by …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.usual.fmt(f)?;
        self.ports.iter().try_for_each(|(port, rule)| write!(f, ", {port} {rule}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_its_own_mode_or_the_usual_one() {
        let rule = |mode, policy: &str| PortMutualTls { mode, policy: Some(policy.into()) };
        let mtls = MutualTls {
            usual: rule(MutualTlsMode::Strict, "shop/default"),
            ports: BTreeMap::from([(8080, rule(MutualTlsMode::Disable, "shop/web"))]),
        };
        assert_eq!(mtls.on(8080).mode, MutualTlsMode::Disable);
        assert_eq!(mtls.on(80).to_string(), "STRICT by PeerAuthentication shop/default");
        assert_eq!(
            mtls.to_string(),
            "STRICT by PeerAuthentication shop/default, 8080 DISABLE by PeerAuthentication shop/web"
        );
        assert_eq!(MutualTls::default().to_string(), "PERMISSIVE");
    }
}
