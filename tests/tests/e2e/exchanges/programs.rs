//! Clients and servers that are not ours, as people have them: what curl is answered by servers of
//! node, Python, Java and Go is what it is answered without the mesh.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context;
use sluice_tests::{Line, PATIENCE, Pod, Process};
use tokio::{task::JoinSet, time::sleep};

use super::ways::{Ground, Way};

/// A server: the program that runs it, whether every machine for tests has it, and its source.
struct Server {
    program: &'static str,
    is_needed: bool,
    file: &'static str,
    source: &'static str,
}

const SERVERS: [Server; 4] = [
    Server {
        program: "node",
        is_needed: true,
        file: "server.js",
        source: include_str!("servers/server.js"),
    },
    Server {
        program: "python3",
        is_needed: true,
        file: "server.py",
        source: include_str!("servers/server.py"),
    },
    Server {
        program: "java",
        is_needed: false,
        file: "Server.java",
        source: include_str!("servers/Server.java"),
    },
    Server {
        program: "go",
        is_needed: false,
        file: "server.go",
        source: include_str!("servers/server.go"),
    },
];
const NODE: usize = 0;

/// What curl is told, beside where to.
const ASKED: [&[&str]; 12] = [
    &["/"],
    &["--head", "/"],
    &["--http1.0", "/"],
    &["--http2", "/"],
    &["/?q=up%7Bjob=%22api%22%7D"],
    &["--data", "hello", "/echo"],
    &["--data", "hello", "--header", "Transfer-Encoding: chunked", "/echo"],
    &["--data-binary", "@upload", "--header", "Expect: 100-continue", "/echo"],
    &["--upload-file", "upload", "/echo"],
    &["--header", "Connection: close", "/"],
    &["--no-keepalive", "--header", "Connection: keep-alive", "/"],
    &["/stream"],
];
/// How much it uploads.
const UPLOAD: usize = 300_000;

impl Server {
    /// Starts it in every pod that serves, where the machine has it.
    async fn start(&self, ground: &Ground, number: usize) -> anyhow::Result<Option<Vec<Process>>> {
        let has = Command::new("sh").args(["-c", &format!("command -v {}", self.program)]).output();
        if !has.is_ok_and(|output| output.status.success()) {
            anyhow::ensure!(!self.is_needed, "no {} (hint: cargo xtask setup)", self.program);
            println!("left out: this machine has no {}", self.program);
            return Ok(None);
        }
        let folder = ground.directory().join(self.program);
        fs::create_dir(&folder)?;
        let source = folder.join(self.file);
        fs::write(&source, self.source)?;
        let program = self.compiled(&source, &folder)?;
        let mut started = Vec::new();
        for pod in ground.servers() {
            let mut command = Command::new(&program[0]);
            command.args(&program[1..]).arg(ground.port(number).to_string());
            started.push(pod.spawn(self.program, command)?);
        }
        for process in &started {
            process.output().line(PATIENCE, |line| line.contains("listening")).await?;
        }
        Ok(Some(started))
    }

    /// How it is run.
    fn compiled(&self, source: &Path, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
        if self.program != "go" {
            return Ok(vec![self.program.into(), source.into()]);
        }
        let program = folder.join("server");
        let mut build = Command::new("go");
        build.env("CGO_ENABLED", "0").arg("build").arg("-o").arg(&program).arg(source);
        let built = build.output().context("could not run go")?;
        anyhow::ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Ok(vec![program])
    }
}

/// What curl prints in a pod: heads without what is of the moment, and a body's bytes by number.
fn curl(ground: &Ground, from: &Pod, to: &str, asked: &[&str]) -> anyhow::Result<String> {
    let (path, options) = asked.split_last().context("nothing is asked for")?;
    let mut command = Command::new("curl");
    command.current_dir(ground.directory()).args(["--silent", "--show-error", "--max-time", "60"]);
    command.args(["--dump-header", "-", "--output", "/dev/null", "--path-as-is"]);
    command.args(["--write-out", "%{http_code} %{size_download} %{num_connects} %{errormsg}"]);
    command.args(options).arg(format!("http://{to}{path}"));
    let finished = from.run(command)?;
    let kept = |line: &&str| !line.to_ascii_lowercase().starts_with("date:");
    let said: Vec<_> = finished.stdout.lines().filter(kept).collect();
    Ok(format!("{:?}: {}{}", finished.status.code(), said.join("\n"), finished.stderr))
}

#[tokio::test]
async fn curl_hears_of_real_servers_what_it_hears_without_the_mesh() -> anyhow::Result<()> {
    let ground = Ground::lay(SERVERS.len()).await?;
    fs::write(ground.directory().join("upload"), vec![b'a'; UPLOAD])?;
    let mut wrong = String::new();
    for (number, server) in SERVERS.iter().enumerate() {
        let Some(_running) = server.start(&ground, number).await? else { continue };
        for asked in ASKED {
            let (from, to, ..) = ground.ends(Way::Direct, number);
            let direct = curl(&ground, from, &to.to_string(), asked)?;
            assert!(
                direct.starts_with("Some(0)"),
                "{} {asked:?} directly: {direct}",
                server.program
            );
            for way in Way::MESH {
                let (from, to, ..) = ground.ends(way, number);
                let through = curl(&ground, from, &to.to_string(), asked)?;
                if through != direct {
                    wrong += &format!(
                        "\n== {} {asked:?}, {}:\n{through}\n  directly\n{direct}\n",
                        server.program,
                        way.name()
                    );
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}

/// How many clients meet the end of a kept connection, each a little later than the one before it.
const CLIENTS: u64 = 100;

#[tokio::test]
async fn no_client_that_waits_as_long_as_node_keeps_connections_is_told_of_an_error()
-> anyhow::Result<()> {
    let ground = &Ground::lay(1).await?;
    let _running = SERVERS[NODE].start(ground, NODE).await?;
    for way in Way::MESH {
        let (from, to, ..) = ground.ends(way, NODE);
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let mut client = Line::new(from.connect(to).await?);
            clients.spawn(async move {
                let get = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
                client.say(get).await?;
                let first = client.hear("hello\n").await?;
                // The time is what is tried: node ends a connection a second after its last request.
                sleep(Duration::from_micros(960_000 + 800 * number)).await;
                client.say(get).await?;
                let second = client.hear("hello\n").await?;
                anyhow::Ok([first, second])
            });
        }
        while let Some(answers) = clients.join_next().await {
            for answer in answers?? {
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{}: {answer}", way.name());
            }
        }
    }
    Ok(())
}
