//! Connect's conformance tests: Connect, gRPC and gRPC-Web, in HTTP/1.1 and HTTP/2, once with the
//! client that looks closely at what a server sends, and once with the server that does so.

use std::{fs, path::Path, process::Command};

use anyhow::Context;
use futures_util::future::try_join_all;
use sluice_tests::{Pod, Port};

use super::{Ground, Way, figures, program, run};

/// What client and server can do, but for TLS, which is nothing that the mesh sees, and compressions
/// beyond one, which are all the same to it.
const FEATURES: &str = "features:
  versions: [HTTP_VERSION_1, HTTP_VERSION_2]
  protocols: [PROTOCOL_CONNECT, PROTOCOL_GRPC, PROTOCOL_GRPC_WEB]
  codecs: [CODEC_PROTO, CODEC_JSON]
  compressions: [COMPRESSION_IDENTITY, COMPRESSION_GZIP]
  supportsH2c: true
  supportsTls: false
  supportsHalfDuplexBidiOverHttp1: true
";

/// Which end is the one that looks closely. The program that knows the tests is that end, and starts
/// the other one.
#[derive(Clone, Copy)]
enum Judge {
    Client,
    Server,
}

impl Judge {
    const BOTH: [Self; 2] = [Self::Client, Self::Server];

    /// Where its tests' servers listen, one after the other.
    fn port(self) -> Port<'static> {
        match self {
            Self::Client => Port { name: "http-client", port: 80, target: 8080 },
            Self::Server => Port { name: "http-server", port: 81, target: 8081 },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// How the tests are begun, and in which pod.
    fn command<'a>(self, ground: &'a Ground, way: &Way<'a>) -> anyhow::Result<(Command, &'a Pod)> {
        // Where a server listens is what its client is told to dial.
        let [ip, port] = [way.server.ip().to_string(), self.port().target.to_string()];
        let mut command = Command::new(program("connectconformance")?);
        command.arg("--conf").arg(ground.file("features"));
        let at = match self {
            Self::Client => {
                command.args(["--mode", "server", "--max-servers", "1", "--"]);
                entering(&mut command, way.server, &program("referenceserver")?);
                command.args(["-bind", &ip, "-port", &port]);
                ground.client()
            }
            Self::Server => {
                command.args(["--mode", "client", "--bind", &ip, "--port", &port, "--"]);
                entering(&mut command, ground.client(), &program("referenceclient")?);
                way.server
            }
        };
        Ok((command, at))
    }
}

/// Adds the words that run a program in another pod.
fn entering(command: &mut Command, pod: &Pod, program: &Path) {
    const ENTER: &str = "echo 0 > \"$0/cgroup.procs\" && exec nsenter --net=\"$1\" \"${@:2}\"";
    command.args(["bash", "-c", ENTER]).arg(pod.cgroup().path()).arg(pod.netns_path()).arg(program);
}

/// How many tests ran, and how many of them passed.
fn read(said: &str) -> anyhow::Result<(usize, usize)> {
    let number = |before: &str, after: &str| {
        let (_, rest) = said.rsplit_once(before)?;
        rest.split_once(after)?.0.trim().parse().ok()
    };
    let all = number("Total cases:", "\n").context("nothing is said of how many tests ran")?;
    let passed = number(&format!("Total cases: {all}\n"), " passed");
    Ok((all, passed.context("nothing is said of how many tests passed")?))
}

/// Runs the tests on one way. Returns what is wrong.
async fn judged(ground: &Ground, way: &Way<'_>, judge: Judge) -> anyhow::Result<Option<String>> {
    let (command, pod) = judge.command(ground, way)?;
    let suite = format!("Connect's conformance tests 1.0.7, judged by the {}", judge.name());
    let log = format!("connect-{}-{}", judge.name(), way.server.name());
    let (status, said) = run(pod, &log, command).await?;
    let (all, passed) = read(&said).with_context(|| format!("{suite}, {}: {said}", way.name))?;
    if !status.success() {
        return Ok(Some(format!("{suite}, {}: {said}", way.name)));
    }
    figures(&suite, way.name, passed, all)?;
    Ok(None)
}

#[tokio::test]
async fn connect_s_conformance_tests_find_what_is_documented() -> anyhow::Result<()> {
    let ground = Ground::lay(&Judge::BOTH.map(Judge::port)).await?;
    fs::write(ground.file("features"), FEATURES)?;
    // At once: most of their time is spent in waiting.
    let ways = ground.ways();
    let all = ways.iter().flat_map(|way| Judge::BOTH.map(|judge| judged(&ground, way, judge)));
    let wrong: Vec<_> = try_join_all(all).await?.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
