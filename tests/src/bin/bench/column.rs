//! The columns: which way the same load takes.

use std::fmt;

use clap::ValueEnum;

/// A way from a client to a server.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, ValueEnum)]
pub(crate) enum Way {
    /// Across nodes, without any mesh
    Direct,
    /// Through one agent, to a port whose Service says tcp
    SameOpaque,
    /// Through one agent as HTTP, every request traced
    SameTraced,
    /// Through one agent as HTTP, one request in a hundred traced
    SameSampled,
    /// Through two agents, to a port whose Service says tcp
    AcrossOpaque,
    /// Through two agents as HTTP, every request traced
    AcrossTraced,
    /// Through two agents as HTTP, one request in a hundred traced
    AcrossSampled,
    /// Across nodes through two Envoys as sidecars, every request traced
    Envoy,
}

/// Who carries what is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Carriers {
    /// Nobody.
    Nobody,
    /// An agent on each node, which records this share of traces.
    Agents {
        /// As the agent's flag has it.
        sampling: &'static str,
    },
    /// A sidecar beside the client, and one beside the server.
    Envoys,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "no mesh",
            Self::SameOpaque => "same node, opaque",
            Self::SameTraced => "same node, traced",
            Self::SameSampled => "same node, 1 %",
            Self::AcrossOpaque => "across, opaque",
            Self::AcrossTraced => "across, traced",
            Self::AcrossSampled => "across, 1 %",
            Self::Envoy => "Envoy pair, traced",
        }
    }

    pub(crate) fn carriers(self) -> Carriers {
        match self {
            Self::Direct => Carriers::Nobody,
            // An opaque connection is one span when it ends.
            Self::SameOpaque | Self::SameTraced | Self::AcrossOpaque | Self::AcrossTraced => {
                Carriers::Agents { sampling: "1" }
            }
            Self::SameSampled | Self::AcrossSampled => Carriers::Agents { sampling: "0.01" },
            Self::Envoy => Carriers::Envoys,
        }
    }

    /// Whether another build's agents can carry it.
    pub(crate) fn is_meshed(self) -> bool {
        matches!(self.carriers(), Carriers::Agents { .. })
    }

    /// Whether client and server are on one node.
    pub(crate) fn is_near(self) -> bool {
        matches!(self, Self::SameOpaque | Self::SameTraced | Self::SameSampled)
    }

    /// Whether the mesh is told that it carries bytes of no known kind.
    pub(crate) fn is_opaque(self) -> bool {
        matches!(self, Self::SameOpaque | Self::AcrossOpaque)
    }
}

/// A way, through the agents of one build.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Column {
    pub(crate) way: Way,
    /// By the build that this one is compared with.
    pub(crate) beside: bool,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.way.name(), if self.beside { ", other build" } else { "" })
    }
}
