//! Whose view of the mesh is asked: a running agent's, or that of files.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context, anyhow};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Args;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    admin,
    config::{MeshSettings, offline::Offline},
    explain::{Unclear, View},
    mesh::{RootNamespace, TrustDomain},
};

/// Whom to ask.
#[derive(Args, Debug)]
pub(super) struct MeshView {
    /// File, directory or `-` to judge by, in place of the agent of this node; may be given several times
    #[arg(long = "filename", short, value_name = "FILE|DIR")]
    files: Vec<PathBuf>,

    /// Address of the agent's admin server
    #[arg(long, env = "SLUICE_ADMIN_ADDR", value_name = "ADDR", default_value = "127.0.0.1:15000")]
    admin_addr: SocketAddr,

    /// Root of trust of the workloads in files
    #[arg(long, env = "TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,

    /// Namespace in files whose policies without a selector hold for the whole mesh
    #[arg(long, env = "ROOT_NAMESPACE", value_name = "NAME", default_value = "istio-system")]
    root_namespace: RootNamespace,
}

impl MeshView {
    /// What the agent answers at `path` about `question`, or `answer` of the files.
    pub(super) fn ask<Q: Serialize, A: DeserializeOwned>(
        self,
        path: &str,
        question: &Q,
        answer: impl Fn(&View<'_>) -> Result<A, Unclear>,
    ) -> anyhow::Result<A> {
        let Self { files, admin_addr, trust_domain, root_namespace } = self;
        if files.is_empty() {
            let question = URL_SAFE_NO_PAD.encode(serde_json::to_vec(question)?);
            let answer = admin::fetch(admin_addr, &format!("{path}{question}"))?;
            let answer: Result<A, String> = serde_json::from_str(&answer).with_context(|| {
                format!("{admin_addr} does not answer as this version of the agent does")
            })?;
            return answer.map_err(|unclear| anyhow!(unclear));
        }
        let settings = MeshSettings { trust_domain, root_namespace, node: "".into() };
        let offline = Offline::read(&files, settings)?;
        let view = View {
            snapshot: &offline.snapshot(""),
            of_node: &|node| Some(offline.snapshot(node)),
            notes: offline.notes(),
        };
        Ok(answer(&view)?)
    }
}
