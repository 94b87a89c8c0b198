//! What `sluice status` and a scraper see of an agent at work.

use std::{net::SocketAddr, process::Command};

use serde_json::Value;
use sluice_tests::{Agent, Mesh, Node, PATIENCE, Talk, agent_program, capture_events, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

fn to(mesh: &Mesh, port: u16) -> SocketAddr {
    SocketAddr::new(mesh.service_ips(&mesh.far)[0], port)
}

/// What `sluice status` prints.
fn printed_status(node: &Node, flags: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(agent_program()?);
    command.arg("status").args(flags);
    node.run(command)?.success()
}

#[tokio::test]
async fn status_shows_pods_certificates_configuration_and_counters() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&["--certificate-lifetime", "1h"]).await?;
    let listener = mesh.far.listen(Mesh::TCP_TARGET)?;
    let _talk = Talk::start(&mesh.client, to(&mesh, Mesh::TCP), &listener).await?;

    let status = printed_status(&mesh.a, &["--output", "json"])?;
    let status: Value = serde_json::from_str(&status)?;
    assert_eq!(status["node"], "node-a");
    assert_eq!(status["configuration"]["version"], 1);
    assert_eq!(status["configuration"]["workloads"], 4);
    assert_eq!(status["configuration"]["services"], 2);
    assert_eq!(status["connections"], 1);
    let pods: Vec<_> = list(&status["pods"]).collect();
    assert_eq!(pods.len(), 2, "{pods:?}");
    let client = pods.iter().find(|pod| pod["name"] == "default/client").expect("it is listed");
    assert_eq!(client["uid"], mesh.client.uid());
    assert_eq!(client["principal"], mesh.client.principal());
    assert_eq!(client["ips"], serde_json::json!(mesh.client.ips()));
    let certificates: Vec<_> = list(&status["certificates"]).collect();
    assert_eq!(certificates.len(), 2, "{certificates:?}");
    for certificate in certificates {
        let time = |field: &str| {
            let text = certificate[field].as_str().unwrap_or_default();
            time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
        };
        let left = (time("expires")? - time::OffsetDateTime::now_utc()).whole_minutes();
        assert!((55..=60).contains(&left), "{certificate}");
        assert!(time("renewal")? < time("expires")?, "{certificate}");
    }
    assert_eq!(capture_events(&mesh.a, "steered_out")?, 1);

    let text = printed_status(&mesh.a, &[])?;
    let line_with = |words: &[&str]| {
        let mut lines = text.lines();
        assert!(
            lines.any(|line| words.iter().all(|word| line.contains(word))),
            "{words:?}: {text}"
        );
    };
    line_with(&["Node node-a", "ready"]);
    line_with(&["Snapshot 1", "4 pods", "2 services", "1 connections open"]);
    line_with(&["default/client", &mesh.client.ip().to_string(), "captured"]);
    line_with(&["default/near", &mesh.near.ip().to_string(), "captured"]);
    line_with(&[&mesh.client.principal(), "expires "]);
    line_with(&["event=\"steered_out\"", " 1"]);
    Ok(())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[tokio::test]
async fn status_without_an_agent_says_what_to_look_at() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let mut command = Command::new(agent_program()?);
    command.arg("status");
    let finished = mesh.a.run(command)?;
    assert_eq!(finished.status.code(), Some(1));
    let said: Vec<_> = finished.stderr.lines().collect();
    let [error] = said.as_slice() else { panic!("not one line: {said:#?}") };
    assert!(error.contains("no agent answers on 127.0.0.1:15000") && error.contains("(hint: "));
    Ok(())
}

/// The value of the one series of `name` that has all of `labels`.
fn series(metrics: &str, name: &str, labels: &[String]) -> Option<f64> {
    let mut found = metrics.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
            && labels.iter().all(|label| line.contains(label.as_str()))
    });
    let (line, other) = (found.next()?, found.next());
    assert_eq!(other, None, "more than one series of {name} has {labels:?}");
    line.rsplit_once("} ")?.1.split(' ').next()?.parse().ok()
}

/// What the series of both reporters have in common.
fn client_to_far(mesh: &Mesh, reporter: &str, policy: &str) -> Vec<String> {
    [
        ("reporter", reporter),
        ("source_workload", "client"),
        ("source_workload_namespace", "default"),
        ("source_principal", &mesh.client.principal()),
        ("destination_workload", "far"),
        ("destination_workload_namespace", "default"),
        ("destination_principal", &mesh.far.principal()),
        ("destination_service", "far.default.svc.cluster.local"),
        ("destination_service_name", "far"),
        ("connection_security_policy", policy),
    ]
    .map(|(name, value)| format!("{name}=\"{value}\""))
    .to_vec()
}

#[tokio::test]
async fn requests_and_connections_are_counted_with_istios_labels() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let listener = mesh.far.listen(Mesh::TCP_TARGET)?;
    let talk = Talk::start(&mesh.client, to(&mesh, Mesh::TCP), &listener).await?;
    let (sent, received) = ("from the client".len(), "from the server".len());
    drop(talk);
    get(&mesh, mesh.far.listen(Mesh::HTTP_TARGET)?).await?;

    for (node, reporter, policy) in
        [(&mesh.a, "source", "unknown"), (&mesh.b, "destination", "mutual_tls")]
    {
        let common = client_to_far(&mesh, reporter, policy);
        let with = |more: &[&str]| {
            common.iter().cloned().chain(more.iter().map(|&label| label.to_owned())).collect()
        };
        let tcp: Vec<_> = with(&["request_protocol=\"tcp\"", "response_flags=\"-\""]);
        let http: Vec<_> = with(&["request_protocol=\"http\"", "response_code=\"404\""]);
        let metrics = eventually("both are counted", || async {
            let metrics = Agent::metrics(node).await?;
            let closed = series(&metrics, "istio_tcp_connections_closed_total", &tcp);
            let done = closed.is_some_and(|closed| closed > 0.0)
                && series(&metrics, "istio_requests_total", &http).is_some();
            Ok(done.then_some(metrics))
        })
        .await?;
        let value = |name: &str, labels: &[String]| series(&metrics, name, labels);
        assert_eq!(value("istio_requests_total", &http), Some(1.0));
        assert_eq!(value("istio_request_duration_milliseconds_count", &http), Some(1.0));
        assert_eq!(value("istio_tcp_connections_opened_total", &tcp), Some(1.0));
        assert_eq!(value("istio_tcp_connections_closed_total", &tcp), Some(1.0));
        // Istio counts from the server's point of view.
        assert_eq!(value("istio_tcp_sent_bytes_total", &tcp), Some(received as f64));
        assert_eq!(value("istio_tcp_received_bytes_total", &tcp), Some(sent as f64));
    }
    Ok(())
}

/// One request from the client to the service in front of `far`, answered with 404.
async fn get(mesh: &Mesh, server: TcpListener) -> anyhow::Result<()> {
    let exchange = async {
        let mut client = mesh.client.connect(to(mesh, Mesh::HTTP)).await?;
        client.write_all(b"GET / HTTP/1.1\r\nhost: far\r\nconnection: close\r\n\r\n").await?;
        let (mut accepted, _) = server.accept().await?;
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(accepted.read_u8().await?);
        }
        accepted.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await?;
        let mut response = String::new();
        client.read_to_string(&mut response).await?;
        anyhow::Ok(response)
    };
    let response = timeout(PATIENCE, exchange).await??;
    anyhow::ensure!(response.starts_with("HTTP/1.1 404"), "{response}");
    Ok(())
}
