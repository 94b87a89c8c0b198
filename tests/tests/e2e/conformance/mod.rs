//! HTTP through the mesh as programs judge it that others wrote for that: h2spec, grpc-go's interop
//! tests, and Connect's conformance tests. Client and server are pods on one node, and on two.
//!
//! `cargo xtask test` builds the programs of the Go module `xtask/conformance`, and shows what is
//! printed here: figures, which are in `docs/http.md` too.

mod connect;
mod grpc;
mod h2spec;

use std::{
    env,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, ensure};
use sluice_tests::{Agent, Mesh, Pod, Port, Process, Service};

/// What is said of the figures.
const DOCUMENT: &str = include_str!("../../../../docs/http.md");
/// How long a suite may take. Each takes some seconds on two processors that have nothing else to do.
const LONGEST: Duration = Duration::from_secs(240);

/// A client and two servers in the mesh, and agents.
struct Ground {
    mesh: Mesh,
    _agents: [Agent; 2],
}

/// One of the two ways from the client to a server.
struct Way<'a> {
    name: &'static str,
    server: &'a Pod,
    service: IpAddr,
}

impl Ground {
    /// With these ports of both servers.
    async fn lay(ports: &[Port<'_>]) -> anyhow::Result<Self> {
        let mesh = Mesh::new()?;
        for server in [&mesh.near, &mesh.far] {
            let ports = ports.to_vec();
            mesh.config.service(&Service { ports, ..mesh.service(server) })?;
        }
        let _agents = mesh.start_agents(&[]).await?;
        Ok(Self { mesh, _agents })
    }

    fn client(&self) -> &Pod {
        &self.mesh.client
    }

    fn ways(&self) -> [Way<'_>; 2] {
        let Mesh { near, far, .. } = &self.mesh;
        [("same node", near), ("across nodes", far)].map(|(name, server)| {
            let service = self.mesh.service_ips(server)[0];
            Way { name, server, service }
        })
    }

    /// For what is written down; it goes with all of this.
    fn file(&self, name: &str) -> PathBuf {
        self.mesh.lab.directory().join(name)
    }
}

/// A program of the Go module.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let folder = env::var_os("CONFORMANCE_BIN").map(PathBuf::from);
    let folder =
        folder.context("CONFORMANCE_BIN does not say where they are (hint: cargo xtask test)")?;
    let program = folder.join(name);
    ensure!(program.is_file(), "there is no {}", program.display());
    Ok(program)
}

/// Runs a program in a pod to its end. Returns how it ended, and all it printed.
async fn run(pod: &Pod, name: &str, command: Command) -> anyhow::Result<(ExitStatus, String)> {
    let mut process = pod.spawn(name, command)?;
    let status = process.exit(LONGEST).await?;
    Ok((status, process.output().lines().join("\n")))
}

/// Shows how many tests of a suite passed on a way, and makes sure that the same is documented.
fn figures(suite: &str, way: &str, passed: usize, all: usize) -> anyhow::Result<()> {
    println!("{suite}, {way}: {passed} of {all} passed");
    let row = format!("| {suite} | {passed} of {all} |");
    ensure!(DOCUMENT.contains(&row), "docs/http.md does not say `{row}`");
    Ok(())
}

/// Starts a server in a pod, and waits until it can be reached there.
async fn serve(pod: &Pod, name: &str, command: Command, port: u16) -> anyhow::Result<Process> {
    let process = pod.spawn(name, command)?;
    let to = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
    let what = format!("{name} listens in {}", pod.name());
    let listens = || async {
        ensure!(!process.output().has_ended(), "{name} ended: {}", process.output().tail(20));
        Ok(pod.connect(to).await.ok().map(drop))
    };
    sluice_tests::eventually(&what, listens).await?;
    Ok(process)
}
