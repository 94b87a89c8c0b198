//! What the program says would become of requests is what becomes of them.

use std::process::Command;

use serde_json::Value;
use sluice_tests::{Node, Pod, agent_program};

use super::*;

/// What the agent of `node` answers.
fn told(node: &Node, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(agent_program()?);
    command.args(arguments);
    node.run(command)?.success()
}

/// What it says of what `client` asks of `destination`, and by which policy.
fn explained(
    node: &Node,
    client: &Pod,
    destination: &str,
    ask: &[&str],
) -> anyhow::Result<(String, Option<String>)> {
    let client = format!("{}/{}", client.namespace(), client.name());
    let question = ["explain", &client, destination, "-o", "json"];
    let answer: Value = serde_json::from_str(&told(node, &[&question[..], ask].concat())?)?;
    let judgements = answer["judgements"].as_array().context("no judgements")?;
    ensure!(judgements.len() == 1, "{answer}");
    let text = |field: &str| judgements[0][field].as_str().map(str::to_owned);
    Ok((text("outcome").context("no outcome")?, text("policy")))
}

#[tokio::test]
async fn what_an_agent_explains_is_what_clients_see() -> anyhow::Result<()> {
    let town = Town::under(REFERENCE).await?;
    let Town { frontend, monitor, other, outsider, .. } = &town;
    for (server, node) in [(&town.near, &town.a), (&town.far, &town.b)] {
        let mut app = serve(server, HTTP.target)?;
        let destination = format!("{}.default:{}", server.name(), HTTP.port);
        for (client, method, path) in [
            (frontend, "GET", "/api/items"),
            (frontend, "DELETE", "/api/items"),
            (frontend, "GET", "/api/../admin"),
            (frontend, "GET", "/x/../api/items"),
            (monitor, "GET", "/health"),
            (monitor, "GET", "/api/items"),
            (other, "GET", "/health"),
        ] {
            let head = format!("{method} {path} HTTP/1.1\r\nHost: go-app");
            let (status, _) = ask(client, service(server, HTTP), &head).await?;
            let expected = if status == 200 { "allowed" } else { "refused" };
            let question = ["--method", method, "--path", path];
            let (outcome, policy) = explained(node, client, &destination, &question)?;
            assert_eq!(outcome, expected, "{} {method} {path}: {status}", client.name());
            assert_eq!(policy.as_deref(), Some("default/go-app-authz"));
        }
        app.shutdown().await;
        let destination = format!("{}.default:{}", server.name(), TCP.port);
        is_reset(frontend, server, service(server, TCP), TCP.target).await?;
        assert_eq!(explained(node, frontend, &destination, &[])?.0, "refused");
        let at = SocketAddr::new(server.ip(), UNDECLARED.target).to_string();
        for client in [other, outsider] {
            assert_eq!(explained(node, client, &at, &[])?.0, "refused", "{}", client.name());
        }
    }
    // The policies of a pod are its own node's to know.
    assert_eq!(explained(&town.a, frontend, "far.default:80", &[])?.0, "unknown");
    Ok(())
}

#[tokio::test]
async fn an_agent_lists_what_is_in_force_for_its_pods() -> anyhow::Result<()> {
    let town = Town::under(REFERENCE).await?;
    let said = told(&town.b, &["policy", "far"])?;
    let lines: Vec<_> = said.lines().map(str::trim).collect();
    assert!(lines[0].starts_with("default/far, spiffe://cluster.local/ns/default/sa/"), "{said}");
    assert_eq!(lines[1], "mutual TLS STRICT by PeerAuthentication default/default");
    assert_eq!(lines[2], "ALLOW default/go-app-authz");
    let all: Value = serde_json::from_str(&told(&town.b, &["policy", "-o", "json"])?)?;
    let names: Vec<_> = all["pods"].as_array().into_iter().flatten().collect();
    assert_eq!(names.len(), 1, "{all}");
    Ok(())
}
