//! h2spec, which breaks HTTP/2's rules one by one, against the agent's own side of a connection.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, ensure};
use sluice_tests::Port;

use super::{Ground, figures, program, run, serve};

/// One that is declared, and one of which it must be found out.
const PORTS: [Port<'_>; 2] =
    [Port { name: "http2", port: 80, target: 8080 }, Port { name: "web", port: 81, target: 8080 }];
/// What serves HTTP/2 alone.
const SERVER: &str = "require('node:http2').createServer((request, response) => {
    request.resume();
    response.end('hello\\n');
}).listen(Number(process.argv[1]), '::');";
/// Seconds that it waits for an answer.
const ANSWER: u8 = 10;

/// The tests of a report in JUnit's form, by section and title, and those that failed.
fn read(report: &str) -> anyhow::Result<(BTreeSet<String>, BTreeSet<String>)> {
    let (mut all, mut failed) = (BTreeSet::new(), BTreeSet::new());
    for case in report.split("<testcase ").skip(1) {
        let attribute = |name: &str| -> Option<&str> {
            let (_, value) = case.split_once(&format!("{name}=\""))?;
            Some(value.split_once('"')?.0)
        };
        let section = attribute("package").context("a test without a section")?;
        let title = attribute("classname").context("a test without a title")?;
        let name = format!("{section}: {title}");
        if case.contains("<failure") || case.contains("<error") || case.contains("<skipped") {
            failed.insert(name.clone());
        }
        ensure!(all.insert(name), "two tests are called {section}: {title}");
    }
    Ok((all, failed))
}

#[tokio::test]
async fn h2spec_finds_what_is_documented() -> anyhow::Result<()> {
    let ground = Ground::lay(&PORTS).await?;
    for way in ground.ways() {
        let mut server = Command::new("node");
        server.args(["--eval", SERVER, &PORTS[0].target.to_string()]);
        let _server = serve(way.server, "server", server, PORTS[0].target).await?;
        for port in PORTS {
            let way_there = format!("port {}, {}", port.name, way.name);
            let report = ground.file(&format!("h2spec-{}-{}.xml", port.name, way.server.name()));
            let mut command = Command::new(program("h2spec")?);
            command.args(["--strict", "--host", &way.service.to_string()]);
            command.args(["--port", &port.port.to_string(), "--timeout", &ANSWER.to_string()]);
            command.arg("--junit-report").arg(&report);
            let (_, said) = run(ground.client(), "h2spec", command).await?;
            let report = fs::read_to_string(&report).with_context(|| said.clone())?;
            let (all, failed) = read(&report)?;
            assert!(failed.is_empty(), "{way_there}: {failed:?}: {said}");
            let passed = all.len() - failed.len();
            figures("h2spec 2.2.1, strict", &way_there, passed, all.len())?;
        }
    }
    Ok(())
}
