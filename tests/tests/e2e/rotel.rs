//! A receiver that is not ours, whole and unchanged: rotel.

use std::{net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, ensure};
use sluice_tests::{Agent, AgentOptions, Pod, Process, Recording, Shop, Tcpdump};

const PATIENCE: Duration = Duration::from_secs(30);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// Stands in every export that is not compressed.
const READABLE: &str = "mesh.connection.security_policy";
const CALLER: &str = "00f067aa0ba902b7";

/// What rotel printed of a resource's one span.
struct Printed(Vec<String>);

impl Printed {
    fn has(&self, line: &str) -> bool {
        self.0.iter().any(|other| other == line)
    }

    fn value(&self, name: &str) -> &str {
        let named = |line: &'_ String| -> Option<usize> {
            let (key, _) = line.split_once(':')?;
            (key.trim() == name).then(|| key.len() + 1)
        };
        let found = self.0.iter().find_map(|line| Some(line[named(line)?..].trim()));
        found.unwrap_or_else(|| panic!("no {name} in {:#?}", self.0))
    }
}

/// One request across, with agents that export to a rotel on node b. Returns what rotel printed
/// of the client's span and of the server's, and what crossed on the way there from node a.
async fn export_to_rotel(compression: &str) -> anyhow::Result<([Printed; 2], Recording)> {
    let shop = Shop::without_agents()?;
    let endpoint = SocketAddr::new(shop.b.ips()[0], 4317);
    let rotel = start_rotel(&shop, endpoint)?;
    // It says that it starts before it listens; an export that comes too early is repeated.
    rotel.output().line(PATIENCE, |line| line.contains("Starting Rotel")).await?;

    let options = || {
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{endpoint}")),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", compression.to_owned()),
        ];
        let environment = environment.map(|(key, value)| (key.to_owned(), value));
        AgentOptions { environment: environment.into(), ..AgentOptions::default() }
    };
    let a = Agent::start(&shop.a, &shop.mesh, options());
    let b = Agent::start(&shop.b, &shop.mesh, options());
    let _agents = tokio::try_join!(a, b)?;
    let recording = Tcpdump::on_node(&shop.a, "otlp", "tcp port 4317").await?;
    let request =
        format!("GET /plum HTTP/1.1\r\nHost: shop\r\ntraceparent: 00-{TRACE}-{CALLER}-01\r\n\r\n");
    shop.exchange(&shop.far, &request, "HTTP/1.1 204 No Content\r\n\r\n").await?;
    // The last lines that are looked at: whatever was printed before them is there then.
    for text in ["url.full: Str(http://shop/plum)", "url.path: Str(/plum)"] {
        let line = rotel.output().line(PATIENCE, |line| line.contains(text)).await;
        line.with_context(|| format!("rotel did not print `{text}`"))?;
    }
    let lines = rotel.output().lines();
    let resources: Vec<_> = lines.split(|line| line.starts_with("ResourceSpans")).collect();
    let of = |pod: &Pod| {
        let uid = format!("     -> k8s.pod.uid: Str({})", pod.uid());
        let mut own = resources.iter().filter(|lines| lines.contains(&uid));
        let printed = own.next().with_context(|| format!("no {uid} in {lines:#?}"))?;
        ensure!(own.next().is_none(), "more than one span of {}: {lines:#?}", pod.name());
        Ok(Printed(printed.to_vec()))
    };
    Ok(([of(&shop.client)?, of(&shop.far)?], recording.stop().await?))
}

fn start_rotel(shop: &Shop, grpc: SocketAddr) -> anyhow::Result<Process> {
    let program = std::env::var_os("ROTEL_BIN").map(PathBuf::from);
    let program =
        program.context("ROTEL_BIN does not say where rotel is (hint: cargo xtask test --e2e)")?;
    let mut command = Command::new(program);
    command.args(["start", "--exporter", "blackhole"]);
    command.args(["--otlp-grpc-endpoint", &grpc.to_string()]);
    command.args(["--otlp-http-endpoint", &SocketAddr::new(grpc.ip(), 4318).to_string()]);
    command.args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"]);
    shop.b.spawn("rotel", command)
}

#[tokio::test]
async fn spans_arrive_at_rotel_over_grpc_and_gzip() -> anyhow::Result<()> {
    let ([client, server], crossed) = export_to_rotel("gzip").await?;
    for (span, kind) in [(&client, "SPAN_KIND_CLIENT"), (&server, "SPAN_KIND_SERVER")] {
        assert_eq!(span.value("Trace ID"), TRACE);
        assert_eq!(span.value("Kind"), kind);
        assert_eq!(span.value("Name"), "GET");
        assert!(span.has("     -> http.request.method: Str(GET)"), "{:#?}", span.0);
        assert!(span.0.iter().any(|line| line.starts_with("InstrumentationScope sluice ")));
    }
    assert!(client.has("     -> service.name: Str(client)"), "{:#?}", client.0);
    assert!(server.has("     -> service.name: Str(far)"), "{:#?}", server.0);
    assert_eq!(client.value("Parent ID"), CALLER);
    assert_eq!(server.value("Parent ID"), client.value("ID"));
    assert!(crossed.packets > 0 && !crossed.contains(READABLE));
    Ok(())
}

#[tokio::test]
async fn spans_arrive_at_rotel_uncompressed_where_that_is_asked_for() -> anyhow::Result<()> {
    // Which also shows that the search above would find what is not compressed.
    let ([client, server], crossed) = export_to_rotel("none").await?;
    assert_eq!(server.value("Parent ID"), client.value("ID"));
    assert!(crossed.contains(READABLE));
    Ok(())
}
