//! `sluice validate`: what is wrong with YAML, before anybody puts it in force.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use super::output::Output;
use crate::{
    config::{
        MeshSettings,
        validate::{Severity, validate},
    },
    mesh::{RootNamespace, TrustDomain},
};

/// Judge Kubernetes YAML offline: what cannot be obeyed, and what is probably not meant.
///
/// Every finding has its place and mostly a hint. Kinds that are not the agent's are passed over, except
/// for the pods that Deployments and others make: policies are held against them. Ends with 0 unless
/// something cannot be obeyed.
#[derive(Args, Debug)]
pub(super) struct Validate {
    /// File, directory (as by `kubectl apply`, without what is below it), or `-` for standard input; may be
    /// given several times
    #[arg(long = "filename", short, value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,

    /// Judge as `sluice agent --config-dir` does, where every kind that is not the agent's is an error
    #[arg(long)]
    strict: bool,

    /// Root of trust of the workloads
    #[arg(long, env = "TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,

    /// Namespace whose policies without a selector hold for the whole mesh
    #[arg(long, env = "ROOT_NAMESPACE", value_name = "NAME", default_value = "istio-system")]
    root_namespace: RootNamespace,

    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Validate {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Self { files, strict, trust_domain, root_namespace, output } = self;
        let settings = MeshSettings { trust_domain, root_namespace, node: "".into() };
        let report = validate(&files, &settings, strict)?;
        output.print(&report)?;
        match report.count(Severity::Error) {
            0 => Ok(()),
            1 => bail!("1 thing cannot be obeyed"),
            errors => bail!("{errors} things cannot be obeyed"),
        }
    }
}
