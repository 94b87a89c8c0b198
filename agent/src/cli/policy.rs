//! `sluice policy`: what is in force for a pod.

use clap::Args;

use super::{mesh_view::MeshView, output::Output};
use crate::{
    admin::POLICIES,
    explain::{Listing, Meant, list},
};

/// List what is in force for a pod, or for all: the mode of mutual TLS, and the AuthorizationPolicies in the
/// order in which they are asked.
///
/// Asks the agent of this node, which knows the policies of its own pods. With -f files are judged, and no
/// agent is needed.
#[derive(Args, Debug)]
pub(super) struct Policy {
    /// The pod, `default` where no namespace is named [default: all]
    #[arg(value_name = "[NAMESPACE/]POD")]
    pod: Option<String>,

    #[command(flatten)]
    view: MeshView,

    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Policy {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Self { pod, view, output } = self;
        let meant = Meant { pod };
        let listing: Listing = view.ask(POLICIES, &meant, |view| list(view, &meant))?;
        output.print(&listing)
    }
}
