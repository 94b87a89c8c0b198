//! `sluice explain`: what would become of a request, and why.

use std::{fs, path::Path};

use anyhow::Context;
use clap::Args;

use super::{mesh_view::MeshView, output::Output};
use crate::{
    admin::EXPLAIN,
    explain::{Ask, Question, explain},
};

/// Say what would become of a connection or a request: where it goes, how, which policy and rule decide,
/// and why no other does.
///
/// Asks the agent of this node, which knows the policies of its own pods: ask where the server runs. With -f
/// files are judged, and no agent is needed.
#[derive(Args, Debug)]
pub(super) struct Explain {
    /// Who asks: [namespace/]pod, a principal (spiffe://…, or sa:namespace/account), an address, or
    /// `outside`
    #[arg(value_name = "SRC")]
    source: String,

    /// Whom: service, service.namespace, namespace/pod or an address, and a port where there are several
    #[arg(value_name = "DST[:PORT]")]
    destination: String,

    /// Method of the request
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,

    /// Path of the request, as it is sent
    #[arg(long, value_name = "PATH")]
    path: Option<String>,

    /// Host of the request [default: what is dialled]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,

    /// Field of the request; may be given several times
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,

    /// JWT of the request, or a file with one; its claims are taken for true, without a look at its
    /// signature
    #[arg(long, value_name = "TOKEN|FILE")]
    jwt: Option<String>,

    #[command(flatten)]
    view: MeshView,

    /// Form of the answer
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Self { source, destination, method, path, host, headers, jwt, view, output } = self;
        let jwt = jwt.map(token).transpose()?;
        let texts = [&method, &path, &host, &jwt];
        let asks = texts.into_iter().any(Option::is_some) || !headers.is_empty();
        let ask = asks.then_some(Ask { method, path, host, headers, jwt });
        let question = Question { source, destination, ask };
        let answer = view.ask(EXPLAIN, &question, |view| explain(view, &question))?;
        output.print(&answer)
    }
}

/// A token, which is in the file of that name where there is one.
fn token(text: String) -> anyhow::Result<String> {
    let path = Path::new(&text);
    if !path.is_file() {
        return Ok(text);
    }
    let token = fs::read_to_string(path).with_context(|| format!("could not read {text}"))?;
    Ok(token.trim().to_owned())
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
        None => Err("no colon in it (hint: 'x-team: shop')".to_owned()),
    }
}
